"""What is installed, and that our `kernels/` folder stands in nobody's way."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("module", ["transformers.models.dia", "bitsandbytes", "engine.kernels.sample"])
def test_imports_from_the_repository_root(module):
    done = subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()


def test_transformers_dia_can_be_built_from_the_repository_root():
    script = (
        "from transformers import DiaConfig, DiaForConditionalGeneration as D; c = DiaConfig(); "
        "c.encoder_config.num_hidden_layers = c.decoder_config.num_hidden_layers = 0; D(c)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()


def test_a_wheel_holds_the_kernels_inside_the_engine(tmp_path):
    import shutil
    import zipfile

    source = tmp_path / "source"  # a build writes into its source folder
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "benchmarks", "__pycache__", "work")
    shutil.copytree(ROOT, source, ignore=left_out)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"engine"}
    ours = {f"engine/{path.relative_to(ROOT / 'engine')}" for path in (ROOT / "engine").rglob("*.py")}
    ours |= {
        f"engine/{path.relative_to(ROOT)}" for path in (ROOT / "kernels").rglob("*.[pch]*") if path.suffix != ".pyc"
    }
    ours |= {f"engine/{path.relative_to(ROOT / 'engine')}" for path in (ROOT / "engine" / "talker").rglob("*.*")}
    assert ours <= set(names) and "engine/talker/codec/model.safetensors" in ours
