"""Checkpoints of both layouts against transformers' own reading, every refusal, and the memory that loading takes."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dia_engine.files import tensors as checkpoint
from dia_engine.model.config import DiaConfig
from dia_engine.model.shapes import parameter_shapes
from dia_engine.weights.load import DiaCheckpoint, load_weights
from dia_engine.weights.save import save_weights
from tests.weights.helpers import (
    CONFIG,
    assert_equal,
    fused,
    nari_state,
    random_config,
    small_state,
    transformers_model,
)

NARI_FOLDER = Path(__file__).parents[1] / "data" / "nari_layout"
GIGABYTE = 10**9
CONFIGS = [random_config(seed) for seed in range(4)]


def read_with_transformers(folder: Path) -> dict[str, torch.Tensor]:
    transformers = pytest.importorskip("transformers")
    return transformers.DiaForConditionalGeneration.from_pretrained(folder, dtype="auto").state_dict()


def load_state(state: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    save_file(state, folder / "model.safetensors")
    return load_weights([folder / "model.safetensors"], CONFIG, dtype=torch.float32, device="cpu")


# Reading


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("shard_size", ["5GB", "8KB"])
def test_reads_what_transformers_saves(tmp_path, config, shard_size):
    model = transformers_model(config)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == "8KB")
    ours = load_weights(files, config, dtype=torch.float32, device="cpu")
    assert_equal(ours, fused(model.state_dict()))
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == parameter_shapes(config)
    assert list(ours) == list(parameter_shapes(config))


@pytest.mark.parametrize("config", CONFIGS)
def test_reads_the_same_from_nari_layout(tmp_path, config):
    state = dict(transformers_model(config).state_dict())
    save_file(nari_state(state, config), tmp_path / "anything.safetensors")
    ours = load_weights([tmp_path / "anything.safetensors"], config, dtype=torch.float32, device="cpu")
    assert_equal(ours, fused(state))


def test_reads_a_recorded_nari_checkpoint():
    """Each fused matrix does to a vector what the reference's tensordot over the stored tensor does."""
    config = DiaConfig.from_file(NARI_FOLDER / "config.json")
    stored = {name: tensor.double() for name, tensor in load_file(NARI_FOLDER / "model.safetensors").items()}
    ours = load_weights([NARI_FOLDER / "model.safetensors"], config, dtype=torch.float32, device="cpu")
    torch.manual_seed(0)

    def check(name, *sources):
        inputs = torch.randn(ours[name].shape[1], dtype=torch.float64)
        outputs = []
        for source in sources:
            weight = stored[f"{source}.weight"]
            axes = 2 if source.endswith("o_proj") else 1
            outputs.append(torch.tensordot(inputs.reshape(weight.shape[:axes]), weight, dims=axes).flatten())
        torch.testing.assert_close(ours[name].double() @ inputs, torch.cat(outputs))

    for layer in ("encoder.layers.1", "decoder.layers.2"):
        check(f"{layer}.self_attn.qkv.weight", *(f"{layer}.self_attention.{letter}_proj" for letter in "qkv"))
        check(f"{layer}.self_attn.o.weight", f"{layer}.self_attention.o_proj")
        check(f"{layer}.mlp.gate_up.weight", f"{layer}.mlp.wi_fused")
        check(f"{layer}.mlp.down.weight", f"{layer}.mlp.wo")
    check("decoder.layers.2.cross_attn.q.weight", "decoder.layers.2.cross_attention.q_proj")
    check("decoder.layers.2.cross_attn.kv.weight", *(f"decoder.layers.2.cross_attention.{x}_proj" for x in "kv"))
    check("decoder.layers.2.cross_attn.o.weight", "decoder.layers.2.cross_attention.o_proj")
    check("decoder.head.weight", "decoder.logits_dense")
    embedding = ours["decoder.embedding.weight"].unflatten(0, (9, 1028))
    for channel in range(9):
        assert torch.equal(embedding[channel].double(), stored[f"decoder.embeddings.{channel}.weight"])


