"""The codec: parity with descript-audio-codec (recorded) and transformers, file formats, and every refusal."""

import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations
from transformers import DacConfig, DacModel

from dia_engine.codec import DEFAULT_CODEC, Codec, CodecConfig
from dia_engine.files.waveform import resample

RECORDED = Path(__file__).parents[1] / "data" / "dac"
SMALL = dict(
    encoder_hidden_size=4,
    decoder_hidden_size=16,
    downsampling_ratios=[2, 4],
    n_codebooks=3,
    codebook_size=16,
    codebook_dim=4,
    sampling_rate=16000,
)


def reference_model(seed=0, **config):
    """A transformers DacModel with weights that exercise every term: biases, snake alphas away from 1, large codes."""
    model = DacModel(DacConfig(**{**SMALL, **config})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.copy_(0.3 + 1.5 * torch.rand(parameter.shape, generator=generator))
            else:
                scale = 0.1 if name.endswith("bias") else 1.0 / parameter[0].numel() ** 0.5
                scale *= 0.4 if ".res_unit" in name else 1.0
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def folder(tmp_path):
    """A small codec in transformers' layout."""
    reference_model().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def codec():
    return Codec.from_config(CodecConfig(**SMALL | {"downsampling_ratios": (2, 4), "upsampling_ratios": (4, 2)}))


def random_codes(codec, frames=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, codec.codebook_size, (frames, codec.num_codebooks), generator=generator)


def random_wave(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(samples, generator=generator)


def save_weights(path, config_path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_bytes(Path(config_path).read_bytes())


# Parity


@pytest.mark.parametrize("source", [RECORDED, RECORDED / "weights.pth", str(RECORDED / "weights.pth")])
def test_recorded_package(source):
    codec = Codec.load(source, device="cpu")
    case = load_file(RECORDED / "case.safetensors")
    waveform = codec.decode(case["codes"][0].t())
    assert waveform.shape == case["audio"].shape == (40 * codec.hop_length,) and waveform.dtype == torch.float32
    assert (waveform - case["audio"]).abs().max() < 1e-4
    codes = codec.encode(case["wav"], 44100)
    assert codes.dtype == torch.int64 and torch.equal(codes, case["encoded"].t())
    assert (codec.sample_rate, codec.hop_length, codec.num_codebooks, codec.codebook_size) == (44100, 512, 9, 1024)


@pytest.mark.parametrize(
    "config",
    [
        {},
        dict(downsampling_ratios=[3, 2], n_codebooks=1, codebook_size=64, codebook_dim=2, sampling_rate=11025),
        dict(downsampling_ratios=[2, 5, 3], n_codebooks=9, decoder_hidden_size=24, sampling_rate=48000),
        dict(downsampling_ratios=[8], n_codebooks=2, codebook_size=1024, codebook_dim=8, sampling_rate=24000),
        dict(downsampling_ratios=[4, 2], upsampling_ratios=[8], encoder_hidden_size=6, hidden_size=10, n_codebooks=5),
        dict(downsampling_ratios=[7, 1, 2], decoder_hidden_size=21, n_codebooks=4, codebook_size=2),
        dict(downsampling_ratios=[2, 2, 2, 2], encoder_hidden_size=3, decoder_hidden_size=32, codebook_dim=5),
    ],
)
def test_transformers_parity(tmp_path, config):
    model = reference_model(seed=len(str(config)), **config)
    model.save_pretrained(tmp_path)
    codec = Codec.load(tmp_path, device="cpu")
    waveform = random_wave(701)
    padded = nn.functional.pad(waveform, (0, -701 % model.config.hop_length))
    with torch.no_grad():
        expected_codes = model.encode(padded[None, None]).audio_codes[0].t()
        codes = random_codes(codec)
        expected_wave = model.decode(audio_codes=codes.t()[None]).audio_values[0]
    assert len(expected_codes.unique()) > 1 and expected_wave.std() > 0.02
    assert torch.equal(codec.encode(waveform, model.config.sampling_rate), expected_codes)
    decoded = codec.decode(codes)
    assert decoded.shape == expected_wave.shape
    assert (decoded - expected_wave).abs().max() < 1e-4


def test_equal_entries_give_the_first(tmp_path):
    model = reference_model(n_codebooks=2)
    for book in model.quantizer.quantizers:
        entries = book.codebook.weight.data
        entries[8:] = entries[:8]
    model.save_pretrained(tmp_path)
    waveform = random_wave(800)
    with torch.no_grad():
        expected = model.encode(waveform[None, None]).audio_codes[0].t()
    codes = Codec.load(tmp_path, device="cpu").encode(waveform, 16000)
    assert torch.equal(codes, expected) and codes.max() < 8


def test_a_window_with_margins_decodes_exactly():
    """What streaming rests on: ten frames a side are more than the decoder sees with published ratios."""
    ratios = (8, 8, 4, 2)
    codec = Codec.from_config(CodecConfig(4, 32, 64, ratios[::-1], ratios, 2, 16, 4), device="cpu")
    codes = random_codes(codec, 40)
    whole, window = codec.decode(codes), codec.decode(codes[5:35])
    hop = codec.hop_length
    assert (window[10 * hop : -10 * hop] - whole[15 * hop : 25 * hop]).abs().max() < 1e-6
    strides = [layer.stride[0] for layer in codec.decoder if isinstance(layer, nn.ConvTranspose1d)]
    assert tuple(strides) == ratios


def test_lower_precision_stays_close(folder):
    exact, rounded = Codec.load(folder, device="cpu"), Codec.load(folder, device="cpu", dtype=torch.bfloat16)
    codes = random_codes(exact)
    waveform = rounded.decode(codes)
    assert waveform.dtype == torch.float32 and rounded.encode(waveform, 16000).dtype == torch.int64
    assert 0 < (waveform - exact.decode(codes)).abs().max() < 0.1


# Waveforms and codes as callers bring them


@pytest.mark.parametrize("samples, frames", [(1, 1), (8, 1), (9, 2), (800, 100)])
def test_encode_pads_to_whole_frames(codec, samples, frames):
    waveform = random_wave(samples)
    codes = codec.encode(waveform, 16000)
    assert codes.shape == (frames, 3)
    padded = nn.functional.pad(waveform, (0, frames * 8 - samples))
    assert torch.equal(codec.encode(padded.numpy(), 16000), codes)


def test_encode_resamples(codec):
    waveform = random_wave(4800).numpy()
    expected = codec.encode(resample(waveform, 48000, 16000), 16000)
    assert torch.equal(codec.encode(waveform, 48000), expected) and len(expected) == 200


def test_encode_leaves_the_waveform_alone(codec):
    waveform = random_wave(801).numpy()
    waveform.setflags(write=False)
    before = waveform.copy()
    assert torch.equal(codec.encode(waveform, 16000), codec.encode(waveform.astype(np.float64), 16000))
    np.testing.assert_array_equal(waveform, before)


def test_decode_takes_any_integers(codec):
    codes = random_codes(codec)
    expected = codec.decode(codes)
    for other in (codes.to(torch.uint8), codes.to(torch.int16), codes.numpy(), codes.numpy().astype(">u2")[::1]):
        assert torch.equal(codec.decode(other), expected)
    assert not expected.requires_grad and expected.mul_(2) is expected


def test_no_frames_make_no_sound(codec):
    assert codec.decode(torch.zeros(0, 3, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(
    "codes, error, message",
    [
        ([[0, 1, 2]], TypeError, "list"),
        (torch.zeros(4, 3), TypeError, "float32"),
        (torch.zeros(4, 3, dtype=torch.bool), TypeError, "bool"),
        (np.zeros((4, 3)), TypeError, "float64"),
        (torch.zeros(3, 4, dtype=torch.int64), ValueError, r"\[frames, 3\], got \[3, 4\]"),
        (torch.zeros(1, 4, 3, dtype=torch.int64), ValueError, r"got \[1, 4, 3\]"),
        (torch.tensor([[0, 1, 2], [3, 16, 5]]), ValueError, r"\[0, 16\), got 16 at frame 1, codebook 1"),
        (np.array([[0, 1, -1]]), ValueError, "got -1 at frame 0, codebook 2"),
    ],
)
def test_bad_codes(codec, codes, error, message):
    with pytest.raises(error, match=message):
        codec.decode(codes)


@pytest.mark.parametrize(
    "waveform, rate, error, message",
    [
        (np.zeros((1, 90), np.float32), 16000, ValueError, r"shape \[1, 90\]"),
        (torch.zeros(0), 16000, ValueError, "empty"),
        (torch.tensor([0.0, float("nan")]), 16000, ValueError, "sample 1 is nan"),
        (torch.tensor([float("inf")]), 48000, ValueError, "sample 0 is inf"),
        (np.zeros(90, np.int16), 16000, TypeError, "int16"),
        (torch.zeros(90), 0, ValueError, "sample_rate"),
        (torch.zeros(90), 16000.0, TypeError, "sample_rate"),
        (torch.zeros(90), True, TypeError, "sample_rate"),
    ],
)
def test_bad_waveforms(codec, waveform, rate, error, message):
    with pytest.raises(error, match=message):
        codec.encode(waveform, rate)


# Random weights


def test_from_config_depends_on_config_and_seed_alone(codec):
    torch.manual_seed(5)
    codes = random_codes(codec)
    same, other = Codec.from_config(codec.config), Codec.from_config(codec.config, seed=1)
    assert torch.equal(codec.decode(codes), same.decode(codes))
    assert not torch.equal(codec.decode(codes), other.decode(codes))
    assert 0.05 < codec.decode(codes).std() < 0.9
    assert torch.initial_seed() == 5


# Files


def test_half_precision_on_disk(folder):
    model = reference_model()
    model.half().save_pretrained(folder / "half")
    codec = Codec.load(folder / "half", device="cpu")
    codes = random_codes(codec)
    with torch.no_grad():
        expected = model.float().decode(audio_codes=codes.t()[None]).audio_values[0]
    assert codec.encoder[0].weight.dtype == torch.float32
    assert (codec.decode(codes) - expected).abs().max() < 1e-4


def test_sharded_folder(folder):
    whole = Codec.load(folder, device="cpu")
    tensors = load_file(folder / "model.safetensors")
    names, weight_map = sorted(tensors), {}
    for index in range(2):
        shard = f"model-0000{index + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[index::2]}, folder / shard)
        weight_map |= dict.fromkeys(names[index::2], shard)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    codes = random_codes(whole)
    assert torch.equal(Codec.load(folder, device="cpu").decode(codes), whole.decode(codes))

    (folder / shard).unlink()
    with pytest.raises(FileNotFoundError, match=shard):
        Codec.load(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(ValueError, match="same folder.*'../a.safetensors'"):
        Codec.load(folder)


def weight_normed(model, spelling):
    """The model's tensors with weight norm on every convolution, in one of torch's spellings."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("codebook.weight") or not name.endswith(".weight"):
            tensors[name] = tensor
            continue
        layer = nn.Conv1d(*tensor.shape[1::-1], tensor.shape[2], bias=False)
        layer.weight.data = tensor.clone()
        normed = parametrizations.weight_norm(layer) if spelling == "new" else nn.utils.weight_norm(layer)
        parts = {key: value.clone() for key, value in normed.state_dict().items()}
        for key in parts:
            if key.endswith(("_v", "original1")):
                parts[key] *= 3.0  # the length of the direction must not matter
        tensors |= {f"{name.removesuffix('weight')}{key}": value for key, value in parts.items()}
    return tensors


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("spelling, probe", [("old", "weight_g"), ("new", "parametrizations.weight.original0")])
def test_weight_norm_is_folded(folder, spelling, probe):
    plain = Codec.load(folder, device="cpu")
    tensors = weight_normed(reference_model(), spelling)
    assert f"decoder.block.0.conv_t1.{probe}" in tensors and "decoder.conv1.weight" not in tensors
    save_weights(folder, folder / "config.json", tensors)
    folded, codes = Codec.load(folder, device="cpu"), random_codes(plain)
    assert (folded.decode(codes) - plain.decode(codes)).abs().max() < 1e-5
    assert torch.equal(folded.encode(random_wave(800), 16000), plain.encode(random_wave(800), 16000))


def test_config_defaults_are_those_of_each_source():
    assert CodecConfig.from_transformers({"model_type": "dac"}).sampling_rate == DacConfig().sampling_rate
    config = CodecConfig.from_package({"encoder_dim": 32, "codebook_dim": [8] * 9, "latent_dim": None, "attn": 0})
    assert (config.hidden_size, config.sampling_rate, config.codebook_dim) == (512, 44100, 8)
    assert CodecConfig.from_package({"encoder_dim": 32, "latent_dim": 72}).hidden_size == 72
    assert CodecConfig().hop_length == 512


# Refusals


def test_weights_that_do_not_fit_are_all_listed(folder):
    tensors = load_file(folder / "model.safetensors")
    for index in range(12):
        tensors[f"more.{index}"] = torch.zeros(1)
    del tensors["encoder.conv1.bias"], tensors["quantizer.quantizers.1.codebook.weight"]
    tensors["decoder.conv1.weight"] = torch.zeros(2, 3)
    tensors["decoder.conv2.bias"] = torch.zeros(1, dtype=torch.int64)
    save_weights(folder, folder / "config.json", tensors)
    with pytest.raises(ValueError) as caught:
        Codec.load(folder)
    message = str(caught.value)
    assert str(folder / "model.safetensors") in message and "\n" not in message
    assert "2 missing: encoder.conv1.bias, quantizer.quantizers.1.codebook.weight;" in message
    assert "12 unexpected: more.0" in message and "and 2 more" in message
    assert "decoder.conv1.weight [2, 3] instead of [16, 16, 7]" in message
    assert "decoder.conv2.bias (I64)" in message


def test_half_a_weight_norm_is_missing_the_other_half(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.conv1.weight_v"] = tensors.pop("decoder.conv1.weight")
    save_weights(folder, folder / "config.json", tensors)
    with pytest.raises(ValueError, match=r"1 missing: decoder.conv1.weight_g$"):
        Codec.load(folder)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_safetensors(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors: truncated, damaged or no safetensors file"):
        Codec.load(folder)


@pytest.mark.parametrize("content", [b"", b"hello", "half"])
def test_damaged_weights_pth(tmp_path, content):
    if content == "half":
        content = (RECORDED / "weights.pth").read_bytes()[:1_000_000]
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match="weights.pth: damaged, or not a file of tensors only"):
        Codec.load(tmp_path)


class Anything:
    """An object that a weights file must not carry."""


@pytest.mark.parametrize(
    "content, message",
    [
        ({"state_dict": {}, "metadata": {}}, "is not a weights.pth of descript-audio-codec"),
        ({"state_dict": {"a": 1}, "metadata": {"kwargs": {}}}, "is not a weights.pth of descript-audio-codec"),
        (torch.zeros(3), "is not a weights.pth of descript-audio-codec"),
        ({"state_dict": {}, "metadata": {"kwargs": {"n_mels": 80}}}, "weights.pth: codec config: .*not those of a DAC"),
        ({"state_dict": {}, "metadata": {"kwargs": {"encoder_dim": "8"}}}, "encoder_hidden_size must be a positive"),
        ({"state_dict": {}, "metadata": {"kwargs": {"encoder_dim": 8}}}, r"\d+ missing: encoder.block.0.weight, "),
        ({"state_dict": Anything(), "metadata": {}}, "more than tensors and plain values"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pth_that_is_no_codec(tmp_path, content, message, zipped):
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=message):
        Codec.load(tmp_path / "weights.pth")


def test_widths_that_take_forever_to_compare():
    first = second = 1
    for _ in range(18):
        first, second = (first, first), (second, second)
    with pytest.raises(ValueError, match="codebook_dim must be one for all codebooks, got a very large list"):
        CodecConfig.from_package({"encoder_dim": 32, "n_codebooks": 2, "codebook_dim": [first, second]})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "dia"}, "model_type must be 'dac', got 'dia'"),
        ({"downsampling_ratios": 8}, "downsampling_ratios must be a list"),
        ({"downsampling_ratios": [2, 0]}, r"downsampling_ratios must hold one or more positive integers, got \[2, 0\]"),
        ({"upsampling_ratios": []}, "upsampling_ratios must hold"),
        ({"upsampling_ratios": [2, 2]}, "must have the same product"),
        ({"hop_length": 9}, "hop_length 9 is not the product"),
        ({"codebook_dim": 1.5}, "codebook_dim must be a positive integer, got 1.5"),
        ({"sampling_rate": True}, "sampling_rate must be a positive integer, got True"),
        ({"encoder_hidden_size": None}, "encoder_hidden_size must be a positive integer, got None"),
        ({"decoder_hidden_size": 3}, "decoder_hidden_size 3 cannot be halved 2 times"),
        ({"decoder_hidden_size": 10**9}, "decoder_hidden_size must be at most 131072, got 1000000000"),
        ({"n_codebooks": 10**6}, "n_codebooks must be at most 256, got 1000000"),
        ({"codebook_size": 10**400}, r"codebook_size must be at most 1048576, got 10+\.\.\. \(401 characters\)"),
        ({"sampling_rate": 192_001}, "sampling_rate must be at most 192000, got 192001"),
        ({"downsampling_ratios": [1] * 10**5}, "downsampling_ratios must hold at most 16 integers of at most 4096"),
        ({"downsampling_ratios": [2, 10**9], "upsampling_ratios": [10**9, 2]}, "at most 16 integers of at most 4096"),
        (
            {"downsampling_ratios": [4096, 4096], "upsampling_ratios": [4096, 4096]},
            "a frame must have at most 1048576 samples, got 16777216",
        ),
        ({"model_type": "x" * 10**5}, r"model_type must be 'dac', got 'x+\.\.\. "),
    ],
)
def test_config_that_is_no_codec(folder, change, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"config.json: codec config: .*{message}"):
        Codec.load(folder)


def test_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        Codec.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        Codec.load(folder)
    (folder / "config.json").write_text('{"model_type":' * 100_000)
    with pytest.raises(ValueError, match="config.json is not JSON that this engine reads: it is nested too deeply"):
        Codec.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json"):
        Codec.load(folder)
    (folder / "config.json").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match="config.json: a broken link to gone"):
        Codec.load(folder)


def test_a_config_with_a_byte_order_mark(folder):
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert Codec.load(folder, device="cpu", dtype="float32").num_codebooks == 3


@pytest.mark.parametrize("name", ["model.safetensors", "weights.pth", "config.json"])
def test_git_lfs_pointers(folder, name):
    if name == "weights.pth":
        (folder / "model.safetensors").unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(ValueError, match=f"{folder / name}: a Git LFS pointer.*git lfs pull"):
        Codec.load(folder)


def test_places_without_a_codec(folder):
    (folder / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="no codec in .*bare.*weights.pth"):
        Codec.load(folder / "bare")
    for nowhere in ("./nowhere", "a/b/c", "weights.pth", "~/no-such-folder", "~nobody/codec", folder / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no codec at .*no such file or folder"):
            Codec.load(nowhere)
    with pytest.raises(ValueError, match="pass the folder"):
        Codec.load(folder / "model.safetensors")
    with pytest.raises(ValueError, match="revision 'main' has no meaning for .*it applies to hub ids only"):
        Codec.load(folder, revision="main")
    with pytest.raises(TypeError, match="int"):
        Codec.load(7)
    with pytest.raises(ValueError, match="codec must be a folder or a hub id such as .*, got an empty string"):
        Codec.load("")


def test_unusable_device_and_dtype(folder):
    for device in ("quantum", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
            Codec.load(folder, device=device)
    for dtype in (torch.int8, "int8", "fp32", None):
        with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, got"):
            Codec.load(folder, dtype=dtype)


# The hub


def test_hub_gets_only_what_is_needed(folder, monkeypatch):
    calls = []

    def download(repository, **options):
        calls.append((repository, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    Codec.load(revision="abc", device="cpu")
    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json"]
    assert calls == [(DEFAULT_CODEC, {"revision": "abc", "allow_patterns": patterns})]


def test_hub_that_cannot_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        Codec.load("someone/nothing", revision="v1")
    message = str(caught.value)
    assert "codec someone/nothing at revision v1" in message and "pass a local folder" in message
    assert "hf download someone/nothing" in message and "\n" not in message


def test_hub_id_that_cannot_be_one():
    with pytest.raises(FileNotFoundError, match="no codec at not an id: .*; a codec on the hub is named owner/name"):
        Codec.load("not an id")
