from setuptools import setup

# `kernels/` stands at the top of the repository and installs inside the engine: a distribution with a top-level package
# named `kernels` would overwrite the one that Hugging Face publishes under that name.
setup(
    name="dia-engine",
    version="0.1.0",
    description="An optimized inference engine for the text-to-dialogue model Dia",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=["engine", "engine.codec", "engine.kernels", "engine.kernels.cpu"],
    package_dir={"engine": "engine", "engine.kernels": "kernels"},
    package_data={
        "engine": ["talker/*.*", "talker/codec/*.*"],  # the small model that `Engine.load("talker")` reads
        "engine.kernels.cpu": ["*.c", "*.h"],  # compiled on first use
    },
    install_requires=[
        "torch>=2.9",
        "numpy",
        "safetensors>=0.4.3",
        "huggingface_hub>=0.23",
        "soundfile>=0.12.1",
        "soxr>=0.3.7",
        "tqdm",
        "triton>=3.5; sys_platform == 'linux'",
    ],
    extras_require={
        "codec": ["descript-audio-codec>=1.0"],
        "test": ["pytest>=7", "pytest-benchmark>=4", "transformers>=4.53", "bitsandbytes>=0.45", "accelerate"],
        "hear": ["pocketsphinx>=5", "transformers>=4.53"],  # `talker/` and the tests that listen; they need flite too
    },
    entry_points={"console_scripts": ["dia-engine=engine.cli:main"]},
)