@pytest.mark.parametrize("name", ["dia-v1.pth", "pytorch_model.bin"])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("new_zip", [True, False])
def test_reads_torch_files(tmp_path, name, wrap, new_zip):
    config = DiaConfig.from_file(NARI_FOLDER / "config.json")
    expected = load_weights([NARI_FOLDER / "model.safetensors"], config, dtype=torch.float32, device="cpu")
    state = load_file(NARI_FOLDER / "model.safetensors")
    torch.save(wrap(state), tmp_path / name, _use_new_zipfile_serialization=new_zip)
    assert_equal(load_weights([tmp_path / name], config, dtype=torch.float32, device="cpu"), expected)


def test_parameters_in_a_torch_file_need_no_gradient_here(tmp_path):
    state = {name: torch.nn.Parameter(tensor) for name, tensor in small_state().items()}
    torch.save(state, tmp_path / "model.pth")
    ours = load_weights([tmp_path / "model.pth"], CONFIG, dtype=torch.float32, device="cpu")
    assert not any(tensor.requires_grad for tensor in ours.values())
    assert_equal(ours, fused({name: tensor.detach() for name, tensor in state.items()}))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["transformers", "nari"])
def test_every_dtype_becomes_every_dtype(tmp_path, stored, wanted, layout):
    state = {name: tensor.to(stored) for name, tensor in small_state().items()}
    save_file(state if layout == "transformers" else nari_state(state, CONFIG), tmp_path / "x.safetensors")
    ours = load_weights([tmp_path / "x.safetensors"], CONFIG, dtype=wanted, device=torch.device("cpu"))
    assert_equal(ours, fused(state), wanted)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "legacy.pth"])
def test_dropping_the_mapping_before_every_read_changes_nothing(tmp_path, monkeypatch, name):
    state = small_state()
    if name.endswith(".pth"):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=name != "legacy.pth")
    else:
        save_file(state, tmp_path / name)
    opened = []
    open_file = checkpoint.open_tensors
    monkeypatch.setattr(checkpoint, "open_tensors", lambda path, *rest: opened.append(path) or open_file(path, *rest))
    monkeypatch.setattr(checkpoint, "MAPPED_BYTES", 0)
    assert_equal(load_weights([tmp_path / name], CONFIG, dtype=torch.float32, device="cpu"), fused(state))
    assert len(opened) == (1 if name == "legacy.pth" else 1 + len(state))


