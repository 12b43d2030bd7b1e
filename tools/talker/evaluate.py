"""Listens to the talker: `python -m tools.talker.evaluate`. Needs flite and pocketsphinx.

Scripts whose sentences no training has seen are generated with the engine and written down by a speech recognizer that
knows the words of the domain. Beside the model stand what bounds it: the synthesizer it learnt from, and that sound
through the codec and back; and a control, where each sound is compared with the next script.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dia_engine import Engine

from .corpus import original
from .domain import Script, held_out_scripts, words_of
from .flite import SAMPLE_RATE, require_flite
from .hearing import Listener, pitch, word_errors

PARAMS = ("cfg_scale", "temperature", "top_p", "cfg_filter_top_k")


@dataclass
class Heard:
    """What listening to some sounds found.

    Attributes:
        words, errors: words that should have been said, and edits that make what was heard into them.
        word_error, margin: per cent, and half of its 95 % interval, by the spread between scripts.
        pitch: median in Hz over the scripts of one speaker alone, by tag.
        ended: share of the scripts that end before the decoder has no more rows; 1 for what was not generated.
        length: seconds, of all, over that of the synthesizer's.
    """

    words: int
    errors: int
    word_error: float
    margin: float
    pitch: dict[str, float]
    ended: float
    length: float


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    require_flite()
    engine = Engine.load(
        options.model, quant=options.quant, dtype=options.dtype, device=options.device, codec=options.codec
    )
    if engine.sample_rate != SAMPLE_RATE:
        raise SystemExit(f"{options.model} speaks at {engine.sample_rate} Hz; this evaluation is for 16 kHz")
    params = {name: getattr(options, name) for name in PARAMS if getattr(options, name) is not None}
    params |= {"temperature": 0.0} if options.greedy else {}
    scripts = held_out_scripts(options.count, options.sentences)
    report = evaluate(engine, scripts, options.seed, options.batch, params, baselines=not options.model_only)
    report["model"], report["quant"], report["dtype"] = str(options.model), options.quant, str(engine.dtype)[6:]
    report["params"] = engine.defaults | params
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(_table(report))


def evaluate(
    engine: Engine,
    scripts: list[Script],
    seed: int = 0,
    batch: int = 20,
    params: dict | None = None,
    *,
    baselines: bool = True,
) -> dict:
    """Listen to an engine say some scripts. Returns `Heard` as dicts under "heard", by whose sound it is, and
    the transcripts of the model's under "scripts"."""
    listener = Listener()
    originals = [original(script) for script in scripts]
    began = time.perf_counter()
    sounds = generate_all(engine, scripts, seed, batch, params or {})
    spent = time.perf_counter() - began
    longest = rows_of_sound(engine) * engine.codec.hop_length
    texts = [listener.words(sound) for sound in tqdm(sounds, desc="listen", leave=False, disable=None)]
    lengths = [len(sound) for sound in originals]
    heard = {"model": describe(scripts, scripts, sounds, texts, lengths, longest)}
    if baselines:
        shifted = scripts[1:] + scripts[:1]
        heard["control: the next script's words"] = describe(scripts, shifted, sounds, texts, lengths, longest)
        through = [round_trip(engine, sound) for sound in tqdm(originals, desc="codec", leave=False, disable=None)]
        for name, each in (("codec and back", through), ("synthesizer", originals)):
            said = [listener.words(sound) for sound in tqdm(each, desc=name, leave=False, disable=None)]
            heard[name] = describe(scripts, scripts, each, said, lengths, math.inf)
    seconds = sum(map(len, sounds)) / SAMPLE_RATE
    lines = zip(scripts, texts, strict=True)
    return {
        "heard": {name: asdict(each) for name, each in heard.items()},
        "scripts": [{"text": script.text, "heard": " ".join(said)} for script, said in lines],
        "seconds": round(seconds, 1),
        "real_time": round(seconds / spent, 2),
    }


