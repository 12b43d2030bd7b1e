"""Dia itself: what is computed, on tensors alone."""
