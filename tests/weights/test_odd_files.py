"""Models as users and attackers bring them: what loads all the same, and what is refused in one line."""

import json
import math
import shutil
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from dia_engine import Engine
from dia_engine.cli import main
from dia_engine.files.hub import find_model
from dia_engine.files.tensors import Checkpoint, open_tensors
from dia_engine.info import describe
from dia_engine.model.config import DiaConfig
from dia_engine.weights.load import load_weights
from dia_engine.weights.source import TALKER_FOLDER, resolve_files, resolve_model
from tests.weights.helpers import (
    CONFIG,
    DOWN,
    OUT,
    QUANTIZED_CONFIG,
    STATE,
    assert_equal,
    changed,
    fused,
    load_quantized,
    small_state,
    transformers_model,
    with_state,
)


def load(path, dtype=torch.float32):
    return load_weights([path], CONFIG, dtype=dtype, device="cpu")


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message and "\x1b" not in message and "weights_only" not in message and len(message) < 2000
    return message


# Files that change


def save_numbers(path, number, length=200):
    """A file that takes the place of another at once, as a trainer saves."""
    new = path.with_name(f"new-{path.name}")
    tensors = {f"t{at}": torch.full((length,), number) for at in range(4)}
    save_file(tensors, new) if path.suffix == ".safetensors" else torch.save(tensors, new)
    new.replace(path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize("length", [200, 100])
def test_a_file_that_is_replaced_while_it_is_read(tmp_path, monkeypatch, name, length):
    monkeypatch.setattr("dia_engine.files.tensors.MAPPED_BYTES", 1000)  # so that each tensor opens it again
    save_numbers(tmp_path / name, 0.0)
    found = Checkpoint([tmp_path / name])
    assert [found.read(f"t{at}").mean().item() for at in range(2)] == [0.0, 0.0]
    save_numbers(tmp_path / name, 1.0, length)
    with pytest.raises(ValueError, match=f"{name}: the file changed while it was read; load it again"):
        found.read("t2")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_file_that_is_replaced_while_it_is_opened(tmp_path, monkeypatch, name):
    save_numbers(tmp_path / name, 0.0)

    def replaced(path, find_tensors):
        opened = open_tensors(path, find_tensors)
        save_numbers(path, 1.0)
        return opened

    monkeypatch.setattr("dia_engine.files.tensors.open_tensors", replaced)
    with pytest.raises(ValueError, match="the file changed while it was read"):
        Checkpoint([tmp_path / name])


# Names and wrappings


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"dia.{name}",
        lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
        lambda name: name.replace("mlp.", "mlp._fsdp_wrapped_module."),
        lambda name: f"_orig_mod.{name.replace('layers.0.', 'layers.0._checkpoint_wrapped_module.')}",
    ],
)
def test_what_wrappers_put_into_names_is_dropped(tmp_path, rename):
    state = small_state()
    save_file({rename(name): tensor for name, tensor in state.items()}, tmp_path / "a.safetensors")
    assert_equal(load(tmp_path / "a.safetensors"), fused(state))


def test_a_misfit_under_a_prefix_names_the_prefix(tmp_path):
    state = small_state()
    del state["logits_dense.weight"]
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"under the prefix module\.\) .* 1 missing: module.logits_dense.weight"):
        load(tmp_path / "a.safetensors")


def test_names_that_wrappers_make_equal_are_duplicates(tmp_path):
    state = small_state()
    save_file(state | {"_orig_mod.logits_dense.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="1 duplicate: logits_dense.weight"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": state, "epoch": 3, "optimizer_state_dict": {"state": {}}},
        lambda state: {"module": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"state_dict": state, "hyper_parameters": {"lr": 0.1}, "callbacks": None},
        lambda state: {**state, "step": 5, "name": "run", "args": {"lr": [0.1]}},
    ],
)
def test_state_dicts_of_trainers(tmp_path, wrap):
    state = small_state()
    torch.save(wrap(state), tmp_path / "a.pth")
    assert_equal(load(tmp_path / "a.pth"), fused(state))


