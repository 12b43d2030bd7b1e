"""Trains the codec: `python -m tools.talker.codec`, then `python -m tools.talker.codec --decoder`.

The latter may run while the language part trains.

The first run trains all of it. The second leaves encoder and quantizer, and so every code, as they are, and gives the
decoder alone more time. Stopped runs go on where they were.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import DacConfig, DacModel

from .data import WORK, load_speech
from .flite import SAMPLE_RATE, Spoken
from .progress import Progress, cosine, descend, load_state, pick_device, save_state

CONFIG = dict(
    encoder_hidden_size=16, decoder_hidden_size=256, downsampling_ratios=[8, 4, 4, 4], n_codebooks=4,
    codebook_size=256, codebook_dim=8, sampling_rate=SAMPLE_RATE,
)  # fmt: skip
STEPS, DECODER_STEPS = 2600, 4000
FREE_STEPS = 300  # without the quantizer, which is then laid into what the encoder has found
BATCH, LENGTH = 8, 12288
RATE = 7e-4
STFT_SIZES = {2048: 80, 1024: 80, 512: 64, 256: 40}  # and mel bands
GAINS = {"encoder.conv1.weight": 10.0, "decoder.conv2.weight": 0.02}  # speech has a deviation of 0.08
STATE = "codec.pt"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.talker.codec", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--decoder", action="store_true", help="go on with the decoder alone, codes unchanged")
    parser.add_argument("--steps", type=int, help=f"default {STEPS}, with --decoder {DECODER_STEPS}")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    if options.decoder:
        train_decoder(options.work, options.steps or DECODER_STEPS, options.compile)
    else:
        train(options.work, options.steps or STEPS, options.compile)


def train(work: Path, steps: int, compiled: bool) -> None:
    """Train encoder, quantizer and decoder together, into `work/codec.pt`."""
    device = pick_device()
    torch.manual_seed(0)
    model = new_model().to(device)
    optimizer = torch.optim.AdamW([dict(params=model.parameters(), rate=RATE)], betas=(0.9, 0.99), weight_decay=1e-3)
    usage = Usage(model.config).to(device)
    begin = load_state(work / STATE, model=model, optimizer=optimizer, usage=usage)
    encoder, decoder = _callables(model, compiled)
    sounds, distance = list(load_speech(work).values()), SpectralDistance(device)
    with Progress("codec", begin, steps) as progress:
        for step in range(begin, steps):
            sound = batch_of(sounds, step).to(device)
            if step == FREE_STEPS:
                lay_codebooks(model, encoder, sounds, device)
            latent, extra = encoder(sound), 0.0
            if step >= FREE_STEPS:
                latent, codes, _, commitment, codebook = model.quantizer(latent)
                extra = 0.3 * (codebook + 0.25 * commitment).mean()
                usage.add(codes)
            loss = distance(decoder(latent)[:, 0], sound[:, 0])
            descend(optimizer, model, loss + extra, cosine(step, steps, warm=200, floor=0.1))
            if usage.is_known and step % 50 == 0 and step < 0.8 * steps:
                revive(model, encoder(sound).detach(), usage.counts)
            hold_constant_dimension(model)
            progress.update(loss=loss.item())
            if step % 200 == 199 or step + 1 == steps:
                save_state(work / STATE, step + 1, model=model, optimizer=optimizer, usage=usage)
    model.save_pretrained(work / "dac")


def train_decoder(work: Path, steps: int, compiled: bool) -> None:
    """Train the decoder alone, from `work/codec.pt` into `work/decoder.pt` and, every 200 steps, `work/dac`."""
    device = pick_device()
    model = new_model().to(device)
    if not load_state(work / STATE, model=model):
        raise FileNotFoundError(f"no {work / STATE}; run python -m tools.talker.codec first")
    decoder = model.decoder
    group = dict(params=decoder.parameters(), rate=0.6 * RATE)
    optimizer = torch.optim.AdamW([group], betas=(0.9, 0.99), weight_decay=1e-3)
    begin = load_state(work / "decoder.pt", model=decoder, optimizer=optimizer)
    encode, decode = _callables(model, compiled)
    sounds, distance = list(load_speech(work).values()), SpectralDistance(device)
    model.eval()
    with Progress("decoder", begin, steps) as progress:
        for step in range(begin, steps):
            sound = batch_of(sounds, STEPS + step).to(device)
            with torch.no_grad():
                latent = model.quantizer(encode(sound))[0]
            loss = distance(decode(latent)[:, 0], sound[:, 0])
            descend(optimizer, decoder, loss, cosine(step, steps, warm=50, floor=0.02))
            progress.update(loss=loss.item())
            if step % 200 == 199 or step + 1 == steps:
                save_state(work / "decoder.pt", step + 1, model=decoder, optimizer=optimizer)
                model.save_pretrained(work / "dac")


def new_model() -> DacModel:
    """A codec of random weights that bring speech to unit size, where Snake bends it, and keep it there."""
    model = DacModel(DacConfig(**CONFIG))
    for name, parameter in model.named_parameters():
        if not name.startswith("quantizer") and name.endswith("weight"):
            in_residual_unit = "res_unit" in name and ".conv2." in name
            fan_in = parameter[0].numel() if "conv_t1" not in name else 2 * parameter.shape[0]
            scale = GAINS.get(name, 0.3 if in_residual_unit else 1.0)
            torch.nn.init.normal_(parameter, std=scale / math.sqrt(fan_in))
    return model


def batch_of(sounds: list[Spoken], step: int) -> torch.Tensor:
    """Pieces of sentences [BATCH, 1, LENGTH] with some silence about them; the same ones for the same step."""
    rng = np.random.default_rng([7, step])
    batch = np.zeros((BATCH, 1, LENGTH), np.float32)
    for row in batch[:, 0]:
        sound = sounds[rng.integers(len(sounds))].sound
        start = int(rng.integers(-LENGTH // 4, max(1, len(sound) - 3 * LENGTH // 4)))
        piece = sound[max(0, start) : start + LENGTH]
        row[max(0, -start) : max(0, -start) + len(piece)] = piece
    return torch.from_numpy(batch)


class Usage(torch.nn.Module):
    """How often the codebooks' entries are used: counts [codebooks, entries], where recent steps weigh most."""

    def __init__(self, config: DacConfig):
        super().__init__()
        self.register_buffer("counts", torch.zeros(config.n_codebooks, config.codebook_size))
        self.register_buffer("steps", torch.tensor(0))

    def add(self, codes: torch.Tensor) -> None:
        """Count a step's codes [batch, codebooks, frames]."""
        self.counts.mul_(0.98).add_(_counts(codes, self.counts.shape[1]))
        self.steps += 1

    @property
    def is_known(self) -> bool:
        """Whether enough steps are counted; a few would leave most entries unused."""
        return bool(self.steps > 50)


