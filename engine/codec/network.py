"""The codec's three parts in one module, whose names are those of its weights."""

from functools import cached_property

import torch
from torch import nn

from .compiled import pack
from .config import CodecConfig
from .layers import Snake, build_encoder, decoder_layers
from .quantizer import Codebook, Quantizer
from .tiles import TiledDecoder, finished


class Decoder(nn.Sequential):
    """The layers of the decoder, and on a CPU their compiled form.

    Attributes:
        is_packed: whether compiled code runs them.
    """

    def __init__(self, *layers: nn.Module):
        super().__init__(*layers)
        self.is_packed = False

    @cached_property
    def tiled(self) -> TiledDecoder:
        """The same for a part of the sound; to be asked for once the weights are what they shall be."""
        return TiledDecoder(self)

    def pack(self) -> None:
        """Where there is compiled code, bring the weights into its order."""
        self.is_packed = pack(self)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent [N, hidden_size, frames] to waveforms [N, 1, samples] in the same dtype."""
        if not self.is_packed:
            waveforms: torch.Tensor = super().forward(latent)
            return waveforms
        return torch.cat([finished(self.tiled.pieces(each[None], 0)) for each in latent])


class Network(nn.Module):
    """Encoder, quantizer and decoder without weights: names and shapes only, until `load_state_dict(assign=True)`."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        with torch.device("meta"):
            self.encoder = build_encoder(config)
            self.quantizer = Quantizer(config)
            self.decoder = Decoder(*decoder_layers(config))
        self.requires_grad_(False).eval()

    def prepare(self) -> None:
        """Compute what follows from the loaded weights, once."""
        for module in self.modules():
            if isinstance(module, (Snake, Codebook, Quantizer)):
                module.prepare()
