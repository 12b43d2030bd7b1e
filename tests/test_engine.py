"""The public API: load, generate, save, as a caller of the reference knows them."""

import asyncio
import copy
import functools
import inspect
import logging
import pickle
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pytest
import soundfile
import torch

import engine as package
from dia_engine import Dia, Engine, SamplingParams
from dia_engine.codec import Codec
from dia_engine.files.hub import DEFAULT_MODEL
from dia_engine.kernels.cpu.onednn import PackedInt8Weight
from dia_engine.kernels.quantized import Int8Weight
from dia_engine.runtime.limits import Limits
from dia_engine.sampling_params import MODEL_DEFAULT
from dia_engine.weights.save import save_weights
from dia_engine.weights.source import resolve_model

TEXT = "[S1] Hello there. [S2] Hi! (laughs)"
SHORT = {"max_tokens": 40}


def test_signature_is_the_references():
    parameters = inspect.signature(Engine.generate).parameters
    positional = {name: item.default for name, item in parameters.items() if item.kind is item.POSITIONAL_OR_KEYWORD}
    assert positional == {
        "self": inspect.Parameter.empty,
        "text": inspect.Parameter.empty,
        "max_tokens": None,
        "cfg_scale": None,
        "temperature": None,
        "top_p": None,
        "use_torch_compile": False,
        "cfg_filter_top_k": MODEL_DEFAULT,
        "audio_prompt": None,
        "audio_prompt_path": None,
        "use_cfg_filter": None,
        "verbose": False,
    }
    wanted = {"max_tokens": 3072, "cfg_scale": 3.0, "temperature": 1.2, "top_p": 0.95, "cfg_filter_top_k": 45}
    ours = {"min_tokens": 0}  # forbids nothing
    assert asdict(SamplingParams().resolve({})) == wanted | ours, "what is left out is the reference's default"
    assert Dia is Engine and set(package.__all__) == {
        "AudioStream", "Dia", "Engine", "EngineFull", "FLUSH", "Generation", "Piece", "PieceResult", "Plan",
        "Progress", "SamplingParams",
    }  # fmt: skip
    assert all(hasattr(package, name) for name in package.__all__)
    assert package.SamplingParams is SamplingParams
    assert inspect.signature(Engine.load).parameters["model"].default == DEFAULT_MODEL


def test_sound_and_codes(engine, engine_without_codec):
    sound = engine.generate(TEXT, seed=1, **SHORT)
    assert sound.dtype == np.float32 and sound.ndim == 1
    codes = engine_without_codec.generate(TEXT, seed=1, **SHORT)
    assert codes.dtype == np.int64 and codes.shape == (40 - 15 - 1, 9)
    assert codes.min() >= 0 and codes.max() < 1024
    assert len(sound) == len(codes) * engine.codec.hop_length
    # Windows are decoded in tiles, the whole is not: other sums, rounded differently.
    np.testing.assert_allclose(sound, engine.codec.decode(torch.from_numpy(codes)).numpy(), atol=1e-6)


def test_a_list_gives_a_list_and_each_item_equals_itself_alone(engine_without_codec):
    texts = [TEXT, "[S2] A longer second script, so that lengths differ.", "[S1] x"]
    prompts = [None, torch.randint(1024, (7, 9)), torch.randint(1024, (2, 9))]
    together = engine_without_codec.generate(texts, audio_prompt=prompts, seed=5, **SHORT)
    for text, prompt, codes in zip(texts, prompts, together, strict=True):
        assert np.array_equal(codes, engine_without_codec.generate(text, audio_prompt=prompt, seed=5, **SHORT))
    assert isinstance(engine_without_codec.generate([TEXT], **SHORT), list)


def test_seed(engine_without_codec):
    first = engine_without_codec.generate(TEXT, seed=5, **SHORT)
    assert np.array_equal(first, engine_without_codec.generate(TEXT, seed=5, **SHORT))
    assert not np.array_equal(first, engine_without_codec.generate(TEXT, seed=6, **SHORT))
    both = engine_without_codec.generate([TEXT, TEXT], seed=[6, 5], **SHORT)
    assert np.array_equal(first, both[1]) and not np.array_equal(both[0], both[1])

    torch.manual_seed(3)
    drawn = [engine_without_codec.generate(TEXT, **SHORT) for _ in range(2)]
    torch.manual_seed(3)
    again = [engine_without_codec.generate(TEXT, **SHORT) for _ in range(2)]
    assert np.array_equal(drawn, again) and not np.array_equal(drawn[0], drawn[1])


