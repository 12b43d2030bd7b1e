"""nari-labs/dia from a checkout, behind the interface of `peers`."""

import importlib
import sys
import time
import types
from pathlib import Path

import torch

from dia_engine.model.config import DiaConfig
from dia_engine.weights.layouts import NARI, tensor_table

from .peers import PARAMS, Timing, timing_of
from .roofline import synchronize


class EnoughError(Exception):
    """Ends the reference's loop from inside."""


class Nari:
    """The reference's own `generate`, eager or with `use_torch_compile`; it pads the text and encodes both rows."""

    def __init__(self, reference, compiled: bool):
        """`reference`: a loaded `dia.model.Dia`."""
        self.reference, self.compiled, self.device = reference, compiled, reference.device
        self.name = "nari-labs/dia " + ("compiled" if compiled else "eager")

    @torch.no_grad()
    def run(self, text: torch.Tensor, batch: int, steps: int) -> Timing:
        """As `Ours.run`. The loop fetches a row's tokens once before each step, which is where the time is stamped."""
        outputs = importlib.import_module("dia.state").DecoderOutput
        original, stamps = outputs.get_tokens_at, []

        def stamped(output, step_from, step_to=None):
            if step_to is None:
                synchronize(self.device)
                stamps.append(time.perf_counter())
                if len(stamps) > 1 + steps:
                    raise EnoughError
            return original(output, step_from, step_to)

        outputs.get_tokens_at = stamped
        script = bytes(text.tolist()).decode("utf-8")
        started = time.perf_counter()
        try:
            self.reference.generate(
                [script] * batch,
                max_tokens=PARAMS.max_tokens,
                cfg_scale=PARAMS.cfg_scale,
                temperature=PARAMS.temperature,
                top_p=PARAMS.top_p,
                cfg_filter_top_k=PARAMS.top_k,
                use_torch_compile=self.compiled,
            )
        except EnoughError:
            pass
        finally:
            outputs.get_tokens_at = original
        return timing_of([started, *stamps[1:]])


def check_nari(checkout: str) -> None:
    """
    Raises:
        FileNotFoundError: no checkout there.
    """
    if not (Path(checkout) / "dia" / "model.py").is_file():
        raise FileNotFoundError(f"--reference: no dia/model.py in {checkout}; clone https://github.com/nari-labs/dia")


def load_nari(checkout: str, config: DiaConfig, weights: dict[str, torch.Tensor]):
    """The reference's `Dia` from a checkout, with copies of our weights in its layout, without its codec."""
    sys.path.insert(0, checkout)
    if importlib.util.find_spec("torchaudio") is None:
        # Only its reader of prompt files needs torchaudio, which cannot be installed beside every torch.
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    model = importlib.import_module("dia.model")
    settings = importlib.import_module("dia.config").DiaConfig.model_validate(config.to_dict())
    head = weights["decoder.head.weight"]
    dtype = str(head.dtype).removeprefix("torch.")
    with torch.device("meta"):
        reference = model.Dia(settings, compute_dtype=dtype, device=head.device, load_dac=False)
    reference.model.load_state_dict(_nari_tensors(config, weights), assign=True, strict=True)
    _make_buffers(reference.model, head.device)
    reference.model.eval()
    return reference


def _nari_tensors(config: DiaConfig, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, pieces in tensor_table(config, NARI).items():
        for piece, part in zip(pieces, weights[name].split([piece.rows for piece in pieces]), strict=True):
            tensors[piece.name] = (part.T if piece.inputs_first else part).reshape(piece.shape).contiguous()
    return tensors


def _make_buffers(module: torch.nn.Module, device: torch.device) -> None:
    """RoPE's time scales are in no checkpoint; those made on the meta device are made again."""
    for part in module.modules():
        if hasattr(part, "timescale"):
            exponent = 2.0 * torch.arange(part.embedding_dims // 2, device=device) / part.embedding_dims
            part.timescale = part.min_timescale * (part.max_timescale / part.min_timescale) ** exponent
