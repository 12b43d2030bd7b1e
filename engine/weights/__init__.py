"""Dia's weights: where they come from, quantization, loading and saving."""
