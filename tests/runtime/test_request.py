"""What a caller hands over: parameters per request, prompts in every form, scripts that the model would misread."""

import numpy as np
import pytest
import torch

from dia_engine import Engine, SamplingParams
from dia_engine.model.config import DiaConfig
from dia_engine.runtime.limits import Limits
from dia_engine.runtime.request import Request, parse_requests
from dia_engine.sampling_params import MODEL_DEFAULT, ResolvedSamplingParams
from dia_engine.weights.synthetic import synthetic_config

TEXT = "[S1] Hello there. [S2] Hi! (laughs)"
LONG = "word " * 30
RATE = 44100
TONE = (0.3 * np.sin(np.arange(4000) * 0.05)).astype(np.float32)
CODES = np.arange(36).reshape(4, 9)


def parse(text, sampling=None, config=None, defaults=None, **arguments) -> list[Request]:
    config = config or synthetic_config("synthetic:tiny")
    return parse_requests(text, sampling or {}, config=config, defaults=defaults or {}, codec=lambda: None, **arguments)


# Sampling parameters


def test_each_text_may_have_its_own_parameters():
    sampling = {"temperature": [0, None, 0.5], "max_tokens": (20, 30, None), "top_p": 0.5}
    sampling["cfg_filter_top_k"] = [None, MODEL_DEFAULT, 3]
    requests = parse([TEXT] * 3, sampling, defaults={"temperature": 0.9, "cfg_filter_top_k": 7, "cfg_scale": 2}, seed=1)
    assert [request.params for request in requests] == [
        ResolvedSamplingParams(20, 2, 0.0, 0.5, None),
        ResolvedSamplingParams(30, 2, 0.9, 0.5, 7),
        ResolvedSamplingParams(3072, 2, 0.5, 0.5, 3),
    ]
    whole = [SamplingParams(temperature=0.5), None, SamplingParams(cfg_filter_top_k=None)]
    params = [request.params for request in parse([TEXT] * 3, sampling_params=whole, seed=1)]
    assert params[0].temperature == 0.5 and params[0].cfg_filter_top_k == 45
    assert params[1] == ResolvedSamplingParams() and params[2].cfg_filter_top_k is None


def test_a_batch_of_different_parameters_is_what_each_is_alone(engine_without_codec):
    params = {
        "max_tokens": [40, 25, 60],
        "temperature": [0.0, 1.3, 0.8],
        "top_p": [1.0, 0.5, 0.9],
        "cfg_scale": [0.0, 3.0, 1.5],
        "cfg_filter_top_k": [None, 5, MODEL_DEFAULT],
        "seed": [4, 5, 6],
    }
    together = engine_without_codec.generate([TEXT, LONG, TEXT], **params)
    assert [len(codes) for codes in together] == [24, 9, 44]
    streamed = [[], [], []]
    for index, codes in engine_without_codec.stream([TEXT, LONG, TEXT], **params):
        streamed[index].append(codes)
    for index, text in enumerate([TEXT, LONG, TEXT]):
        own = {name: values[index] for name, values in params.items()}
        alone = engine_without_codec.generate(text, **own)
        seed = own.pop("seed")
        assert np.array_equal(
            engine_without_codec.generate(text, seed=seed, sampling_params=SamplingParams(**own)), alone
        )
        assert np.array_equal(together[index], alone) and np.array_equal(np.concatenate(streamed[index]), alone)


def test_none_is_the_models_default_but_for_top_k():
    engine = Engine.load("synthetic:tiny", device="cpu", load_dac=False)
    engine.defaults = {"temperature": 0.0, "cfg_filter_top_k": 2}
    wanted = engine.generate(TEXT, seed=1, max_tokens=40, temperature=0.0, cfg_filter_top_k=2)
    for call in ({}, {"temperature": None}, {"cfg_filter_top_k": MODEL_DEFAULT}):
        assert np.array_equal(engine.generate(TEXT, seed=2, max_tokens=40, **call), wanted)
    everything = engine.generate(TEXT, seed=1, max_tokens=40, temperature=1.2, cfg_filter_top_k=None)
    limit = engine.config.decoder.vocab_size
    same = engine.generate(TEXT, seed=1, max_tokens=40, temperature=1.2, cfg_filter_top_k=limit)
    assert np.array_equal(everything, same)
    assert not np.array_equal(everything, engine.generate(TEXT, seed=1, max_tokens=40, temperature=1.2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sampling": {"temperature": [0.5, -1]}}, ValueError, r"item 1: temperature must be in .* got -1.0"),
        ({"sampling": {"temperature": [0.5]}}, ValueError, "temperature has 1 entries for 2 texts"),
        ({"sampling": {"max_tokens": [40, 16]}}, ValueError, "item 1: max_tokens must be at least 17"),
        (
            {"sampling": {"top_p": 0.5}, "sampling_params": SamplingParams()},
            ValueError,
            "top_p is one of sampling_params",
        ),
        ({"sampling_params": {"top_p": 0.5}}, TypeError, "sampling_params must be SamplingParams, got {'top_p': 0.5}"),
        ({"seed": [1, 2, 3]}, ValueError, "seed has 3 entries for 2 texts"),
        ({"sampling_params": {}}, TypeError, "sampling_params must be SamplingParams, got {}"),
        ({"sampling_params": [None, 0]}, TypeError, "sampling_params must be SamplingParams, got 0"),
        ({"seed": [1, -1]}, ValueError, r"item 1: seed must be in \[0, 2\^63\), got -1"),
        ({"audio_prompt": [None, "absent.wav"]}, FileNotFoundError, "item 1: no sound file at absent.wav"),
    ],
)
def test_mistakes_in_a_list(arguments, error, message):
    with pytest.raises(error, match=message):
        parse([TEXT, TEXT], **arguments)