class SpectralDistance:
    """How far two sounds lie apart: logarithms of mel spectra, and relative magnitudes, at four window sizes.

    There is no term on the waveform: at one kbit/s its phase cannot be kept.
    """

    def __init__(self, device: torch.device):
        self.windows = [torch.hann_window(size, device=device) for size in STFT_SIZES]
        self.mels = [mel_filters(size, bands).to(device) for size, bands in STFT_SIZES.items()]

    def __call__(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        total = 0.0
        for window, mel in zip(self.windows, self.mels, strict=True):
            a, b = self._magnitude(ours, window), self._magnitude(theirs, window)
            total = total + functional.l1_loss((a @ mel + 1e-3).log(), (b @ mel + 1e-3).log())
            total = total + 0.5 * (a - b).norm() / b.norm()
        return total / len(self.windows)

    @staticmethod
    def _magnitude(sound: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        size = len(window)
        spectrum = torch.stft(sound.float(), size, size // 4, window=window, return_complex=True)
        return torch.view_as_real(spectrum).pow(2).sum(-1).clamp(min=1e-9).sqrt().transpose(1, 2)


def mel_filters(size: int, bands: int) -> torch.Tensor:
    """Triangles [size / 2 + 1, bands], evenly spaced on the mel scale, each of sum one."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    bins = torch.linspace(0, SAMPLE_RATE / 2, size // 2 + 1)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    return filters / filters.sum(0).clamp(min=1e-6)


@torch.no_grad()
def lay_codebooks(model: DacModel, encoder, sounds: list[Spoken], device: torch.device) -> None:
    """Lay each codebook into what its predecessors leave of the latents: their main axes, and k-means along these.

    transformers looks entries up by cosine, which loses a frame's gain. One of the eight dimensions is therefore held
    at a constant: beside it the other seven are small, and the nearest by angle is the nearest by distance.
    """
    latents = [encoder(batch_of(sounds, 10**6 + index).to(device)) for index in range(24)]
    residual = torch.cat(latents).transpose(1, 2).flatten(0, 1)
    for layer in model.quantizer.quantizers:
        mean = residual.mean(0)
        axes = torch.linalg.svd(residual - mean, full_matrices=False).Vh[: layer.codebook_dim - 1]
        scale = 4.0 * ((residual - mean) @ axes.T).norm(dim=1).square().mean().sqrt()
        layer.in_proj.weight.zero_()[:-1, :, 0] = axes / scale
        layer.in_proj.bias.zero_()[:-1] = -(axes @ mean) / scale
        layer.out_proj.weight.zero_()[:, :-1, 0] = axes.T * scale
        layer.out_proj.bias.copy_(mean)
        layer.in_proj.bias[-1] = 1.0
        points = functional.linear(residual, layer.in_proj.weight[..., 0], layer.in_proj.bias)
        layer.codebook.weight.copy_(_means(points, layer.codebook.num_embeddings))
        quantized = layer.decode_latents(points.T[None])[0]
        residual = residual - layer.out_proj(quantized)[0].T


def _means(points: torch.Tensor, count: int) -> torch.Tensor:
    """k-means: `count` centres [count, dimensions] of points [N, dimensions]."""
    centres = points[torch.randperm(len(points), device=points.device)[:count]].clone()
    for _ in range(20):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        lost = points[torch.randperm(len(points), device=points.device)[:count]]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), lost)
    return centres


def hold_constant_dimension(model: DacModel) -> None:
    with torch.no_grad():
        for layer in model.quantizer.quantizers:
            layer.in_proj.weight[-1].zero_()
            layer.in_proj.bias[-1] = 1.0
            layer.codebook.weight[:, -1] = 1.0


@torch.no_grad()
def revive(model: DacModel, latent: torch.Tensor, usage: torch.Tensor) -> None:
    """Move entries that are hardly used any more to where a frame of this batch lies."""
    residual = latent
    for layer, used in zip(model.quantizer.quantizers, usage, strict=True):
        points = layer.in_proj(residual)
        flat = points.transpose(1, 2).flatten(0, 1)
        dead = (used < 0.3).nonzero()[: len(flat), 0]
        layer.codebook.weight[dead] = flat[torch.randperm(len(flat), device=flat.device)[: len(dead)]]
        used[dead] = 1.0
        residual = residual - layer.out_proj(layer.decode_latents(points)[0])


def _counts(codes: torch.Tensor, size: int) -> torch.Tensor:
    return torch.stack([torch.bincount(each.flatten(), minlength=size) for each in codes.unbind(1)])


def _callables(model: DacModel, compiled: bool):
    return (torch.compile(model.encoder), torch.compile(model.decoder)) if compiled else (model.encoder, model.decoder)


if __name__ == "__main__":
    main()
