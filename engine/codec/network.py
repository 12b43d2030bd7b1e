"""The codec's three parts in one module, whose names are those of its weights."""

import torch
from torch import nn

from .config import CodecConfig
from .layers import Snake, build_decoder, build_encoder
from .quantizer import Codebook, Quantizer


class Network(nn.Module):
    """Encoder, quantizer and decoder without weights: names and shapes only, until `load_state_dict(assign=True)`."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        with torch.device("meta"):
            self.encoder = build_encoder(config)
            self.quantizer = Quantizer(config)
            self.decoder = build_decoder(config)
        self.requires_grad_(False).eval()

    def prepare(self) -> None:
        """Compute what follows from the loaded weights, once."""
        for module in self.modules():
            if isinstance(module, (Snake, Codebook, Quantizer)):
                module.prepare()
