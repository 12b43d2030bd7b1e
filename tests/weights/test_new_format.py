"""What CONTRIBUTING.md says of a new quantization format: a class, entered in `FORMATS`, computes on a CPU."""

import dataclasses

import torch

from dia_engine import Engine
from dia_engine.kernels import quantized
from dia_engine.kernels.quantized import FORMATS, QuantWeight


@dataclasses.dataclass(frozen=True)
class HalfWeight:
    """Numbers of 16 bits, which the talker's weights are."""

    values: torch.Tensor  # [N, K] float16
    dtype: torch.dtype

    title = "half"

    @classmethod
    def quantize(cls, matrix, dtype):
        return cls(matrix.half(), dtype)

    @staticmethod
    def fits(columns):
        return True

    @staticmethod
    def bytes_of(rows, columns):
        return 2 * rows * columns

    @property
    def shape(self):
        return self.values.shape

    @property
    def device(self):
        return self.values.device

    @property
    def nbytes(self):
        return self.values.nbytes

    @property
    def absmax(self):
        return self.values.float().abs().amax(dim=1)

    def dequantize(self, dtype=None):
        return self.values.to(dtype or self.dtype)

    def split(self, rows):
        return [HalfWeight(values, self.dtype) for values in self.values.split(rows)]

    @classmethod
    def join(cls, parts, device):
        return cls(torch.cat([part.values for part in parts]).to(device), parts[0].dtype)


def test_a_new_format_needs_one_class(monkeypatch):
    monkeypatch.setitem(FORMATS, "half", HalfWeight)
    monkeypatch.setattr(quantized, "QuantWeight", QuantWeight | HalfWeight)
    text = "[S1] I see two cats."
    with Engine.load("talker", quant={"*.mlp.*": "half"}, device="cpu") as engine:
        assert isinstance(engine.weights["decoder.layers.0.mlp.down.weight"], HalfWeight)
        codes = engine.generate(text, temperature=0, details=True).codes
    with Engine.load("talker", device="cpu") as plain:
        assert (codes == plain.generate(text, temperature=0, details=True).codes).all()
