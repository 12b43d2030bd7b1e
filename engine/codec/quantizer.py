"""Residual vector quantization: each codebook codes what the ones before it left over.

Always in float32: the search compares near neighbors, and its cost is small beside the convolutions.
"""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.cpu.build import library
from ..kernels.cpu.matmul import multiply
from ..kernels.cpu.structures import is_compilable
from .config import CodecConfig


class Codebook(nn.Module):
    """One stage: project the latent down, find the entry with the most similar direction, project that up."""

    directions: torch.Tensor  # [N, d], made by `prepare`
    direction_norms: torch.Tensor  # [N]

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.project_in = nn.Conv1d(config.hidden_size, config.codebook_dim, kernel_size=1)
        self.project_out = nn.Conv1d(config.codebook_dim, config.hidden_size, kernel_size=1)
        # From a tensor, because a random start would import torch's compiler (1.5 s) for a network without weights.
        self.entries = nn.Embedding.from_pretrained(torch.empty(config.codebook_size, config.codebook_dim))

    def prepare(self) -> None:
        """Normalize the entries, once."""
        directions = F.normalize(self.entries.weight.detach())  # [N, d]
        self.register_buffer("directions", directions, persistent=False)
        self.register_buffer("direction_norms", directions.square().sum(dim=1), persistent=False)  # [N]

    def encode(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """latent [1, hidden, T] to codes [T] int64 and what they stand for [1, hidden, T]."""
        projected = self.project_in(latent)  # [1, d, T]
        codes = self._nearest(projected[0].t())
        chosen = self.entries(codes).t()[None]
        # The detour over the difference is how training wrote it. It rounds differently from `chosen` alone, and a
        # search this fine turns rounding into another code now and then.
        return codes, self.project_out(projected + (chosen - projected))

    def _nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Index [T] of the entry at the least distance from each vector [T, d], lengths aside; the first one of equals.

        This is the distance of descript-audio-codec, term by term. transformers has the sign of the last term turned,
        which is the same but for the rounding of norms that are all 1.
        """
        vectors = F.normalize(vectors)
        norms = vectors.square().sum(dim=1, keepdim=True)
        return (norms - 2 * vectors @ self.directions.t() + self.direction_norms).argmin(dim=1)


class Quantizer(nn.ModuleList):
    """The codebooks in order."""

    table: torch.Tensor  # [C N, d], made by `prepare`, as the next three
    offsets: torch.Tensor  # [C]
    projection: torch.Tensor  # [hidden, C d]
    bias: torch.Tensor  # [hidden]

    def __init__(self, config: CodecConfig):
        super().__init__(Codebook(config) for _ in range(config.n_codebooks))

    def __iter__(self) -> Iterator[Codebook]:
        return cast(Iterator[Codebook], super().__iter__())

    def prepare(self) -> None:
        """Lay all codebooks side by side, so that decoding is one look-up and one matrix product."""
        table = torch.cat([book.entries.weight.detach() for book in self])  # [C N, d]
        offsets = torch.arange(0, len(table), len(table) // len(self), device=table.device)  # [C]
        projection = torch.cat([book.project_out.weight.detach()[:, :, 0] for book in self], dim=1)  # [hidden, C d]
        bias = projection.new_zeros(len(projection))
        for book in self:
            bias += book.project_out.get_parameter("bias").detach()
        for name, tensor in (("table", table), ("offsets", offsets), ("projection", projection), ("bias", bias)):
            self.register_buffer(name, tensor, persistent=False)

    def encode(self, latent: torch.Tensor) -> torch.Tensor:
        """latent [1, hidden, T] float32 to codes [T, C] int64."""
        residual, codes = latent, []
        for book in self:
            indices, coded = book.encode(residual)
            residual = residual - coded
            codes.append(indices)
        return torch.stack(codes, dim=1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """codes [T, C] int64, in range, to latent [1, hidden, T] float32."""
        vectors = F.embedding(codes + self.offsets, self.table).flatten(1)  # [T, C d]
        # A frame has the same bits in any window; by torch they depend on how many there are, and on threads.
        if is_compilable(self.projection) and library() is not None:
            return multiply(vectors, self.projection).add_(self.bias).t()[None]
        return F.linear(vectors, self.projection, self.bias).t()[None]
