"""Every kernel of a decode step on random inputs of some requests, which do not depend on who else is in the batch."""

from collections.abc import Callable

import torch

from dia_engine.kernels import attention, gated_linear, norm_linear, qkv, residual_linear, sample_and_advance
from dia_engine.kernels.norm import TILE, Residual
from dia_engine.kernels.quantized import FORMATS
from dia_engine.kernels.rope import rope_table
from dia_engine.model.config import DecoderConfig, DiaConfig, EncoderConfig
from dia_engine.model.state import STATUS, DecodeState

WIDTH = 1024  # below 2048, where the norm's scale sums fewer than 128 partial sums
CAPACITY = 70  # of the caches that attention reads
EPS = 1e-5
Outputs = dict[str, torch.Tensor]


class OneStep:
    """Inputs for up to `requests` requests; a kernel then runs for any of them, in any order.

    Args:
        requests: how many there are; each has two rows.
        weights: dtype of weights and activations, or dtype:format of quantized weights.
    """

    def __init__(self, requests: int, weights: str) -> None:
        torch.manual_seed(0)
        name, _, quant = weights.partition(":")
        self.dtype, self.format = getattr(torch, name), FORMATS.get(quant)
        self.qkv, self.gate, self.out, self.head = (self._weight(outputs) for outputs in (192, 64, 64, 48))
        rows = 2 * requests
        self.residual = Residual.allocate(rows, WIDTH, self.dtype, "cpu")
        self.residual.write(torch.randn(rows, WIDTH) * 3, 1 + 0.1 * torch.randn(WIDTH))
        self.residual.squares.copy_(self.residual.x.view(rows, -1, TILE).square().sum(-1))
        self.inputs = torch.randn(rows, WIDTH).to(self.dtype)
        self.narrow = torch.randn(rows, 64)
        self.constant = torch.randn(64)
        self.rope = rope_table(16, 64, 10000.0, "cpu")
        self.query = torch.randn(rows, 4, 16).to(self.dtype)
        self.keys, self.values = (torch.randn(rows, 2, CAPACITY, 16).to(self.dtype) for _ in range(2))
        self.last = (CAPACITY - 1 - torch.arange(requests) * 13) % CAPACITY  # every request has another length
        self.logits = torch.randn(rows, CONFIG.decoder.num_channels, CONFIG.decoder.vocab_size) * 2
        self.table = torch.randn(CONFIG.decoder.num_channels * CONFIG.decoder.vocab_size, 80).to(self.dtype)

    def _weight(self, outputs: int):
        matrix = torch.randn(outputs, WIDTH) * WIDTH**-0.5
        return self.format.quantize(matrix, self.dtype) if self.format else matrix.to(self.dtype)

    def run(self, kernel: str, requests: list[int]) -> Outputs:
        """All outputs of one of KERNELS for these requests, in this order, each [requests, ...]."""
        outputs = KERNELS[kernel](self, torch.tensor(requests))
        return {f"{kernel} {name}".strip(): value.unflatten(0, (len(requests), -1)) for name, value in outputs.items()}

    def _residual(self, requests: torch.Tensor) -> Residual:
        rows = rows_of(requests)
        return Residual(*(getattr(self.residual, name)[rows] for name in ("x", "z", "squares")))

    def qkv_outputs(self, requests: torch.Tensor) -> Outputs:
        rows = 2 * len(requests)
        query = torch.zeros(rows, 1, 64, dtype=self.dtype)
        keys, values = (torch.zeros(rows, 1, 16, 64, dtype=self.dtype) for _ in range(2))
        position = requests % 16
        qkv.project_qkv(self._residual(requests), self.qkv, EPS, self.rope, position, query, keys, values)
        return {"query": query, "keys": keys, "values": values}

    def gated_outputs(self, requests: torch.Tensor) -> Outputs:
        hidden = torch.zeros(2 * len(requests), 32, dtype=self.dtype)
        gated_linear.gated_linear(self._residual(requests), self.gate, EPS, hidden)
        return {"": hidden}

    def norm_outputs(self, requests: torch.Tensor) -> Outputs:
        logits = torch.zeros(2 * len(requests), 48)
        norm_linear.norm_linear(self._residual(requests), self.head, EPS, logits)
        return {"": logits}

    def residual_outputs(self, requests: torch.Tensor) -> Outputs:
        return self._add(requests, self.inputs[rows_of(requests)], None)

    def text_outputs(self, requests: torch.Tensor) -> Outputs:
        """Only the second row of a request has an input, the first adds a constant."""
        return self._add(requests, self.inputs[2 * requests], self.constant)

    def _add(self, requests: torch.Tensor, inputs: torch.Tensor, constant: torch.Tensor | None) -> Outputs:
        result = Residual.allocate(2 * len(requests), 64, self.dtype, "cpu")
        result.write(self.narrow[rows_of(requests)], torch.ones(64))
        residual_linear.residual_linear(inputs, self.out, result, torch.ones(64), constant)
        return _fields(result)

    def self_attention_outputs(self, requests: torch.Tensor) -> Outputs:
        return self._attend(rows_of(requests), self.last[requests])

    def cross_attention_outputs(self, requests: torch.Tensor) -> Outputs:
        return self._attend(2 * requests, self.last[requests])

    def _attend(self, rows: torch.Tensor, last: torch.Tensor) -> Outputs:
        out = torch.zeros(len(rows), 64, dtype=self.dtype)
        scratch = attention.AttentionScratch.allocate(len(rows), 2, 4, 16, "cpu")
        attention.decode_attention(self.query[rows], self.keys[rows], self.values[rows], last, scratch, out)
        return {"": out}

    def next_row_outputs(self, requests: torch.Tensor) -> Outputs:
        """Some requests draw, some are greedy; some are new, some at their end."""
        state = DecodeState.allocate(CONFIG, len(requests), 20, 4, self.dtype, "cpu")
        state.grid.fill_(-1)
        state.grid[:, :3] = 1
        state.position.copy_(2 + requests % 15)
        state.countdown.copy_(torch.where(requests % 4 == 3, 2, -1))
        state.temperature.copy_(torch.where(requests % 5 == 4, 0.0, 1.2))
        state.cfg_scale.fill_(3.0)
        state.top_p.copy_(0.5 + 0.1 * (requests % 6))
        state.top_k.copy_(5 + requests)
        state.seed.copy_(requests)
        state.grid[torch.arange(len(requests)), state.position] = 2
        sample_and_advance.next_row(self.logits[rows_of(requests)], state, self.table, torch.ones(80))
        flags = {name: getattr(state, name) for name in ("grid", *STATUS)}
        return flags | _fields(state.residual)


