from setuptools import find_packages, setup

# The package is imported as `dia_engine` and lies in `engine/`; `engine/kernels` is a link to `kernels/`.
setup(
    name="dia-engine",
    version="0.1.0",
    description="An optimized inference engine for the text-to-dialogue model Dia",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=["dia_engine", *(f"dia_engine.{name}" for name in find_packages("engine"))],
    package_dir={"dia_engine": "engine"},
    package_data={
        "dia_engine": [
            "assets/talker/*.*",
            "assets/talker/codec/*.*",
        ],  # the small model that `Engine.load("talker")` reads
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
        "test": [
            "pytest>=7",
            "pytest-benchmark>=4",
            "pytest-xdist>=3.5",
            "hypothesis>=6",
            "transformers>=4.53",
            "bitsandbytes>=0.45",
            "accelerate>=1.0",
        ],
        "hear": ["pocketsphinx>=5", "transformers>=4.53"],  # `talker/` and the tests that listen; they need flite too
    },
    entry_points={"console_scripts": ["dia-engine=dia_engine.cli:main"]},
)
