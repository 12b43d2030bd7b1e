"""Models of random weights, made without disk or network: `synthetic:tiny` to try the engine, `synthetic:full` to
measure it at Dia's true size. They make noise, not speech."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import torch

from ..codec import Codec, CodecConfig
from ..kernels.cpu.pages import empty_weight
from ..kernels.quantized import FORMATS, Weight
from ..model.config import DecoderConfig, DiaConfig, EncoderConfig
from ..model.shapes import parameter_shapes
from .recipes import Recipe, chosen_formats

PREFIX = "synthetic:"
MOST_THREADS = 8
Item = TypeVar("Item")
Made = TypeVar("Made")
CONFIGS = {
    "tiny": DiaConfig(
        encoder=EncoderConfig(
            num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=4,
            head_dim=16,
        ),
        decoder=DecoderConfig(
            num_hidden_layers=3, hidden_size=96, intermediate_size=192, num_attention_heads=6, num_key_value_heads=2,
            head_dim=16, cross_num_attention_heads=4, cross_num_key_value_heads=4, cross_head_dim=16,
            cross_hidden_size=64,
        ),
    ),
    "full": DiaConfig(),
}  # fmt: skip


def synthetic_config(model: str, revision: str | None = None) -> DiaConfig:
    """The sizes behind a `synthetic:` name.

    Raises:
        ValueError: no such synthetic model, or a revision of one.
    """
    if revision is not None:
        raise ValueError(f"revision {revision!r} has no meaning for {model}")
    name = model.removeprefix(PREFIX)
    if name not in CONFIGS:
        raise ValueError(f"no synthetic model {name!r}; there are {', '.join(PREFIX + known for known in CONFIGS)}")
    return CONFIGS[name]


def random_weights(
    config: DiaConfig, *, dtype: torch.dtype, device: torch.device | str, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Weights named as in `parameter_shapes`: the same values for the same seed, rounded to `dtype`."""
    return {name: _in_dtype(name, values, dtype) for name, values in _random_values(config, device, seed)}


def stream_random_weights(
    config: DiaConfig, *, dtype: torch.dtype, device: torch.device | str, seed: int = 0, recipe: Recipe | None = None
) -> Iterator[tuple[str, Weight]]:
    """The items of `random_weights` one by one, those that the recipe names quantized."""
    formats = chosen_formats(recipe, config) if recipe else {}
    for name, values in _random_values(config, device, seed):
        yield (
            name,
            FORMATS[formats[name]].quantize(values, dtype) if name in formats else _in_dtype(name, values, dtype),
        )


def _in_dtype(name: str, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if name.endswith("norm.weight") or values.dtype == dtype:
        return values
    return empty_weight(values.shape, dtype, values.device).copy_(values)


def _random_values(config: DiaConfig, device: torch.device | str, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and float32 values of each weight.

    Uniform, with the deviation 1/sqrt(fan in) that keeps the residual stream of unit size, and queries and keys so
    small that attention (which Dia does not scale) has logits of unit deviation.
    """

    def made(numbered: tuple[int, tuple[str, tuple[int, ...]]]) -> tuple[str, torch.Tensor]:
        index, (name, shape) = numbered
        values = empty_weight(shape, torch.float32, "cpu")
        if name.endswith("norm.weight"):
            return name, values.fill_(1.0)
        generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + index)
        bound = math.sqrt(3.0) * _deviation(name, shape, config)
        return name, values.uniform_(-bound, bound, generator=generator)

    # One thread of torch makes random numbers: the full size takes ten seconds.
    threads = min(MOST_THREADS, torch.get_num_threads())
    for name, values in _ahead(made, enumerate(parameter_shapes(config).items()), threads):
        yield name, values.to(device)


def _ahead(function: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """What `function` makes of each item, in their order; the next `threads` are made meanwhile."""
    left = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        coming = deque(pool.submit(function, item) for item in islice(left, threads))
        while coming:
            result = coming.popleft().result()
            coming.extend(pool.submit(function, item) for item in islice(left, 1))
            yield result


def _deviation(name: str, shape: tuple[int, ...], config: DiaConfig) -> float:
    if "embedding" in name:
        return 1.0 / math.sqrt(config.decoder.num_channels) if name.startswith("decoder") else 1.0
    deviation = 1.0 / math.sqrt(shape[1])
    if ".qkv." in name or ".cross_attn.q." in name or ".cross_attn.kv." in name:
        decoder = config.decoder
        own = decoder.head_dim if name.startswith("decoder") else config.encoder.head_dim
        head_dim = decoder.cross_head_dim if ".cross_attn." in name else own
        deviation *= head_dim**-0.25
    return deviation


def synthetic_codec(
    config: DiaConfig, model: str, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Codec:
    """A codec of random weights for a synthetic model."""
    return Codec.from_config(synthetic_codec_config(config, model), device=device, dtype=dtype)


def synthetic_codec_config(config: DiaConfig, model: str) -> CodecConfig:
    """The true codec's sizes for `full`, narrow ones for `tiny`."""
    sizes = CodecConfig(n_codebooks=config.decoder.num_channels, codebook_size=config.eos_token_id)
    return replace(sizes, encoder_hidden_size=4, decoder_hidden_size=64) if model.endswith("tiny") else sizes