def test_prompt_in_every_form(engine, tmp_path):
    rate = engine.sample_rate
    tone = (0.3 * np.sin(np.arange(rate // 5) * 0.05)).astype(np.float32)
    soundfile.write(tmp_path / "tone.wav", tone, rate, subtype="FLOAT")
    soundfile.write(tmp_path / "stereo.flac", np.stack([tone, tone], axis=1), rate, subtype="PCM_24")
    codes = engine.codec.encode(tone, rate)
    params = {"seed": 2, "temperature": 0, "max_tokens": 60}
    wanted = engine.generate(TEXT, audio_prompt=codes, **params)
    assert torch.equal(engine.load_audio(tmp_path / "tone.wav"), codes)
    forms = [str(tmp_path / "tone.wav"), tmp_path / "tone.wav", (tone, rate), (np.stack([tone, tone]), rate)]
    for prompt in (*forms, (torch.from_numpy(tone), rate), codes.to(torch.int32), codes.numpy()):
        assert np.array_equal(engine.generate(TEXT, audio_prompt=prompt, **params), wanted)
    assert np.array_equal(engine.generate(TEXT, audio_prompt_path=forms[0], **params), wanted)
    frames = 60 - 15 - 1 - len(codes)
    assert len(wanted) == frames * engine.codec.hop_length, "the prompt is not part of the sound"
    assert len(engine.generate(TEXT, audio_prompt=str(tmp_path / "stereo.flac"), **params))
    assert len(engine.generate(TEXT, audio_prompt=(tone, 22_050), **params)), "any rate"


def test_transcript_goes_before_the_text(engine_without_codec):
    prompt = torch.randint(1024, (4, 9))
    params = {"audio_prompt": prompt, "seed": 1, **SHORT}
    joined = engine_without_codec.generate("[S1] What was said. [S2] More.", **params)
    assert np.array_equal(
        engine_without_codec.generate("[S2] More.", audio_prompt_text="[S1] What was said.", **params), joined
    )
    assert not np.array_equal(engine_without_codec.generate("[S2] More.", **params), joined)


def test_files_that_are_no_paths():
    for files, name in (((None, "x.pth"), "config_path"), (("config.json", 3), "checkpoint_path")):
        with pytest.raises(TypeError, match=f"{name} must be a string or a path, got"):
            Engine.from_local(*files)


@pytest.mark.parametrize("wrong", [None, 3, b"tone.wav", np.zeros((9, 9)), ["tone.wav"]])
def test_what_is_no_sound_to_load(engine, wrong):
    with pytest.raises(TypeError, match=r"audio_path must be a path or a pair \(waveform, sample_rate\), got"):
        engine.load_audio(wrong)


def test_verbose_shows_speed_on_standard_error(engine_without_codec, capsys):
    engine_without_codec.generate(TEXT, verbose=True, **SHORT)
    shown = capsys.readouterr()
    assert "steps/s" in shown.err and "x real time" in shown.err and not shown.out


def test_names_of_the_reference_that_do_nothing_here(engine_without_codec, caplog):
    with caplog.at_level(logging.INFO):
        engine_without_codec.generate(TEXT, use_torch_compile=True, use_cfg_filter=True, **SHORT)
    assert "use_torch_compile has no effect" in caplog.text and "use_cfg_filter has no effect" in caplog.text


def test_load_from_a_folder_and_from_files(engine_without_codec, engine, tmp_path):
    folder = tmp_path / "model"
    from dia_engine.weights.synthetic import random_weights, synthetic_config

    config = synthetic_config("synthetic:tiny")
    save_weights(random_weights(config, dtype=torch.float32, device="cpu"), config, folder)
    wanted = engine_without_codec.generate(TEXT, seed=1, **SHORT)
    loaders = [
        lambda: Engine.load(folder, load_dac=False),
        lambda: Engine.from_pretrained(str(folder), "float32", device=torch.device("cpu"), load_dac=False),
        lambda: Dia.from_local(
            str(folder / "config.json"), str(folder / "model.safetensors"), compute_dtype="float32", load_dac=False
        ),
    ]
    for load in loaders:
        assert np.array_equal(load().generate(TEXT, seed=1, **SHORT), wanted)
    loaded = Engine.load(folder, codec=engine.codec)
    assert np.array_equal(loaded.generate(TEXT, seed=1, **SHORT), engine.generate(TEXT, seed=1, **SHORT))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16])
def test_dtypes(dtype):
    engine = Engine.load("synthetic:tiny", dtype=dtype, load_dac=False)
    assert str(engine.dtype).endswith(str(dtype).removeprefix("torch."))
    assert engine.generate(TEXT, seed=1, **SHORT).shape == (24, 9)


def test_save(engine, tmp_path):
    sound = engine.generate(TEXT, seed=1, **SHORT)
    for extension in ("wav", "flac", "ogg", "mp3"):
        engine.save_audio(str(tmp_path / f"out.{extension}"), sound)
        written = soundfile.info(tmp_path / f"out.{extension}")
        assert written.samplerate == 44100 and written.channels == 1
        assert abs(written.frames - len(sound)) < 3000


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": ""}, ValueError, "text must not be empty"),
        ({"text": "x" * 1025, "split": False}, ValueError, "text has 1025 bytes .* at most 1024"),
        ({"text": 3}, TypeError, "text must be a string, got int"),
        ({"text": []}, ValueError, "at least one script"),
        ({"text": [TEXT, None]}, TypeError, "text must be a string, got NoneType"),
        ({"temperature": -1}, ValueError, "temperature must be in .* got -1.0"),
        ({"top_p": 0.0}, ValueError, r"top_p must be in \(0, 1\], got 0.0"),
        ({"cfg_filter_top_k": 0}, ValueError, "cfg_filter_top_k must be >= 1"),
        ({"max_tokens": 16}, ValueError, "max_tokens must be at least 17"),
        ({"max_tokens": 4000}, ValueError, "max_tokens must be at most 3072"),
        ({"seed": -5}, ValueError, "seed must be in"),
        ({"seed": [1, 2]}, ValueError, "seed has 2 entries for 1 texts"),
        ({"audio_prompt": "absent.wav"}, FileNotFoundError, "no sound file at absent.wav"),
        ({"audio_prompt": 3.0}, TypeError, "an audio prompt is a path"),
        ({"audio_prompt": torch.zeros(4, 9)}, TypeError, "codes must be integers, got torch.float32"),
        ({"audio_prompt": torch.zeros(4, 8, dtype=torch.int64)}, ValueError, r"\[frames, 9\], got \[4, 8\]"),
        ({"audio_prompt": torch.zeros(0, 9, dtype=torch.int64)}, ValueError, "at least one frame"),
        ({"audio_prompt": torch.full((4, 9), 1024)}, ValueError, r"in \[0, 1024\), got 1024"),
        ({"audio_prompt": torch.full((4, 9), -1)}, ValueError, r"in \[0, 1024\), got -1"),
        ({"audio_prompt": torch.zeros(30, 9, dtype=torch.int64)}, ValueError, "30 frames, .* leaves room for 23"),
        ({"audio_prompt": (np.zeros(0, np.float32), 44100)}, ValueError, "waveform is empty"),
        ({"audio_prompt": (np.zeros(9, np.float32), 0)}, ValueError, "sample rate must be"),
        ({"audio_prompt": (np.zeros(90_000, np.float32), 44100)}, ValueError, "leaves room for 23"),
        ({"text": [TEXT, TEXT], "audio_prompt": [None]}, ValueError, "audio_prompt has 1 entries for 2 texts"),
        ({"text": [TEXT, TEXT], "audio_prompt": "one.wav"}, ValueError, "audio_prompt must be a list of 2"),
        ({"audio_prompt_text": "[S1] Hi."}, ValueError, "there is no audio_prompt"),
        ({"audio_prompt": "a.wav", "audio_prompt_path": "b.wav"}, ValueError, "two names of one argument"),
        ({"no_such_parameter": 1}, TypeError, "no_such_parameter"),
    ],
)
def test_mistakes_are_named(engine, arguments, error, message):
    arguments = {"text": TEXT, **SHORT, **arguments}
    with pytest.raises(error, match=message):
        engine.generate(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int3"}, "dtype must be one of float32, float16, bfloat16, got 'int3'"),
        ({"dtype": torch.int8}, "dtype must be one of"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"device": "meta"}, "tensors have no data"),
        ({"model": "synthetic:huge"}, "no synthetic model 'huge'; there are synthetic:tiny"),
    ],
)
def test_load_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Engine.load(**{"model": "synthetic:tiny", **arguments})


