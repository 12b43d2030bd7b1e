"""Descript Audio Codec, inference only: sound to codes and back."""

from .config import CodecConfig
from .dac import DEFAULT_CODEC, Codec

__all__ = ["DEFAULT_CODEC", "Codec", "CodecConfig"]
