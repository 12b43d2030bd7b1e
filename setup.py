"""Package metadata, and the CPU's decode step as a library for each variant of its instructions."""

import json
import platform
import re
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70.1
    from wheel.bdist_wheel import bdist_wheel

HERE = Path(__file__).parent
(VERSION,) = re.findall(r'^__version__ = "(.+?)"', (HERE / "engine" / "__init__.py").read_text(encoding="utf-8"), re.M)

NATIVE = "kernels/cpu/native"


class BuildVariants(build_ext):
    """The decode step of a CPU as plain shared libraries, one for each variant of its instructions. They are optional:
    what no compiler makes here is compiled where it is used. An editable installation has none, as sources change."""

    def run(self):
        if not self.inplace and not self.editable_mode:
            super().run()

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))).replace("step_", "step-") + ".so"

    def get_export_symbols(self, ext):
        return ext.export_symbols


class PlainWheel(bdist_wheel):
    """A wheel with libraries that no Python looks into: for every Python of this system."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


def variants():
    """One Extension for each variant that this system's compilers make."""
    described = json.loads((HERE / NATIVE / "variants.json").read_text(encoding="utf-8"))
    flags_by_name = described.get(platform.machine(), {}) if sys.platform == "linux" else {}
    headers = sorted(str(path.relative_to(HERE)) for path in (HERE / NATIVE).glob("*.h"))
    return [
        Extension(
            f"dia_engine.kernels.cpu.native.step_{name}",
            [f"{NATIVE}/step.c"],
            depends=headers,
            extra_compile_args=[*described["common"], *flags, "-g0", "-Wno-psabi"],  # all of it is inline
            libraries=["m"],
            optional=True,
        )
        for name, flags in flags_by_name.items()
    ]


SERVE = [
    "fastapi>=0.115",
    "uvicorn[standard]>=0.41",  # earlier ones end in a traceback at a signal before their loop
    "websockets>=13.1",  # uvicorn would take any
    "python-multipart>=0.0.9",
    "prometheus_client>=0.20",
    "av>=13",
]
LOUDNESS = ["pyloudnorm>=0.2"]

# The package is imported as `dia_engine` and lies in `engine/`; `engine/kernels` is a link to `kernels/`.
setup(
    name="dia-engine",
    version=VERSION,
    description="An optimized inference engine for the text-to-dialogue model Dia",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords=["text-to-speech", "dialogue", "Dia", "inference", "Triton", "CUDA graphs", "quantization"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=["dia_engine", *(f"dia_engine.{name}" for name in find_packages("engine"))],
    package_dir={"dia_engine": "engine"},
    package_data={
        "dia_engine": [
            "py.typed",
            "assets/talker/*.*",
            "assets/talker/codec/*.*",
        ],  # the small model that `Engine.load("talker")` reads
        "dia_engine.server": ["page/*.*"],
        "dia_engine.kernels.cpu": ["native/*.c", "native/*.h", "native/*.json"],  # compiled on first use
    },
    ext_modules=variants(),
    cmdclass={"build_ext": BuildVariants, "bdist_wheel": PlainWheel},
    install_requires=[
        "torch>=2.9",
        "numpy>=1.26",
        "safetensors>=0.4.3",
        "huggingface_hub>=0.23",
        "soundfile>=0.13",
        "soxr>=0.3.7",
        "tqdm>=4.64",
        "triton>=3.5; sys_platform == 'linux'",
    ],
    extras_require={
        "serve": SERVE,
        "docs": ["pdoc>=15", *SERVE],  # the server's application is documented too
        "loudness": LOUDNESS,
        "ray": ["ray[data,serve]>=2.53", *SERVE],
        "lint": ["mypy>=2.4", "ruff>=0.17.6"],
        "test": [
            "pytest>=7.4",
            "pytest-benchmark>=4",
            "pytest-xdist>=3.5",
            "hypothesis>=6",
            "transformers>=5.2",
            "bitsandbytes>=0.50",
            "accelerate>=1.1",
            *LOUDNESS,
            *SERVE,
            "httpx>=0.27",
        ],
        "hear": ["pocketsphinx>=5", "transformers>=4.53"],  # `tools/talker/` and the tests that listen need flite too
    },
    entry_points={"console_scripts": ["dia-engine=dia_engine.cli:main"]},
)