def test_without_a_codec_sound_is_refused(engine_without_codec, tmp_path):
    for use in (
        lambda: engine_without_codec.sample_rate,
        lambda: engine_without_codec.save_audio(tmp_path / "x.wav", np.zeros(9, np.float32)),
        lambda: engine_without_codec.generate(TEXT, audio_prompt=(np.zeros(900, np.float32), 44100), **SHORT),
    ):
        with pytest.raises(ValueError, match="load_dac=True"):
            use()


def test_a_codec_that_does_not_fit_is_refused(engine):
    from dataclasses import replace

    other = Codec.from_config(replace(engine.codec.config, n_codebooks=4))
    with pytest.raises(ValueError, match="4 codebooks of 1024, the model speaks 9 channels"):
        Engine.load("synthetic:tiny", codec=other)


def test_a_models_own_defaults_fit_smaller_slots_and_preparation(engine):
    defaults = {"max_tokens": 600, "min_tokens": 20}
    with Engine(engine.config, engine.weights, engine.codec, defaults=defaults, limits=Limits(max_rows=60)) as other:
        other.prepare()
        assert other.defaults == {"max_tokens": 60, "min_tokens": 20}
        assert len(other.generate("[S1] Hi.", seed=1))


def test_packed_weights_can_be_saved(engine, tmp_path):
    """As a CPU without compiled code has them."""
    name = "decoder.layers.0.mlp.down.weight"
    quantized = Int8Weight.quantize(engine.weights[name], torch.float32)
    packed = {**engine.weights, name: PackedInt8Weight.pack(quantized)}
    save_weights(packed, engine.config, tmp_path / "packed")
    save_weights({**engine.weights, name: quantized}, engine.config, tmp_path / "plain")
    assert (tmp_path / "packed/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()


def test_results_can_be_compared_and_kept_in_sets(engine):
    results = [engine.generate("[S1] Hi.", seed=1, max_tokens=30, details=True) for _ in range(2)]
    assert results[0] == results[0] and results[0] != results[1] and len(set(results)) == 2


def test_a_codec_on_another_gpu_is_refused(engine, monkeypatch):
    codec = Codec.from_config(engine.codec.config, device="cpu")
    monkeypatch.setattr(Codec, "device", torch.device("cuda", 0))
    source = resolve_model("synthetic:tiny")
    with pytest.raises(ValueError, match="the loaded codec that was given is on cuda:0, the model on cuda:1"):
        source.open_codec(codec, torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert source.open_codec(codec, torch.device("cuda")) is codec


@pytest.mark.parametrize("mode", ["autocast", "inference_mode", "enable_grad", "float64", "medium"])
def test_a_callers_modes_change_nothing(mode):
    tone = (0.3 * np.sin(np.arange(4000) * 0.05)).astype(np.float32)
    params = {"seed": 1, "audio_prompt": (tone, 44100), **SHORT}

    def everything(quant):
        engine = Engine.load("synthetic:tiny", device="cpu", quant=quant)
        whole = engine.generate(TEXT, **params)

        async def read():
            return np.concatenate([chunk async for chunk in engine.astream(TEXT, **params)])

        before = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        chunks = []
        for chunk in engine.stream(TEXT, chunk_frames=4, **params):
            now = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            assert now == before, "the reader's modes are its own between the chunks"
            chunks.append(chunk)
        codes = engine.codec.encode(tone, 44100)
        return [whole, np.concatenate(chunks), asyncio.run(read()), codes.numpy(), engine.codec.decode(codes).numpy()]

    @contextmanager
    def default_float64():
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)

    @contextmanager
    def medium_precision():
        torch.set_float32_matmul_precision("medium")  # on some CPUs float32 is then multiplied in bfloat16
        try:
            yield
        finally:
            torch.set_float32_matmul_precision("highest")

    modes = {
        "medium": medium_precision,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "inference_mode": torch.inference_mode,
        "enable_grad": torch.enable_grad,
        "float64": default_float64,
    }
    for quant in (None, "int8"):
        wanted = everything(quant)
        with modes[mode]():
            found = everything(quant)
        for ours, theirs in zip(found, wanted, strict=True):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    "attempt", [copy.copy, copy.deepcopy, pickle.dumps, lambda engine: pickle.dumps(functools.partial(engine.generate))]
)
def test_an_engine_is_not_copied(engine_without_codec, attempt):
    with pytest.raises(TypeError, match="an Engine cannot be copied or pickled.*load one in each process"):
        attempt(engine_without_codec)
    with pytest.raises(TypeError, match="a stream cannot be copied or pickled"):
        copy.copy(engine_without_codec.stream(TEXT))


def test_a_codec_takes_what_a_prompt_may_be(engine):
    tone = (0.3 * np.sin(np.arange(4000) * 0.05)).astype(np.float32)
    for waveform, error in ((tone * 32767, ValueError), (torch.zeros(4000, device="meta"), TypeError)):
        with pytest.raises(error, match=r"in \[-1, 1\], its peak is 9830|dense tensor, got a meta one"):
            engine.codec.encode(waveform, 44100)


@pytest.mark.parametrize("variable", ["DIA_PDL", "DIA_ATTENTION_PROGRAMS", "DIA_ATTENTION_WARPS", "DIA_TEXT_GRAPHS"])
def test_a_variable_that_cannot_be_is_an_error_before_anything_is_loaded(monkeypatch, variable):
    monkeypatch.setenv(variable, "many")
    with pytest.raises(ValueError, match=f"{variable} must be .* got 'many'"):
        Engine.load("/there is no such model")
