"""What is done to sound behind the codec, chunk by chunk."""
