"""Descript Audio Codec, inference only: sound to codes and back."""

from ..files.hub import DEFAULT_CODEC
from .config import CodecConfig
from .dac import Codec

__all__ = ["DEFAULT_CODEC", "Codec", "CodecConfig"]
