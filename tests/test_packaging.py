"""What is installed, what can be imported in a checkout, and that our folders shadow no other package."""

import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("module", ["transformers.models.dia", "bitsandbytes", "dia_engine.kernels.sample"])
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


def test_the_folder_name_gives_the_same_class_and_no_second_set_of_modules():
    script = (
        "import sys, engine, dia_engine; assert engine.Engine is dia_engine.Engine is engine.Dia; "
        "print(*(name for name in sys.modules if name.startswith('engine.')))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=120, check=True)
    assert not done.stdout.split()


@pytest.mark.parametrize(
    "module", ["engine.setup", "engine.tests", "engine.codec", "dia_engine.setup", "dia_engine.tests"]
)
def test_nothing_else_can_be_imported_through_the_package(module):
    done = subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, capture_output=True, timeout=120)
    assert b"ModuleNotFoundError" in done.stderr


def test_a_wheel_holds_one_package_with_kernels_and_assets(tmp_path):
    source = tmp_path / "source"  # a build writes into its source folder
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "benchmarks", "__pycache__", "work")
    shutil.copytree(ROOT, source, ignore=left_out, symlinks=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"dia_engine"}
    kinds = ("**/*.py", "kernels/**/*.[ch]", "assets/**/*.*")
    ours = {path.relative_to(ROOT) for kind in kinds for path in (ROOT / "dia_engine").glob(kind)}
    ours |= {
        Path("dia_engine/kernels") / path.relative_to(ROOT / "kernels") for path in (ROOT / "kernels").rglob("*.[pch]*")
    }
    ours = {str(path) for path in ours if path.suffix != ".pyc"}
    assert ours <= set(names) and "dia_engine/assets/talker/codec/model.safetensors" in ours


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_exactly_one_version_is_pinned_of_all_that_setup_needs_and_setup_allows_it(python, monkeypatch):
    monkeypatch.chdir(ROOT)
    setup = {}
    monkeypatch.setattr(setuptools, "setup", setup.update)
    runpy.run_path("setup.py")
    system = {"python_version": python, "sys_platform": "linux"}

    def applying(lines):
        requirements = [Requirement(line) for line in lines if not line.startswith("#")]
        return [each for each in requirements if not each.marker or each.marker.evaluate(system)]

    pins = applying((ROOT / "constraints.txt").read_text().splitlines())
    for needed in applying(
        setup["install_requires"] + setup["extras_require"]["test"] + setup["extras_require"]["hear"]
    ):
        versions = [str(pin.specifier).removeprefix("==") for pin in pins if pin.name == needed.name]
        assert len(versions) == 1 and needed.specifier.contains(versions[0]), f"{needed}: {versions}"