def generate_all(engine: Engine, scripts: list[Script], seed: int, batch: int, params: dict) -> list[np.ndarray]:
    """The sound of each script [samples]; script i has the seed `seed` + i, so that batches change nothing."""
    sounds = []
    for start in tqdm(range(0, len(scripts), batch), desc="generate", leave=False, disable=None):
        texts = [script.text for script in scripts[start : start + batch]]
        sounds += engine.generate(texts, seed=[seed + start + index for index in range(len(texts))], **params)
    return sounds


def round_trip(engine: Engine, sound: np.ndarray) -> np.ndarray:
    """A sound [samples] at 16 kHz through the engine's codec and back, as long as before."""
    return engine.codec.decode(engine.codec.encode(sound, SAMPLE_RATE)).cpu().numpy()[: len(sound)]


def rows_of_sound(engine: Engine) -> int:
    """Frames that a generation gives which does not end by itself."""
    return engine.config.decoder.max_position_embeddings - 1 - engine.config.max_delay


def describe(
    spoken: list[Script], meant: list[Script], sounds: list, said: list[list[str]], lengths: list[int], longest: float
) -> Heard:
    """Count and measure; `spoken` says who speaks, `meant` which words to expect."""
    wanted = [words_of(script.text) for script in meant]
    errors = np.array([word_errors(ours, theirs) for ours, theirs in zip(said, wanted, strict=True)])
    words = np.array([len(each) for each in wanted])
    share = float(errors.sum() / words.sum())
    # The ratio's deviation, by how far each script is from the mean.
    deviation = math.sqrt(np.sum((errors - share * words) ** 2)) / int(words.sum())
    pitches = {"[S1]": [], "[S2]": []}
    for script, sound in zip(spoken, sounds, strict=True):
        if len({tag for tag, _ in script.turns}) == 1:
            pitches[script.turns[0][0]].append(pitch(sound))
    return Heard(
        words=int(words.sum()),
        errors=int(errors.sum()),
        word_error=round(100 * share, 1),
        margin=round(196 * deviation, 1),
        pitch={tag: round(float(np.nanmedian(each)), 1) for tag, each in pitches.items() if each},
        ended=round(float(np.mean([len(sound) < longest for sound in sounds])), 3),
        length=round(sum(map(len, sounds)) / sum(lengths), 3),
    )


def _table(report: dict) -> str:
    lines = [f"{'':34}{'words':>7}{'word error':>18}{'[S1] Hz':>9}{'[S2] Hz':>9}{'ended':>8}{'length':>8}"]
    for name, heard in report["heard"].items():
        error, pitches = f"{heard['word_error']:.1f} ± {heard['margin']:.1f} %", heard["pitch"]
        lines.append(
            f"{name:34}{heard['words']:>7}{error:>18}{pitches.get('[S1]', math.nan):>9.0f}"
            f"{pitches.get('[S2]', math.nan):>9.0f}{heard['ended']:>8.0%}{heard['length']:>8.2f}"
        )
    return "\n".join([*lines, f"{report['seconds']} s of sound, generated {report['real_time']}x real time"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.talker.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="talker", help="talker, or a folder like it (default: %(default)s)")
    parser.add_argument("--codec", help="the codec's folder, where the model's has none of its own")
    parser.add_argument("--quant", help="int8 or nf4")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument("--device")
    parser.add_argument("--count", type=int, default=100, help="scripts (default: %(default)s)")
    parser.add_argument("--sentences", type=int, help="a script, in turns; default: one or two")
    parser.add_argument("--batch", type=int, default=20, help="scripts generated at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first script (default: %(default)s)")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token, as --temperature 0")
    for name in PARAMS[:3]:
        parser.add_argument("--" + name.replace("_", "-"), type=float, help="default: the model's own")
    parser.add_argument("--top-k", type=int, dest=PARAMS[3], help="default: the model's own")
    parser.add_argument("--model-only", action="store_true", help="leave out synthesizer, codec and control")
    parser.add_argument("--json", type=Path, help="write all that was found to this file")
    return parser


if __name__ == "__main__":
    main()