def test_loaded_weights_outlive_their_file(tmp_path):
    state = small_state()
    ours = load_state(state, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert_equal(ours, fused(state))


def test_streams_complete_tensors_in_the_models_order(tmp_path):
    state = small_state()
    save_file(state, tmp_path / "model.safetensors")
    stream = DiaCheckpoint([tmp_path / "model.safetensors"], CONFIG).stream(dtype=torch.float32, device="cpu")
    expected = fused(state)
    for name in parameter_shapes(CONFIG):
        found, tensor = next(stream)
        assert found == name and torch.equal(tensor, expected[name])
        tensor.zero_()  # it is the caller's: nothing that follows may depend on it
    assert next(stream, None) is None


def test_ignores_the_buffer_that_follows_from_the_config(tmp_path):
    state = small_state()
    assert_equal(load_state(state | {"model.decoder.embeddings.offsets": torch.arange(9)}, tmp_path), fused(state))


def test_describes_files_without_reading_them(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoint, "read", lambda *_: pytest.fail("data was read"))
    config = DiaConfig.from_file(NARI_FOLDER / "config.json")
    assert DiaCheckpoint([NARI_FOLDER / "model.safetensors"], config).description == "nari-labs layout, float16, 1 file"
    state = small_state()
    head = {"logits_dense.weight": state.pop("logits_dense.weight").bfloat16()}
    torch.save(state, tmp_path / "a.pth")
    save_file(head, tmp_path / "b.safetensors")
    files = [tmp_path / "a.pth", tmp_path / "b.safetensors"]
    assert DiaCheckpoint(files, CONFIG).description == "transformers layout, bfloat16 and float32, 2 files"
    with pytest.raises(ValueError, match="1 missing: logits_dense.weight"):
        DiaCheckpoint(files[:1], CONFIG)


# Refusing


def test_lists_every_misfit_at_once_and_before_reading(tmp_path, monkeypatch):
    state = small_state()
    del state["logits_dense.weight"]
    del state["model.encoder.norm.weight"]
    state["model.decoder.norm.weight"] = torch.zeros(3, 4)
    down = "model.decoder.layers.0.mlp.down_proj.weight"
    state[down] = state[down].T.contiguous()
    state["model.encoder.embedding.weight"] = state["model.encoder.embedding.weight"].to(torch.int8)
    state["model.surprise"] = torch.zeros(1)
    save_file(state, tmp_path / "a.safetensors")
    save_file({"model.surprise": torch.zeros(1)}, tmp_path / "b.safetensors")
    monkeypatch.setattr(checkpoint.Checkpoint, "read", lambda *_: pytest.fail("data was read"))
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.raises(ValueError) as caught:
        DiaCheckpoint(files, CONFIG)
    width, inner = CONFIG.decoder.hidden_size, CONFIG.decoder.intermediate_size
    message = str(caught.value)
    assert f"{tmp_path / 'a.safetensors'} and 1 more (transformers layout) does not fit the config" in message
    assert "2 missing: model.encoder.norm.weight, logits_dense.weight" in message
    assert "1 unexpected: model.surprise" in message
    assert "2 misshapen: " in message
    assert f"model.decoder.norm.weight [3, 4] instead of [{width}]" in message
    assert f"{down} [{inner}, {width}] instead of [{width}, {inner}]" in message
    assert "1 not in float16, bfloat16 or float32: model.encoder.embedding.weight (torch.int8)" in message
    assert "1 duplicate: model.surprise (in a.safetensors and b.safetensors)" in message


def test_lists_ten_of_a_kind_and_counts_the_rest(tmp_path):
    state = small_state()
    with pytest.raises(ValueError, match=r"12 unexpected: extra\.00, .*extra\.09 and 2 more$"):
        load_state(state | {f"extra.{number:02}": torch.zeros(1) for number in range(12)}, tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_config_of_other_depth_is_a_misfit(tmp_path, name):
    config = DiaConfig.from_file(NARI_FOLDER / "config.json")
    deeper = DiaConfig.from_dict(
        {**config.to_dict(), "decoder_config": {**vars(config.decoder), "num_hidden_layers": 4}}
    )
    state = load_file(NARI_FOLDER / "model.safetensors")
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    with pytest.raises(ValueError, match=r"nari-labs layout.*: 13 missing: decoder\.layers\.3\.pre_sa_norm"):
        load_weights([tmp_path / name], deeper, dtype=torch.float32, device="cpu")


def test_the_same_file_twice_is_a_duplicate():
    config = DiaConfig.from_file(NARI_FOLDER / "config.json")
    files = [NARI_FOLDER / "model.safetensors"] * 2
    with pytest.raises(ValueError, match="68 duplicate: "):
        load_weights(files, config, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("with_model", [True, False])
def test_an_adapter_is_named_as_such(tmp_path, with_model):
    adapter = {"decoder.layers.0.self_attention.q_proj.lora_A.default.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"holds a LoRA adapter \(decoder.layers.0.*\); merge it into the model first"):
        load_state((small_state() if with_model else {}) | adapter, tmp_path)


def test_weights_of_another_model_are_named_as_such(tmp_path):
    with pytest.raises(ValueError, match="no weights of a Dia model; it holds wte.weight"):
        load_state({"wte.weight": torch.zeros(2)}, tmp_path)
    with pytest.raises(ValueError, match="no weights of a Dia model; it holds nothing"):
        load_state({}, tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, 5000, -1])
def test_truncated_safetensors(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    save_file(small_state(), path)
    path.write_bytes(path.read_bytes()[:keep])
    refuses_file(path, "truncated, damaged or no safetensors file")


@pytest.mark.parametrize("keep", [0, 5, 5000, -1])
@pytest.mark.parametrize("new_zip", [True, False])
def test_truncated_torch_file(tmp_path, keep, new_zip):
    path = tmp_path / "model.pth"
    torch.save(small_state(), path, _use_new_zipfile_serialization=new_zip)
    path.write_bytes(path.read_bytes()[:keep])
    refuses_file(path, "damaged, or not a file of tensors only")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.bin"])
@pytest.mark.parametrize("content", [b"not a checkpoint at all", b"\x00" * 4096, b"PK\x03\x04 no zip"])
def test_garbage(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refuses_file(tmp_path / name, "damaged")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"model": Attack()}, tmp_path / "zip.pth")
    torch.save({"model": Attack()}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Attack(), protocol=2))
    for name in ("zip.pth", "legacy.pth", "plain.pth"):
        refuses_file(tmp_path / name, "not a file of tensors only")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, {}, torch.zeros(2), {3: torch.zeros(1)}])