# Prompts


def test_codes_in_any_memory_order():
    forms = [
        CODES,
        CODES[::-1].copy()[::-1],
        np.asfortranarray(CODES),
        CODES.astype(">i4"),
        CODES.astype(np.uint64),
        np.repeat(CODES, 2, axis=1)[:, ::2],
        np.broadcast_to(CODES, (1, 4, 9))[0],
        torch.from_numpy(CODES).t().contiguous().t(),
        torch.from_numpy(CODES).to(torch.uint16),
    ]
    for codes in forms:
        (request,) = parse(TEXT, audio_prompt=codes)
        assert request.prompt_codes.dtype == torch.int64 and request.prompt_codes.tolist() == CODES.tolist()


def odd_tensors(values: torch.Tensor):
    yield "meta", values.to("meta")
    yield "sparse", values.to_sparse()
    yield "quantized", torch.quantize_per_tensor(values.float(), 0.1, 0, torch.quint8)
    yield "nested", torch.nested.nested_tensor([values, values])


@pytest.mark.parametrize("kind", ["meta", "sparse", "quantized", "nested"])
def test_tensors_without_dense_storage(kind):
    codes = dict(odd_tensors(torch.zeros(4, 9, dtype=torch.int64)))[kind]
    with pytest.raises(TypeError, match=f"audio prompt codes must be a dense tensor, got a {kind} one"):
        parse(TEXT, audio_prompt=codes)
    waveform = dict(odd_tensors(torch.zeros(4000)))[kind]
    with pytest.raises(TypeError, match=f"waveform must be a dense tensor, got a {kind} one"):
        parse(TEXT, audio_prompt=(waveform, RATE))


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (CODES.astype(object), TypeError, "must be integers, got object"),
        (np.ma.masked_array(CODES, mask=True), TypeError, "must be a plain array, got a masked one"),
        (torch.from_numpy(CODES).to(torch.float8_e5m2), TypeError, "must be integers, got torch.float8_e5m2"),
        (CODES.astype("m8[s]"), TypeError, "must be integers, got timedelta64"),
        (CODES.astype(np.uint64) + 2**63, ValueError, r"in \[0, 1024\), got 9223372036854775843"),
        ((TONE * 32767, RATE), ValueError, r"waveform must be in \[-1, 1\], its peak is 9830"),
        ((TONE * 2**23, RATE), ValueError, r"waveform must be in \[-1, 1\]"),
        ((TONE + 128, RATE), ValueError, "its peak is 128.3"),
        ((TONE, 384_000), ValueError, "sample rate must be in 1..192000 Hz, got 384000"),
        ((TONE, 10**5000), ValueError, "sample rate must be in 1..192000 Hz, got one of over 20 digits"),
        ("https://example.com/v.wav", ValueError, "https://example.com/v.wav is an address"),
    ],
)
def test_prompts_that_cannot_be(prompt, error, message):
    with pytest.raises(error, match=message):
        parse(TEXT, audio_prompt=prompt)


def test_waveforms_of_any_layout(engine):
    forms = [TONE, TONE[::-1].copy()[::-1], TONE.astype(">f4"), TONE.astype(np.longdouble), torch.from_numpy(TONE)]
    forms += [np.stack([TONE, TONE]), np.stack([TONE, TONE], axis=1), TONE * (1.2 / 0.3)]
    for waveform in forms:
        assert len(engine.generate(TEXT, audio_prompt=(waveform, RATE), max_tokens=40, seed=1))


@pytest.mark.parametrize(
    ("gains", "warns"),
    [((1, -1), True), ((1, -0.95), True), ((1, 1, -2), True), ((1, 1), False), ((1, 0), False), ((0, 0), False)],
)
def test_channels_that_cancel_each_other(engine, caplog, gains, warns):
    channels = np.stack([gain * TONE for gain in gains], axis=1)
    engine.generate(TEXT, audio_prompt=(channels, RATE), max_tokens=40, seed=1)
    assert ("cancel each other" in caplog.text) == warns