def test_unknown_wrappings_list_their_keys(tmp_path):
    torch.save({"generator": small_state(), "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="found one with the keys generator, epoch$"):
        load(tmp_path / "a.pth")


def bin_shards(folder, index=True):
    state = small_state()
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    weight_map = {}
    for number in range(2):
        file = f"pytorch_model-0000{number + 1}-of-00002.bin"
        part = dict(list(state.items())[number::2])
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if index:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return state


def test_shards_of_torch_files(tmp_path):
    state = bin_shards(tmp_path)
    weights = load_weights(find_model(tmp_path).weights, CONFIG, dtype=torch.float32, device="cpu")
    assert_equal(weights, fused(state))


def test_shards_without_an_index_are_never_to_be_deleted(tmp_path):
    bin_shards(tmp_path, index=False)
    with pytest.raises(FileNotFoundError, match="no pytorch_model.bin.index.json in .* beside") as caught:
        find_model(tmp_path)
    assert "keep one" not in one_line(caught)


def test_files_that_begin_with_a_dot_are_no_weights(tmp_path):
    for name in ("config.json", "dia.safetensors", "._dia.safetensors", ".hidden.pth", "._config.json", "._x.bin"):
        (tmp_path / name).write_bytes(b"\0")
    assert find_model(tmp_path).weights == [tmp_path / "dia.safetensors"]


# Numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["model.decoder.norm.weight", "logits_dense.weight", OUT + "weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_no_numbers(tmp_path, name, value, dtype):
    state = {key: tensor.clone() for key, tensor in small_state().items()}
    state[name].view(-1)[-1] = value
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"a.safetensors: {name} holds NaN or infinity") as caught:
        load(tmp_path / "a.safetensors", dtype)
    one_line(caught)


def test_numbers_beyond_float16(tmp_path):
    state = {key: tensor.clone() for key, tensor in small_state().items()}
    state[DOWN].view(-1)[0] = 1e5
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"float16 cannot hold the numbers of {DOWN}; use bfloat16 or float32"):
        load(tmp_path / "a.safetensors", torch.float16)
    assert load(tmp_path / "a.safetensors", torch.bfloat16)
    state["model.decoder.norm.weight"][0] = 1e5  # norms are float32 in any case
    state[DOWN].view(-1)[0] = 1.0
    save_file(state, tmp_path / "b.safetensors")
    assert load(tmp_path / "b.safetensors", torch.float16)


@pytest.mark.parametrize("quant", ["int8", "nf4"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_are_looked_at_before_they_are_quantized(tmp_path, quant, value):
    model = transformers_model(QUANTIZED_CONFIG)
    with torch.no_grad():
        model.get_parameter(DOWN).view(-1)[3] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="down_proj.weight holds NaN or infinity"):
        load_quantized(tmp_path, quant)


# Configs


def config_with(part, **values):
    raw = CONFIG.to_dict()
    (raw if part is None else raw[part]).update(values)
    return raw


SIZES = ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"]
SIZES += ["head_dim", "vocab_size", "max_position_embeddings"]


@pytest.mark.parametrize("value", [10**6 + 10**5, 10**9, 10**400, 0, -1, 1.5, True, "8"])
@pytest.mark.parametrize(
    "part, name", [*(("encoder_config", name) for name in SIZES), ("decoder_config", "num_channels")]
)
def test_sizes_beyond_any_model(tmp_path, part, name, value):
    started = time.process_time()
    (tmp_path / "config.json").write_text(json.dumps(config_with(part, **{name: value})))
    with pytest.raises(ValueError, match=rf"config.json: config: {part}.{name} must be ") as caught:
        resolve_model(tmp_path)
    assert len(one_line(caught)) < 400 and time.process_time() - started < 2


@pytest.mark.parametrize("name", ["norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e400", "NaN", "-Infinity", "1e-400", "1e39", "0", "true"])
def test_floats_beyond_float32(tmp_path, name, value):
    text = json.dumps(config_with("decoder_config", **{name: "HERE"})).replace('"HERE"', value)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"decoder_config.{name} must be ") as caught:
        resolve_model(tmp_path)
    one_line(caught)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": 10**400}, "eos_token_id must be an integer in"),
        ({"delay_pattern": [0] * 10**5}, "has 100000 entries"),
        ({"delay_pattern": [0, *[10**300] * (CONFIG.decoder.num_channels - 1)]}, "leaves no row for audio"),
        ({"delay_pattern": "0" * 10**5}, "delay_pattern must be a list"),
    ],
)
def test_other_values_of_a_config(tmp_path, values, message):
    (tmp_path / "config.json").write_text(json.dumps(config_with(None, **values)))
    with pytest.raises(ValueError, match=message) as caught:
        resolve_model(tmp_path)
    assert len(one_line(caught)) < 500


