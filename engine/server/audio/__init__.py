"""Audio on its way out and in: resampling, encoding, decoding of uploads."""