def test_a_request_with_a_waveform_is_not_taken_for_one_without_a_prompt(engine):
    (request,) = parse_requests(
        TEXT, {}, audio_prompt=(TONE, RATE), config=engine.config, defaults={}, codec=lambda: engine.codec
    )
    with pytest.raises(RuntimeError, match="not been encoded"):
        request.prompt_codes  # noqa: B018
    assert request.encode_prompt(engine.codec).prompt_codes.shape == (8, 9)


# Scripts


@pytest.mark.parametrize("transcript", ["", " \n", "\ufeff", None])
@pytest.mark.parametrize("prompt", [None, CODES])
def test_an_empty_transcript_is_none(transcript, prompt):
    (request,) = parse(TEXT, audio_prompt=prompt, audio_prompt_text=transcript)
    assert request.text_ids.tolist() == parse(TEXT)[0].text_ids.tolist()


@pytest.mark.parametrize("tag", ["[s1]", "[S3]", "[ S1 ]", "[S 1]", "[S10]", "[S-1]", "[Speaker 1]", "\uff3bS1\uff3d"])
def test_tags_that_are_none_are_named_once(caplog, tag):
    parse([f"{tag} One. {tag} Two.", f"[S1] One. {tag} Three."])
    (record,) = caplog.records
    assert f"text holds {tag}, read letter by letter: the speaker tags are [S1] and [S2]" in record.getMessage()


def test_what_is_no_tag_is_no_warning(caplog):
    parse(["[S1] [laughs] (S1) [12] S1: hello [S2]hello"])
    assert not caplog.records


@pytest.mark.parametrize("text", ["[S1]", "[S1] [S2]\n", "[S2]\u200b"])
def test_tags_alone_are_refused(text):
    with pytest.raises(ValueError, match="text holds nothing but speaker tags: there is nothing to say"):
        parse(text)


@pytest.mark.parametrize(
    ("transcript", "message"),
    [
        ("x" * 2000, "has 2000 bytes .* the model reads at most 1024 of it and the text together"),
        ("x" * 1000 + " \n", "has 1000 bytes .* at most 1024"),
        ("a\ud800", "cannot be encoded as UTF-8"),
        (3, "must be a string, got int"),
    ],
)
def test_what_is_wrong_with_the_transcript_is_not_said_of_the_text(transcript, message):
    with pytest.raises((TypeError, ValueError), match=f"^audio_prompt_text {message}"):
        parse("x" * 30, audio_prompt=CODES, audio_prompt_text=transcript)


def test_lengths_that_dia_does_not_speak_well(caplog):
    parse([LONG, "[S1] Hi.", LONG * 3], config=DiaConfig())
    (record,) = caplog.records
    assert record.getMessage().startswith("text of about 0, 30 seconds: Dia sounds unnatural under 5")
    caplog.clear()
    parse(["[S1] Hi.", "x" * 1000])
    parse(LONG, config=DiaConfig())
    assert not caplog.records, "lengths are a matter of the published Dia alone"


def test_min_tokens_puts_off_the_end():
    """A model that ends goes on until min_tokens frames are there, and is the same up to its own end."""
    talker = Engine.load("talker", device="cpu")
    free = talker.generate("[S1] Yes.", seed=1, temperature=0.0, details=True)
    held = talker.generate("[S1] Yes.", seed=1, temperature=0.0, min_tokens=free.frames + 8, details=True)
    assert free.finish_reason == "stop" and held.frames >= free.frames + 8
    assert np.array_equal(held.codes[: free.frames, 0], free.codes[:, 0])
    same = talker.generate("[S1] Yes.", seed=1, temperature=0.0, min_tokens=free.frames, details=True)
    assert np.array_equal(same.codes, free.codes)


def test_min_tokens_leaves_room_for_itself():
    with pytest.raises(ValueError, match="min_tokens must be at most 24, the frames that max_tokens leaves .* got 25"):
        parse(TEXT, {"max_tokens": 40, "min_tokens": 25})
    assert parse(TEXT, {"max_tokens": 40, "min_tokens": 20}, audio_prompt=CODES)[0].params.min_tokens == 20
    with pytest.raises(ValueError, match="audio prompt has 4 frames, max_tokens leaves room for 3"):
        parse(TEXT, {"max_tokens": 40, "min_tokens": 21}, audio_prompt=CODES)


def test_seeds_that_are_drawn_take_all_of_the_range():
    seeds = [request.seed for request in parse(["a"] * 200)]
    assert max(seeds) > 2**40 and len(set(seeds)) == 200


def test_a_slot_has_rows_for_one_frame_at_least():
    config = synthetic_config("synthetic:tiny")
    least, most = config.max_delay + 2, config.decoder.max_position_embeddings
    assert [Limits(max_rows=rows).rows(config) for rows in (least, most, None)] == [least, most, most]
    for rows in (least - 1, most + 1):
        with pytest.raises(ValueError, match=rf"max_rows must be in \[{least}, {most}\] .*, got {rows}"):
            Limits(max_rows=rows).rows(config)
