"""Trains the language part: `python -m tools.talker.model`, once `python -m tools.talker.codec` has been run. It goes
on where it was stopped."""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import DacModel, DiaConfig, DiaForConditionalGeneration

from .codec import STATE as CODEC_STATE
from .codec import new_model as new_codec
from .corpus import Example, held_out_examples, training_examples
from .data import WORK
from .domain import talking_scripts, training_scripts
from .progress import Progress, cosine, descend, load_state, pick_device, save_state

EOS, PAD, BOS = 256, 257, 258
DELAY = [0, 1, 2, 3]
CONFIG = dict(
    encoder_config=dict(
        num_hidden_layers=3, hidden_size=128, intermediate_size=384, num_attention_heads=4, num_key_value_heads=4,
        head_dim=32, max_position_embeddings=256,
    ),
    decoder_config=dict(
        num_hidden_layers=4, hidden_size=192, intermediate_size=512, num_attention_heads=6, num_key_value_heads=2,
        head_dim=32, cross_num_attention_heads=6, cross_num_key_value_heads=6, cross_head_dim=32,
        cross_hidden_size=128, num_channels=4, vocab_size=260, max_position_embeddings=512, bos_token_id=BOS,
        eos_token_id=EOS, pad_token_id=PAD,
    ),
    delay_pattern=DELAY,
)  # fmt: skip
ROWS = 2400  # decoder rows per batch, padding included
RATE = 2e-3
CHANNEL_WEIGHTS = (2.0, 1.0, 1.0, 1.0)  # the first says most of what is said, and when it ends
NO_TEXT = 0.1  # share of scripts whose text is blanked, for guidance
NOISE = 0.05  # share of codes replaced, so that the model learns to go on after a slip
GUIDED_LAYERS, GUIDED_HEADS = (1, 2), 2  # which cross-attention is shown the words
STATE = "model.pt"


@dataclass(frozen=True)
class Stage:
    """A stretch of training: on which scripts, between which steps, and how much of `RATE` at its height."""

    name: str
    make: Callable
    scripts: int
    begin: int
    end: int
    rate: float
    warm: int


STAGES = (
    Stage("words", training_scripts, 7000, 0, 2700, 1.0, 200),
    Stage("talk", talking_scripts, 3500, 2700, 3400, 0.4, 30),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.talker.model", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args(arguments)
    for stage in STAGES:
        train(options.work, stage)


def train(work: Path, stage: Stage) -> None:
    """Train up to the end of a stage into `work/model.pt`, and every 500 steps the averaged weights into `work/dia`."""
    if load_state(work / STATE) >= stage.end:
        return
    device = pick_device()
    torch.manual_seed(0)
    codec = load_codec(work).to(device)
    examples = training_examples(work, codec, stage.name, stage.make, stage.scripts)
    held_out = held_out_examples(work, codec)
    model = new_model(codec.cpu()).to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    watch = WordAttention(model)
    optimizer = torch.optim.AdamW(_groups(model), betas=(0.9, 0.98), weight_decay=0.03)
    begin = load_state(work / STATE, model=model, average=average, optimizer=optimizer)
    batches = Batches(examples)
    with Progress(stage.name, begin, stage.end) as progress:
        for step in range(begin, stage.end):
            batch = {name: part.to(device) for name, part in batches[step].items()}
            with torch.autocast(device.type, torch.bfloat16):
                losses = channel_losses(model, batch)
            guide = watch.loss(batch)
            loss = (losses * losses.new_tensor(CHANNEL_WEIGHTS)).sum() / sum(CHANNEL_WEIGHTS)
            within = cosine(step - stage.begin, stage.end - stage.begin, warm=stage.warm, floor=0.01)
            descend(optimizer, model, loss + 0.3 * guide, stage.rate * within)
            _average(average, model, min(0.998, step / (step + 100)))
            progress.update(loss=loss.item(), first=losses[0].item(), words=guide.item())
            if step % 500 == 499 or step + 1 == stage.end:
                save_state(work / STATE, step + 1, model=model, average=average, optimizer=optimizer)
                average.save_pretrained(work / "dia")
                print(f"\nstep {step + 1}, held out: {evaluate(average, held_out, device)}", flush=True)


def load_codec(work: Path) -> DacModel:
    """The codec as the joint training left it: its codes are final, its decoder may still be learning."""
    codec = new_codec()
    if not load_state(work / CODEC_STATE, model=codec):
        raise FileNotFoundError(f"no {work / CODEC_STATE}; run python -m tools.talker.codec first")
    return codec.eval()


def new_model(codec: DacModel) -> DiaForConditionalGeneration:
    """A model of random weights, but for the embeddings of codes: they begin as what the codec takes the codes for,
    seen from random directions, so that codes that sound alike are alike from the start."""
    model = DiaForConditionalGeneration(DiaConfig(**CONFIG))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=_deviation(name, parameter))
    width = CONFIG["decoder_config"]["hidden_size"]
    table = model.model.decoder.embeddings.embed.weight.data.view(len(DELAY), -1, width)
    with torch.no_grad():
        layers = codec.quantizer.quantizers
        vectors = [layer.codebook.weight @ layer.out_proj.weight[..., 0].T for layer in layers]
        size = sum((each - each.mean(0)).square().mean() for each in vectors).sqrt()
        view = torch.randn(vectors[0].shape[1], width) / vectors[0].shape[1] ** 0.5
        for rows, each in zip(table, vectors, strict=True):
            rows[: len(each)] += (each - each.mean(0)) / size @ view
    return model