@pytest.mark.parametrize(
    "scaling",
    [{"rope_type": "default"}, {"type": "default"}, {"rope_type": None}, {}, {"type": "default", "rope_theta": 1}],
)
def test_no_scaling_in_other_words(scaling):
    assert DiaConfig.from_dict(config_with("decoder_config", rope_scaling=scaling)) == CONFIG


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 2.0}, {"rope_type": "yarn"}, 2.0, "linear", [1]])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_true_scaling_is_refused(scaling, key):
    with pytest.raises(ValueError, match="RoPE scaling|must be a JSON object"):
        DiaConfig.from_dict(config_with("decoder_config", **{key: scaling}))


# Quantized tensors


def replace(name, value):
    return lambda tensors: tensors.update({name: value(tensors[name]) if callable(value) else value})


SCB, FORMAT, ABSMAX, MAP = f"{OUT}SCB", f"{OUT}weight_format", f"{DOWN}.absmax", f"{DOWN}.quant_map"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace(SCB, lambda t: t.to(torch.int32)), "SCB is I32, not floating point"),
        (replace(SCB, lambda t: t[:, None].contiguous()), "SCB has no int8 weight of as many rows"),
        (replace(SCB, torch.tensor(1.0)), "SCB has no int8 weight of as many rows"),
        (replace(SCB, lambda t: t * math.nan), f"{OUT}weight holds NaN or infinity"),
        (replace(SCB, lambda t: t * math.inf), f"{OUT}weight holds NaN or infinity"),
        (replace(f"{OUT}weight", torch.tensor(1, dtype=torch.int8)), "SCB has no int8 weight"),
        (replace(f"{OUT}weight", lambda t: t.float()), "SCB has no int8 weight"),
        (replace(FORMAT, torch.zeros(3, dtype=torch.uint8)), r"weight_format is torch.uint8 \[3\], not one integer"),
        (replace(FORMAT, torch.zeros(())), r"weight_format is torch.float32 \[\], not one integer"),
        (replace(FORMAT, torch.zeros(0, dtype=torch.uint8)), r"weight_format is torch.uint8 \[0\]"),
        (replace(ABSMAX, lambda t: t.to(torch.int32)), "absmax is I32, not uint8 or floating point"),
        (replace(ABSMAX, lambda t: t.to(torch.uint8)), "is in 8 bits, and its quant_state has no nested_blocksize"),
        (replace(ABSMAX, lambda t: t[:, None].contiguous()), "do not hold"),
        (replace(ABSMAX, lambda t: t[:-1].clone()), "do not hold"),
        (replace(ABSMAX, lambda t: t * math.nan), "holds NaN or infinity"),
        (replace(DOWN, lambda t: t[:-1].clone()), "do not hold"),
        (replace(MAP, lambda t: t[:-1].clone()), r"quant_map is torch.float32 \[15\], not floating point \[16\]"),
        (replace(MAP, lambda t: t.to(torch.uint8)), "quant_map is torch.uint8"),
        (replace(MAP, lambda t: t.flip(0)), "quant_map has other values than NF4's"),
        (lambda tensors: tensors.pop(MAP), "quant_map is missing"),
        (replace(STATE, lambda t: t.float()), "not a JSON text in bytes"),
        (replace(STATE, lambda t: t[:, None].contiguous()), "not a JSON text in bytes"),
        (replace(STATE, torch.zeros(5000, dtype=torch.uint8)), r"\[5000\], not a JSON text in bytes"),
        (replace(STATE, torch.tensor(list(b"[" * 4000), dtype=torch.uint8)), "is damaged"),
        (replace(STATE, torch.tensor(list(b"[]"), dtype=torch.uint8)), "a JSON object is expected"),
        (with_state(shape=[10**400, 1]), "shape must be a positive integer"),
        (with_state(shape=[2, 3, 4]), "shape must have two sizes"),
        (with_state(shape=[True, 4]), "shape must be a positive integer, got True"),
        (with_state(blocksize="64"), "blocksize must be a positive integer, got '64'"),
        (with_state(nested_blocksize=0), "nested_blocksize must be a positive integer, got 0"),
        (with_state(nested_offset=math.nan), "nested_offset must be a finite number, got nan"),
        (with_state(nested_offset=10**400), "nested_offset must be a finite number"),
        (lambda t: t.update({STATE.replace("nf4", "fp4"): t[STATE].clone()}), "fp4 in blocks of 64|two quant_states"),
        (lambda t: t.update({DOWN.replace("weight", "SCB"): torch.zeros(64)}), "SCB has no int8 weight|do not hold"),
    ],
)  # fmt: skip
def test_quantized_tensors_whose_parts_are_odd(quantized_source, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_quantized(changed(quantized_source, tmp_path / "bad", change))
    assert "model.safetensors: " in one_line(caught)


def nested(tensors, blocks=1024):
    """NF4's scales in 8 bits, as double quantization has them."""
    count = len(tensors[ABSMAX])
    with_state(nested_blocksize=blocks, nested_offset=0.5)(tensors)
    tensors[ABSMAX] = torch.arange(count, dtype=torch.uint8)
    tensors[f"{DOWN}.nested_absmax"] = torch.full((-(-count // blocks),), 2.0)
    tensors[f"{DOWN}.nested_quant_map"] = torch.linspace(-1, 1, 256)


@pytest.mark.parametrize("blocks", [1, 3, 1024, 2**31 - 1])
def test_nested_scales(quantized_source, tmp_path, blocks):
    weights = load_quantized(changed(quantized_source, tmp_path / "nested", lambda tensors: nested(tensors, blocks)))
    absmax = weights["decoder.layers.0.mlp.down.weight"].absmax.flatten()
    assert torch.equal(absmax, torch.linspace(-1, 1, 256)[: len(absmax)] * 2.0 + 0.5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("nested_absmax", torch.ones(7), r"nested_absmax is torch.float32 \[7\], not floating point \[1\]"),
        ("nested_absmax", torch.ones(1, dtype=torch.uint8), "nested_absmax is torch.uint8"),
        ("nested_absmax", None, "nested_absmax is missing"),
        ("nested_quant_map", torch.ones(255), r"not floating point \[256\]"),
        ("nested_quant_map", None, "nested_quant_map is missing"),
        ("nested_absmax", torch.tensor([math.inf]), "holds NaN or infinity"),
    ],
)
def test_nested_scales_that_are_odd(quantized_source, tmp_path, name, value, message):
    def change(tensors):
        nested(tensors)
        tensors.pop(f"{DOWN}.{name}") if value is None else tensors.update({f"{DOWN}.{name}": value})

    with pytest.raises(ValueError, match=message) as caught:
        load_quantized(changed(quantized_source, tmp_path / "bad", change))
    one_line(caught)


@pytest.fixture(scope="module")
def quantized_source(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "plain"
    transformers_model(QUANTIZED_CONFIG).save_pretrained(path)
    return path


# What lies beside a model


def talker_copy(folder):
    shutil.copytree(TALKER_FOLDER, folder)
    return folder


def test_a_default_for_more_rows_than_there_are_is_as_many_as_there_are(tmp_path):
    """Also for `say`, which checks its request before the model is loaded."""
    folder = tmp_path / "model"
    shutil.copytree(TALKER_FOLDER, folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    generation["dia_engine"]["max_tokens"] = 2000
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert resolve_model(str(folder)).defaults["max_tokens"] == 512
    assert main(["say", "--model", str(folder), "[S1] Yes.", "-o", str(tmp_path / "a.wav"), "--seed", "1"]) == 0


def test_files_named_one_by_one_find_codec_and_defaults(tmp_path):
    folder = talker_copy(tmp_path / "own")
    (tmp_path / "elsewhere").mkdir()
    config = (folder / "config.json").rename(tmp_path / "elsewhere" / "config.json")
    source = resolve_files(config, folder / "model.safetensors")
    assert source.load_codec(device=torch.device("cpu"), dtype=torch.float32).sample_rate == 16000
    assert source.defaults == {}, "those beside the config, and there are none"
    (folder / "generation_config.json").rename(config.parent / "generation_config.json")
    assert resolve_files(str(config), str(folder / "model.safetensors")).defaults


@pytest.mark.parametrize("how", ["missing", "broken link", "pointer", "empty folder", "file", "link to nothing"])
def test_a_damaged_codec_folder_is_no_trip_to_the_hub(tmp_path, how, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # any import of it would raise ImportError
    folder = talker_copy(tmp_path / "own")
    codec = folder / "codec"
    config = codec / "config.json"
    if how == "pointer":
        config.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    else:
        config.unlink()
    if how == "broken link":
        config.symlink_to("../../blobs/gone")
    if how in ("empty folder", "file", "link to nothing"):
        (codec / "model.safetensors").unlink()
    if how in ("file", "link to nothing"):
        codec.rmdir()
        codec.write_text("x") if how == "file" else codec.symlink_to("gone")
    with pytest.raises((FileNotFoundError, ValueError), match=f"{codec}") as caught:
        Engine.load(folder)
    one_line(caught)
    assert Engine.load(folder, load_dac=False).codec is None


def test_every_kind_of_source_answers_alike(tmp_path):
    folder = talker_copy(tmp_path / "own")
    for name in ("talker", folder, str(folder), "synthetic:tiny"):
        source = resolve_model(name)
        assert source.stored_formats == {} and source.description
        assert source.load_codec(device=torch.device("cpu"), dtype=torch.float32).num_codebooks
        assert len(dict(source.stream_weights(dtype=torch.float32, device="cpu"))) > 10
        assert describe(name, None, "float32").startswith(f"model       {name}")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "generation_config.json", "codec/model.safetensors"]
)
def test_a_git_lfs_pointer_is_named_as_such_everywhere(tmp_path, name):
    folder = talker_copy(tmp_path / "own")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(ValueError, match=f"{folder / name}: a Git LFS pointer, .* `git lfs pull`"):
        Engine.load(folder)


def test_a_codec_whose_weights_are_no_numbers(tmp_path):
    folder = talker_copy(tmp_path / "own")
    tensors = load_file(folder / "codec" / "model.safetensors")
    name = next(name for name in tensors if name.endswith("bias"))
    tensors[name] = tensors[name].float()
    tensors[name][0] = math.nan
    save_file(tensors, folder / "codec" / "model.safetensors")
    with pytest.raises(ValueError, match=f"codec/model.safetensors: {name} holds NaN or infinity"):
        Engine.load(folder)
    tensors[name][0] = 1e5
    save_file(tensors, folder / "codec" / "model.safetensors")
    with pytest.raises(ValueError, match="float16 cannot hold the numbers of"):
        Engine.load(folder, codec_dtype="float16")
