"""What quantizing does to a model's choices, teacher-forced, against the same model in float32.

    python -m benchmarks.fidelity [--model MODEL] [--rows N] [--modules] [--json FILE] [--png FILE]

Every variant is fed the same rows, which the float32 model drew, and its logits are compared row by row and channel by
channel: KL divergence of the distributions (float32 to variant), agreement of the likeliest id, cosine of the logits,
and the share of draws for which the sampler is left with the very same ids. bfloat16 stands beside the recipes: what it
loses is the noise floor that everyone accepts. `--modules` quantizes one kind of matrix at a time.

Without real weights, `synthetic:heavy` stands in: Student-t entries with four degrees of freedom, in rows whose sizes
differ by a log-normal factor. The largest entry of a row of 2048 is 8 deviations out, of one row in a hundred 21,
against 3.6 for Gaussian rows, and scales by the largest entry lose the more the further out it is: this flatters
neither format.
Queries and keys make attention logits of deviation 2, so that errors in them move its weights.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator

import torch

from dia_engine.kernels.cpu.onednn import pack_for_device
from dia_engine.kernels.quantized import FORMATS, Weight
from dia_engine.kernels.sample import filter_probabilities
from dia_engine.model.config import DecoderConfig, DiaConfig, EncoderConfig
from dia_engine.model.dia import DiaModel
from dia_engine.model.shapes import parameter_shapes
from dia_engine.runtime.request import Request
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.text.tokenizer import encode_text
from dia_engine.weights.recipes import RECIPES, Recipe, chosen_formats
from dia_engine.weights.source import resolve_model

from .batch import start_batch
from .command import add_json_argument, at_least, output_file, run, write_report
from .plot import draw_divergence, require_matplotlib
from .setting import SCRIPT

HEAVY = "synthetic:heavy"
# Dia's widths over fewer layers and a narrower MLP, so that float32 and four variants run on a CPU in minutes.
HEAVY_CONFIG = DiaConfig(
    encoder=EncoderConfig(num_hidden_layers=2),
    decoder=DecoderConfig(num_hidden_layers=6, intermediate_size=4096),
)
MODULES = ("self_attn.qkv", "self_attn.o", "cross_attn.q", "cross_attn.kv", "cross_attn.o", "mlp.gate_up", "mlp.down")
MEASURES = ("kl", "agreement", "cosine", "supports")


def heavy_weights(config: DiaConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights with heavy-tailed rows, as the module says."""
    weights = {}
    generator = torch.Generator().manual_seed(seed)
    for name, shape in parameter_shapes(config).items():
        if name.endswith("norm.weight"):
            weights[name] = torch.empty(shape).log_normal_(0, 0.2, generator=generator)
            continue
        values = torch.randn(shape, generator=generator)
        if "embedding" in name:
            weights[name] = values / math.sqrt(config.decoder.num_channels)
            continue
        # Student's t: a Gaussian over the root of a chi-squared with 4 degrees of freedom, its deviation sqrt(2).
        chi = sum(torch.randn(shape, generator=generator).square_() for _ in range(4)) / 4
        values = values / chi.sqrt_() / math.sqrt(2)
        row = torch.empty(shape[0], 1).log_normal_(0, 0.4, generator=generator)
        weights[name] = values * row * _deviation(name, shape, config)
    return weights


def _deviation(name: str, shape: tuple[int, ...], config: DiaConfig) -> float:
    deviation = shape[1] ** -0.5
    if name.endswith("head.weight"):
        return 2.0 * deviation  # logits of a model that has preferences
    if ".qkv." in name or ".cross_attn.q." in name or ".cross_attn.kv." in name:
        return math.sqrt(2.0) * config.decoder.head_dim**-0.25 * deviation
    return deviation


class Variant:
    """A model in one precision, and how its logits differ from those recorded."""

    def __init__(self, config: DiaConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype, recipe: Recipe):
        formats = chosen_formats(recipe, config) if recipe else {}
        converted = {name: _converted(name, weight, dtype, formats.get(name)) for name, weight in weights.items()}
        self.bytes = sum(weight.nbytes for weight in converted.values())
        self.model = DiaModel(config, {name: pack_for_device(weight) for name, weight in converted.items()})

    def logits(self, text: torch.Tensor, rows: torch.Tensor | None, count: int, seed: int) -> Iterator[torch.Tensor]:
        """Logits [2, C, V] of `count` rows of one request, which goes on with its own draws, or with the given rows."""
        params = ResolvedSamplingParams(max_tokens=count + self.model.config.max_delay + 2)
        no_prompt = torch.zeros((0, self.model.config.decoder.num_channels), dtype=torch.int64)
        self.state = start_batch(self.model, [Request(text, no_prompt, params, seed)])
        for _ in range(count):
            if rows is not None:
                self.state.grid[0, : len(rows)] = rows.to(self.state.grid.device)
                self.model.embed_current_tokens(self.state)
            yield self.model.logits(self.state).cpu()
            self.model.step(self.state)