def _deviation(name: str, parameter: torch.Tensor) -> float:
    if name.endswith(("embedding.weight", "embed.weight")):
        return 1.0 if "encoder" in name else 0.2
    deviation = parameter.shape[1] ** -0.5
    if "q_proj" in name or "k_proj" in name:  # Dia does not divide queries times keys by the root of their width
        return deviation * 32**-0.25
    if "o_proj" in name or "down_proj" in name:
        return deviation * 0.4
    return deviation


def _groups(model: DiaForConditionalGeneration) -> list[dict]:
    """Queries and keys learn more slowly: without a scale their products grow with the square of what is learnt."""
    named = list(model.named_parameters())
    sharp = [parameter for name, parameter in named if "q_proj" in name or "k_proj" in name]
    plain = [parameter for name, parameter in named if not ("q_proj" in name or "k_proj" in name)]
    return [dict(params=plain, rate=RATE), dict(params=sharp, rate=0.4 * RATE)]


class Batches:
    """Batches of like length in random order; the same one for the same step."""

    def __init__(self, examples: list[Example]):
        self._examples = sorted(examples, key=lambda example: len(example.codes))
        self._slices, end = [], len(examples)
        while end > 0:
            rows = len(self._examples[end - 1].codes) + DELAY[-1] + 1
            start = max(0, end - ROWS // rows)
            self._slices.append(slice(start, end))
            end = start

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        epoch, index = divmod(step, len(self._slices))
        order = np.random.default_rng([5, epoch]).permutation(len(self._slices))
        return collate(self._examples[self._slices[order[index]]], np.random.default_rng([6, step]))


def collate(examples: list[Example], rng: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
    """A batch: text and mask [B, S], inputs and targets [B, R, C], words [B, R] and letters [B, S].

    Targets that are not learnt are -100: what the decoder is forced to write anyway. With a generator some texts are
    blanked and some input codes replaced.
    """
    size = max(len(example.text) for example in examples)
    rows = max(len(example.codes) for example in examples) + DELAY[-1] + 1
    text, mask, letters = (np.zeros((len(examples), size), np.int64) for _ in range(3))
    inputs = np.full((len(examples), rows, len(DELAY)), PAD)
    targets = np.full(inputs.shape, -100)
    words = np.zeros(inputs.shape[:2], np.int64)
    for index, example in enumerate(examples):
        length, frames = len(example.text), len(example.codes)
        text[index, :length], mask[index, :length], letters[index, :length] = example.text, 1, example.letters
        words[index, :frames] = example.words
        codes = example.codes
        if rng is not None:
            if rng.random() < NO_TEXT:
                text[index], words[index] = 0, 0
            codes = np.where(rng.random(codes.shape) < NOISE, rng.integers(0, EOS, codes.shape), codes)
        for channel, delay in enumerate(DELAY):
            inputs[index, : delay + 1, channel] = BOS
            inputs[index, delay + 1 : delay + 1 + frames, channel] = codes[: rows - delay - 1, channel]
            if delay + 1 + frames < rows:
                inputs[index, delay + 1 + frames, channel] = EOS
            targets[index, delay : delay + frames, channel] = example.codes[:, channel]
        targets[index, frames, 0] = EOS
    parts = dict(text=text, mask=mask, letters=letters, inputs=inputs, targets=targets, words=words)
    return {name: torch.from_numpy(part) for name, part in parts.items()}


def channel_losses(model: DiaForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of each channel [C]."""
    hidden = model.model(
        input_ids=batch["text"], attention_mask=batch["mask"], decoder_input_ids=batch["inputs"], use_cache=False
    ).last_hidden_state
    logits = model.logits_dense(hidden).view(*hidden.shape[:2], len(DELAY), -1).float()
    targets = batch["targets"]
    losses = functional.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none", ignore_index=-100)
    return losses.view_as(targets).sum((0, 1)) / (targets >= 0).sum((0, 1))


class WordAttention:
    """Shows a few heads of the cross-attention which letters each frame says: flite tells when it says each word.

    Without it, finding the way through the text takes most of the training.
    """

    def __init__(self, model: DiaForConditionalGeneration):
        self._seen: dict[tuple[int, str], torch.Tensor] = {}
        for index in GUIDED_LAYERS:
            attention = model.model.decoder.layers[index].cross_attention
            attention.q_proj.register_forward_hook(self._keep(index, "q"))
            attention.k_proj.register_forward_hook(self._keep(index, "k"))

    def _keep(self, index: int, name: str):
        def hook(module, arguments, output):
            self._seen[index, name] = output

        return hook

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Minus the logarithm of the attention on the letters of the word, mean over the frames of words."""
        of_word = batch["letters"][:, None] == batch["words"][..., None]  # [B, R, S]
        spoken = (batch["words"] > 0)[:, None].expand(-1, GUIDED_HEADS, -1)
        absent = (batch["mask"] == 0)[:, None, None]
        total = 0.0
        for index in GUIDED_LAYERS:
            q, k = (self._heads(self._seen[index, name]) for name in "qk")
            weights = (q @ k.transpose(2, 3)).float().masked_fill(absent, -torch.inf).softmax(-1)
            mass = (weights * of_word[:, None]).sum(-1)
            total = total - (mass + 1e-4).log()[spoken].mean()
        return total / len(GUIDED_LAYERS)

    @staticmethod
    def _heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, 32))[:, :, :GUIDED_HEADS].transpose(1, 2)


@torch.no_grad()
def evaluate(model: DiaForConditionalGeneration, examples: list[Example], device: torch.device) -> str:
    """Cross-entropy of each channel over the held-out scripts."""
    total = torch.zeros(len(DELAY))
    for start in range(0, len(examples), 25):
        batch = {name: part.to(device) for name, part in collate(examples[start : start + 25]).items()}
        total += channel_losses(model, batch).cpu() * len(examples[start : start + 25]) / len(examples)
    return " ".join(f"{value:.3f}" for value in total.tolist())


@torch.no_grad()
def _average(average, model, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


if __name__ == "__main__":
    main()
