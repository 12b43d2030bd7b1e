"""Descript Audio Codec, inference only: sound to codes and back."""

from .codec import DEFAULT_CODEC, Codec
from .config import CodecConfig

__all__ = ["DEFAULT_CODEC", "Codec", "CodecConfig"]