def _converted(name: str, weight: torch.Tensor, dtype: torch.dtype, format: str | None) -> Weight:
    if format is not None:
        return FORMATS[format].quantize(weight, dtype)
    return weight if name.endswith("norm.weight") else weight.to(dtype)


def compare(truth: torch.Tensor, found: torch.Tensor, params: ResolvedSamplingParams, config: DiaConfig) -> dict:
    """Measures of one row, each [C]: logits [2, C, V] of float32 and of a variant."""
    exact, other = (logits[1].double().log_softmax(dim=-1) for logits in (truth, found))
    supports = [_probabilities(logits, params, config) > 0 for logits in (truth, found)]
    return {
        "kl": (exact.exp() * (exact - other)).sum(dim=-1),
        "agreement": (exact.argmax(dim=-1) == other.argmax(dim=-1)).double(),
        "cosine": torch.cosine_similarity(truth[1].double(), found[1].double(), dim=-1),
        "supports": (supports[0] == supports[1]).all(dim=-1).double(),
    }


def _probabilities(logits: torch.Tensor, params: ResolvedSamplingParams, config: DiaConfig) -> torch.Tensor:
    values = (torch.tensor([value]) for value in (params.cfg_scale, params.temperature, params.top_p))
    top_k = torch.tensor([min(params.cfg_filter_top_k, config.decoder.vocab_size)])
    return filter_probabilities(logits, *values, top_k, config.eos_token_id)[0]


@torch.no_grad()
def measure(
    config: DiaConfig, weights: dict[str, torch.Tensor], variants: dict[str, tuple], rows: int
) -> Iterator[dict]:
    """Figures of each variant (dtype, recipe) by name, in order."""
    params, text = ResolvedSamplingParams(), encode_text(SCRIPT, config.encoder.max_position_embeddings)
    exact = Variant(config, weights, torch.float32, {})
    truths = list(exact.logits(text, None, rows, seed=1))
    drawn = exact.state.grid[0].cpu()
    for name, (dtype, recipe) in variants.items():
        print(f"measuring {name} ...", file=sys.stderr)
        variant = Variant(config, weights, dtype, recipe)
        pairs = zip(truths, variant.logits(text, drawn, rows, 1), strict=True)
        found = [compare(truth, logits, params, config) for truth, logits in pairs]
        channels = {key: torch.stack([row[key] for row in found]).mean(dim=0).tolist() for key in MEASURES}
        means = {key: statistics.fmean(values) for key, values in channels.items()}
        yield {"name": name, "megabytes": variant.bytes / 1e6, **means, "channels": channels}


def recipes() -> dict[str, tuple]:
    """bfloat16, then the recipes over it."""
    return {"bfloat16": (torch.bfloat16, {}), **{name: (torch.bfloat16, recipe) for name, recipe in RECIPES.items()}}


def modules() -> dict[str, tuple]:
    """One kind of matrix at a time, the rest in float32, so that nothing but that kind is rounded."""
    return {
        f"{module} in {format}": (torch.float32, {f"*.{module}.*": format}) for module in MODULES for format in FORMATS
    }


def table(results: list[dict]) -> str:
    """The means over rows and channels, and KL over the first variant's."""
    floor = results[0]["kl"]
    lines = [f"{'':28}{'MB':>9}{'KL':>12}{'x first':>9}{'top-1':>9}{'cosine':>12}{'supports':>10}"]
    for row in results:
        lines.append(
            f"{row['name']:28}{row['megabytes']:>9,.1f}{row['kl']:>12.2e}{row['kl'] / floor:>9.2f}"
            f"{row['agreement']:>9.2%}{row['cosine']:>12.7f}{row['supports']:>10.2%}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=HEAVY, help="hub id, folder, talker or synthetic:heavy (%(default)s)")
    parser.add_argument("--rows", type=at_least(1), default=40, help="rows that are compared (%(default)s)")
    parser.add_argument("--modules", action="store_true", help="add one variant per kind of matrix and format")
    add_json_argument(parser)
    parser.add_argument("--png", metavar="FILE", type=output_file, help="draw KL by channel there")
    options = parser.parse_args(arguments)
    if options.png:
        require_matplotlib(parser)
    if options.model == HEAVY:
        config = HEAVY_CONFIG
        weights = heavy_weights(config)
    else:
        source = resolve_model(options.model)
        config, weights = source.config, dict(source.stream_weights(dtype=torch.float32, device="cpu"))
    report = {"model": options.model, "rows": options.rows, "torch": torch.__version__, "recipes": []}
    for row in measure(config, weights, recipes(), options.rows):
        report["recipes"].append(row)
        write_report(options.json, report)
    print(f"{options.model}, {options.rows} rows x {config.decoder.num_channels} channels against float32\n")
    print(table(report["recipes"]))
    if options.modules:
        report["modules"] = []
        for row in measure(config, weights, modules(), options.rows):
            report["modules"] = sorted([*report["modules"], row], key=lambda row: -row["kl"])
            write_report(options.json, report)
        print("\n" + table(report["modules"]))
    if options.png:
        draw_divergence(report, options.png)
    return 0


if __name__ == "__main__":
    run(main)
