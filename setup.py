import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
(VERSION,) = re.findall(r'^__version__ = "(.+?)"', (HERE / "engine" / "__init__.py").read_text(encoding="utf-8"), re.M)

SERVE = [
    "fastapi>=0.115",
    "uvicorn[standard]>=0.30",
    "python-multipart>=0.0.9",
    "prometheus_client>=0.20",
    "av>=13",
]

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
        "dia_engine.kernels.cpu": ["*.c", "*.h"],  # compiled on first use
    },
    install_requires=[
        "torch>=2.9",
        "numpy>=1.26",
        "safetensors>=0.4.3",
        "huggingface_hub>=0.23",
        "soundfile>=0.12.1",
        "soxr>=0.3.7",
        "tqdm>=4.64",
        "triton>=3.5; sys_platform == 'linux'",
    ],
    extras_require={
        "codec": ["descript-audio-codec>=1.0"],
        "serve": SERVE,
        "lint": ["mypy>=2.4", "ruff>=0.17.6"],
        "test": [
            "pytest>=7.4",
            "pytest-benchmark>=4",
            "pytest-xdist>=3.5",
            "hypothesis>=6",
            "transformers>=4.53",
            "bitsandbytes>=0.45",
            "accelerate>=1.0",
            *SERVE,
            "httpx>=0.27",
            "websockets>=13",
        ],
        "hear": ["pocketsphinx>=5", "transformers>=4.53"],  # `talker/` and the tests that listen; they need flite too
    },
    entry_points={"console_scripts": ["dia-engine=dia_engine.cli:main"]},
)