def test_a_torch_file_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    refuses_file(tmp_path / "model.pth", "expected a dictionary of tensors")


def test_a_git_lfs_pointer(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4993046400\n"
    for name in ("model.safetensors", "dia-v1.pth"):
        (tmp_path / name).write_text(pointer)
        refuses_file(tmp_path / name, "git lfs pull")


def refuses_file(path: Path, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        load_weights([path], CONFIG, dtype=torch.float32, device="cpu")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_absent_files_and_wrong_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weight file at .*gone.safetensors"):
        load_weights([tmp_path / "gone.safetensors"], CONFIG, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="no weight files given"):
        load_weights([], CONFIG, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="dtype must be float16, bfloat16 or float32, got torch.int8"):
        load_weights([NARI_FOLDER / "model.safetensors"], CONFIG, dtype=torch.int8, device="cpu")


# Writing


def test_nari_weights_saved_are_transformers_weights(tmp_path):
    config = DiaConfig.from_file(NARI_FOLDER / "config.json")
    ours = load_weights([NARI_FOLDER / "model.safetensors"], config, dtype=torch.float32, device="cpu")
    save_weights(ours, config, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]
    assert_equal(ours, fused(read_with_transformers(tmp_path / "saved")))
    assert DiaConfig.from_file(tmp_path / "saved" / "config.json") == config
    modes = {path.stat().st_mode for path in (tmp_path / "saved").iterdir()}
    assert len(modes) == 1, "the weights must be as readable as the config"


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("limit", [5_000_000_000, 4000, 1])
def test_save_and_load_and_transformers_agree(tmp_path, config, dtype, limit):
    state = dict(transformers_model(config).state_dict())
    save_file(state, tmp_path / "source.safetensors")
    ours = load_weights([tmp_path / "source.safetensors"], config, dtype=dtype, device="cpu")
    save_weights(ours, config, tmp_path / "deep" / "saved", max_shard_bytes=limit)
    folder = tmp_path / "deep" / "saved"
    files = sorted(folder.glob("*.safetensors"))
    if limit == 1:
        assert len(files) == len(state)
    assert_equal(load_weights(files, config, dtype=dtype, device="cpu"), ours, dtype)
    theirs = read_with_transformers(folder)
    assert all(tensor.dtype == dtype for tensor in theirs.values())
    for name, tensor in fused(theirs).items():
        assert torch.equal(tensor, ours[name].to(dtype)), name


def test_shards_keep_to_the_limit_and_the_index_tells_all(tmp_path):
    ours = load_state(small_state(), tmp_path)
    save_weights(ours, CONFIG, tmp_path / "saved", max_shard_bytes=4000)
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "saved").glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    stored = {path.name: load_file(path) for path in files}
    assert index["weight_map"] == {name: file for file, tensors in stored.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in ours.values())
    for tensors in stored.values():
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 4000


def test_nothing_is_left_of_a_failed_save(tmp_path, monkeypatch):
    ours = load_state(small_state(), tmp_path)

    def full_disk(tensors, path, metadata):
        if path.name.startswith("model-00002"):
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr("dia_engine.files.tensors.save_file", full_disk)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        save_weights(ours, CONFIG, tmp_path / "saved", max_shard_bytes=4000)
    assert sorted(tmp_path.iterdir()) == before


def test_saves_into_an_empty_folder_and_never_over_something(tmp_path):
    ours = load_state(small_state(), tmp_path)
    (tmp_path / "empty").mkdir()
    save_weights(ours, CONFIG, str(tmp_path / "empty"))
    for taken in (tmp_path / "empty", tmp_path / "model.safetensors"):
        with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
            save_weights(ours, CONFIG, taken)


def test_saves_weights_that_are_views(tmp_path):
    state = small_state()
    ours = load_state(state, tmp_path)
    ours["decoder.head.weight"] = ours["decoder.head.weight"].T.contiguous().T
    save_weights(ours, CONFIG, tmp_path / "saved")
    assert_equal(fused(load_file(tmp_path / "saved" / "model.safetensors")), fused(state))


def test_refuses_to_save_what_does_not_fit(tmp_path):
    ours = load_state(small_state(), tmp_path)
    ours["extra"] = ours.pop("decoder.norm.weight")
    ours["encoder.norm.weight"] = torch.zeros(2)
    ours["decoder.head.weight"] = ours["decoder.head.weight"].to(torch.int8)
    with pytest.raises(ValueError) as caught:
        save_weights(ours, CONFIG, tmp_path / "saved")
    for part in ("1 missing: decoder.norm.weight", "1 unexpected: extra", "encoder.norm.weight [2] instead", "int8)"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="max_shard_bytes must be at least 1, got 0"):
        save_weights(ours, CONFIG, tmp_path / "saved", max_shard_bytes=0)
    assert not (tmp_path / "saved").exists()


# Memory

LOAD_AND_MEASURE = """
import json, sys
from pathlib import Path
from dia_engine import Engine

quant = json.loads(sys.argv[2])
engine = Engine.load(sys.argv[1], quant=quant, dtype="bfloat16", device="cpu", load_dac=False)
# VmHWM and not ru_maxrss: the latter begins with the peak of the process that started this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
held = sum(weight.nbytes for weight in engine.weights.values())
json.dump({"peak": int(status["VmHWM"].split()[0]) * 1024, "held": held}, sys.stdout)
"""


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """1.6B random float32 weights in transformers' layout, in shards of a gigabyte; 6.4 GB on disk."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "full"
    folder.mkdir()
    with torch.device("meta"):
        model = transformers.DiaForConditionalGeneration(transformers.DiaConfig(**DiaConfig().to_dict()))
    model.config.save_pretrained(folder)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    shard, index = {}, {}
    for name, shape in shapes.items():
        shard[name] = torch.rand(shape).sub_(0.5)
        if sum(tensor.nbytes for tensor in shard.values()) > GIGABYTE or name == list(shapes)[-1]:
            file = f"model-{len(set(index.values())) + 1}.safetensors"
            save_file(shard, folder / file)
            index |= dict.fromkeys(shard, file)
            shard = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("quant, most", [(None, 3.3e9), ("int8", 1.75e9), ("nf4", 1.2e9)])
def test_peak_memory_is_the_weights_and_a_gigabyte(full_size, quant, most):
    command = [sys.executable, "-c", LOAD_AND_MEASURE, str(full_size), json.dumps(quant)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    print(f"{quant}: held {measured['held'] / 1e6:.0f} MB, peak {measured['peak'] / 1e6:.0f} MB")
    assert 0.9 * most < measured["held"] <= most
    assert measured["peak"] <= measured["held"] + GIGABYTE
