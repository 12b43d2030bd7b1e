"""Puts the trained pair where the engine reads it: `python -m tools.talker.export`."""

import argparse
import json
from pathlib import Path

from transformers import DacModel, DiaForConditionalGeneration

from .data import WORK
from .model import BOS, EOS, PAD

TARGET = Path(__file__).parents[2] / "engine" / "assets" / "talker"
# By the engine's names, which transformers does not read. Hardly different from greedy, but a seed means something.
DEFAULTS = {"cfg_scale": 1.0, "temperature": 0.5, "cfg_filter_top_k": 8}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.talker.export", description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--target", type=Path, default=TARGET, help="(default: the engine's own folder)")
    options = parser.parse_args(arguments)
    export(options.work, options.target)


def export(work: Path, target: Path) -> None:
    """Write `work/dia` and `work/dac` in float16, the codec in a folder of its own, and the defaults."""
    DiaForConditionalGeneration.from_pretrained(work / "dia").half().save_pretrained(target)
    DacModel.from_pretrained(work / "dac").half().save_pretrained(target / "codec")
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)  # it is written for its owner alone
    generation = {
        "bos_token_id": BOS,
        "decoder_start_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "do_sample": True,
        "temperature": DEFAULTS["temperature"],
        "top_k": DEFAULTS["cfg_filter_top_k"],
        "max_length": 512,
        "dia_engine": DEFAULTS,
    }
    (target / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


if __name__ == "__main__":
    main()