KERNELS: dict[str, Callable[[OneStep, torch.Tensor], Outputs]] = {
    "qkv": OneStep.qkv_outputs,
    "gated": OneStep.gated_outputs,
    "norm": OneStep.norm_outputs,
    "residual": OneStep.residual_outputs,
    "residual_with_text": OneStep.text_outputs,
    "self_attention": OneStep.self_attention_outputs,
    "cross_attention": OneStep.cross_attention_outputs,
    "next_row": OneStep.next_row_outputs,
}

CONFIG = DiaConfig(
    encoder=EncoderConfig(
        num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=1, num_key_value_heads=1,
        head_dim=16, max_position_embeddings=16,
    ),
    decoder=DecoderConfig(
        num_hidden_layers=1, hidden_size=80, intermediate_size=16, num_attention_heads=1, num_key_value_heads=1,
        head_dim=16, cross_num_attention_heads=1, cross_num_key_value_heads=1, cross_head_dim=16, cross_hidden_size=16,
        num_channels=3, vocab_size=70, max_position_embeddings=32,
    ),
    delay_pattern=(0, 2, 3), bos_token_id=68, eos_token_id=66, pad_token_id=67,
)  # fmt: skip


def rows_of(requests: torch.Tensor) -> torch.Tensor:
    """Both rows of each request."""
    return torch.stack([2 * requests, 2 * requests + 1], 1).flatten()


def _fields(residual: Residual) -> Outputs:
    return {name: getattr(residual, name) for name in ("x", "z", "squares")}
