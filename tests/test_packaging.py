"""What is installed, what can be imported in a checkout, and that our folders shadow no other package."""

import email
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

import dia_engine
from tests.helpers import ROOT


def test_others_can_be_imported_and_used_from_the_repository_root():
    script = (
        "import bitsandbytes, dia_engine.kernels.sample; "
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


def test_importing_the_package_imports_no_torch():
    """The command line answers --help and --version without the seconds that torch takes."""
    script = "import sys, dia_engine; dia_engine.__version__; print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=120, check=True)
    assert done.stdout.strip() == b"False"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the repository: a build writes into its source folder."""
    folder = tmp_path_factory.mktemp("source") / "dia-engine"
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "benchmarks", "__pycache__", "work")
    shutil.copytree(ROOT, folder, ignore=left_out, symlinks=True)
    return folder


def wheel_of(source, folder, compiler="false"):
    """Without libraries, whose compilation takes seconds, unless a compiler is named."""
    shutil.rmtree(source / "build", ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "CC": compiler})
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """With a compiler that fails."""
    return wheel_of(source, tmp_path_factory.mktemp("wheel"))


def test_a_wheel_holds_one_package_with_kernels_and_assets(wheel):
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"dia_engine"}
    kinds = ("**/*.py", "py.typed", "kernels/**/*.[ch]", "assets/**/*.*", "server/page/*.*")
    ours = {path.relative_to(ROOT) for kind in kinds for path in (ROOT / "dia_engine").glob(kind)}
    ours |= {
        Path("dia_engine/kernels") / path.relative_to(ROOT / "kernels") for path in (ROOT / "kernels").rglob("*.[pch]*")
    }
    ours = {str(path) for path in ours if path.suffix != ".pyc"}
    assert ours <= set(names) and {"dia_engine/assets/talker/codec/model.safetensors", "dia_engine/py.typed"} <= ours
    (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(metadata_name))
    assert metadata["Version"] == dia_engine.__version__ and metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# dia-engine")


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("gcc"), reason="makes libraries with gcc for x86"
)
def test_a_wheel_brings_the_decode_step_of_a_cpu(source, tmp_path):
    wheel = wheel_of(source, tmp_path, "gcc")
    libraries = {name.rsplit("/")[-1] for name in wheel.namelist() if name.endswith(".so")}
    assert libraries == {"step-amx.so", "step-avx512bf16.so", "step-avx512.so", "step-avx2vnni.so", "step-avx2.so"}
    assert wheel.filename.endswith("-py3-none-linux_x86_64.whl")
    wheel.extractall(tmp_path)
    script = """
import torch
from dia_engine.kernels.cpu import build
assert build.SOURCES.is_relative_to(r"{}"), build.SOURCES
build._compile = None
assert build.library() is not None or build.chosen_variant() is None
"""
    done = subprocess.run(
        [sys.executable, "-c", script.format(tmp_path)], cwd=tmp_path, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()


def test_a_wheel_without_a_compiler_has_the_sources(source, wheel, tmp_path):
    for each in (wheel, wheel_of(source, tmp_path, "no-such-compiler")):
        names = each.namelist()
        assert not [name for name in names if name.endswith(".so")]
        assert "dia_engine/kernels/cpu/native/step.c" in names


def test_a_source_distribution_makes_the_same_wheel(source, wheel, tmp_path):
    script = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.2 has no filters
        packed.extractall(tmp_path / "unpacked", **safely)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert sorted(wheel_of(unpacked, tmp_path).namelist()) == sorted(wheel.namelist())


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
    pinned = [
        setup["install_requires"],
        *(setup["extras_require"][extra] for extra in ("test", "hear", "lint", "docs")),
    ]
    for needed in applying([line for lines in pinned for line in lines]):
        versions = [str(pin.specifier).removeprefix("==") for pin in pins if pin.name == needed.name]
        assert len(versions) == 1 and needed.specifier.contains(versions[0]), f"{needed}: {versions}"
