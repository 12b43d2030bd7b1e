"""One interface over several runtimes of Dia: read a script, then make steps, a time stamp after each. All share one
set of weights in memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from dia_engine.model.config import DiaConfig
from dia_engine.model.dia import DiaModel
from dia_engine.runtime.request import Request
from dia_engine.runtime.runner import STEPS_PER_LAUNCH, ModelRunner
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.weights.save import transformers_tensors

from .roofline import synchronize

PARAMS = ResolvedSamplingParams()


def without_end(config: DiaConfig) -> ResolvedSamplingParams:
    """Those of a request that takes all of its rows: steps of a slot that has stopped are not what is timed."""
    rows = PARAMS.rows(config.decoder.max_position_embeddings, 0, config.max_delay)
    return replace(PARAMS, min_tokens=rows - 1 - config.max_delay)


@dataclass(frozen=True)
class Timing:
    """Seconds from the script to the end of the first steps, and of each step after them."""

    first: float
    steps: list[float]
    first_steps: int = 1  # those of one launch, where several steps are captured together


class Ours:
    """This engine. Where steps are captured in a graph, a time stamp is the end of a launch of several steps."""

    def __init__(self, model: DiaModel, quant: str = ""):
        self.model, self.device = model, model.device
        self.name = self.title(quant)
        self._runner: ModelRunner | None = None

    @staticmethod
    def title(quant: str = "") -> str:
        """The name in results."""
        return f"dia-engine {quant}".rstrip()

    @torch.no_grad()
    def run(self, text: torch.Tensor, batch: int, steps: int) -> Timing:
        """Time `batch` requests for the ids `text` [S] over 1 + `steps` steps."""
        if self._runner is None or self._runner.max_slots != batch:
            self._runner = None  # before the new memory is asked for
            self._runner = ModelRunner(self.model, max_slots=batch)
            self._runner.prepare(batch)
        runner, config = self._runner, self.model.config
        no_prompt = torch.zeros((0, config.decoder.num_channels), dtype=torch.int64)
        params = without_end(config)
        stamps, made = [time.perf_counter()], []
        for slot in range(batch):
            request = Request(text, no_prompt, params, seed=slot)
            for _ in runner.prefill(slot, request):
                pass
            runner.activate(slot, request)
        ended = 0  # steps of the launches that have a stamp
        while ended <= steps:
            while runner.in_flight < runner.max_in_flight:  # so that the device never waits for the next launch
                made.append(runner.decode(range(batch), STEPS_PER_LAUNCH[0]))
            runner.read_status()  # comes with the end of the oldest of them
            ended += made[len(stamps) - 1]
            stamps.append(time.perf_counter())
        synchronize(self.device)
        runner.forget_launches()
        for slot in range(batch):
            runner.release(slot)
        spans = timing_of(stamps)
        return Timing(spans.first, [span / count for span, count in zip(spans.steps, made[1:], strict=False)], made[0])

    @contextmanager
    def timed_stages(self) -> Iterator[dict[str, float]]:
        """Time the stages of compiled steps: see `CompiledStep.timed`. The dict stays empty where there are none."""
        with nullcontext({}) if self.model.compiled_step is None else self.model.compiled_step.timed() as seconds:
            yield seconds


class Transformers:
    """transformers' DiaForConditionalGeneration with its own `generate`.

    compiled: with the static cache and torch.compile, as its documentation recommends, else eager.
    pad_to: pads the script to so many positions, which is how nari-labs/dia feeds it (1024), with the rows with and
        without text; None leaves the script at its length, as transformers' processor does.
    """

    def __init__(self, model, compiled: bool = False, pad_to: int | None = None):
        self.model, self.compiled, self.pad_to, self.device = model, compiled, pad_to, model.device
        kind = "static cache, compiled" if compiled else "eager"
        self.name = f"transformers {kind}" + (f", text padded to {pad_to}" if pad_to else "")

    @torch.no_grad()
    def run(self, text: torch.Tensor, batch: int, steps: int) -> Timing:
        """As `Ours.run`."""
        from transformers import StoppingCriteria, StoppingCriteriaList

        decoder, delay = self.model.config.decoder_config, max(self.model.config.delay_pattern)
        length = self.pad_to or len(text)
        ids = torch.zeros((batch, length), dtype=torch.long, device=self.device)
        mask = torch.zeros_like(ids)
        ids[:, : len(text)], mask[:, : len(text)] = text, 1
        grid = torch.full((batch, 1 + delay, decoder.num_channels), decoder.pad_token_id, device=self.device)
        for channel, lag in enumerate(self.model.config.delay_pattern):
            grid[:, : 1 + lag, channel] = decoder.bos_token_id
        stamps, device = [time.perf_counter()], self.device

        class Stamp(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                synchronize(device)
                stamps.append(time.perf_counter())
                return torch.full((input_ids.shape[0],), len(stamps) > 1 + steps, device=device)

        self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            decoder_input_ids=grid,
            decoder_attention_mask=torch.ones(grid.shape[:2], dtype=torch.long, device=device),
            max_new_tokens=PARAMS.max_tokens - 1 - delay,
            guidance_scale=PARAMS.cfg_scale,
            temperature=PARAMS.temperature,
            top_p=PARAMS.top_p,
            top_k=PARAMS.cfg_filter_top_k,
            do_sample=True,
            pad_token_id=decoder.pad_token_id,
            eos_token_id=decoder.eos_token_id,
            bos_token_id=decoder.bos_token_id,
            decoder_start_token_id=decoder.bos_token_id,
            stopping_criteria=StoppingCriteriaList([Stamp()]),
            **self._cache_settings(),
        )
        return timing_of(stamps)

    def _cache_settings(self) -> dict:
        if not self.compiled:
            return {}
        from transformers import CompileConfig

        compile_config = CompileConfig()
        compile_config._compile_all_devices = True  # otherwise it compiles on accelerators only
        return {"cache_implementation": "static", "compile_config": compile_config}


def transformers_model(config: DiaConfig, weights: dict[str, torch.Tensor]):
    """transformers' model over the memory of our weights; only the norms are copied, in the model's dtype."""
    from transformers import DiaConfig as TransformersConfig
    from transformers import DiaForConditionalGeneration

    head = weights["decoder.head.weight"]
    tensors = transformers_tensors(weights, config)
    tensors = {name: tensor.to(head.dtype) for name, tensor in tensors.items()}
    with torch.device("meta"):
        model = DiaForConditionalGeneration(TransformersConfig.from_dict(config.to_dict()))
    model.load_state_dict(tensors, assign=True)
    # Buffers that no checkpoint holds stay on the meta device and are made here.
    for part, sizes in ((model.model.encoder, config.encoder), (model.model.decoder, config.decoder)):
        exponent = torch.arange(0, sizes.head_dim, 2, dtype=torch.float32, device=head.device) / sizes.head_dim
        part.rotary_emb.inv_freq = part.rotary_emb.original_inv_freq = sizes.rope_theta**-exponent
    decoder = config.decoder
    model.model.decoder.embeddings.offsets = torch.arange(decoder.num_channels, device=head.device) * decoder.vocab_size
    return model.eval()


def timing_of(stamps: list[float]) -> Timing:
    """From the start and the end of each step."""
    spans = [end - start for start, end in pairwise(stamps)]
    return Timing(spans[0], spans[1:])
