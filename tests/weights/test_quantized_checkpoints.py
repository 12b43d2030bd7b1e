"""Quantized models: recipes, loading from every kind of checkpoint, writing and reading back, and every refusal."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dia_engine import Engine
from dia_engine.cli import main
from dia_engine.files.hub import find_model
from dia_engine.info import describe
from dia_engine.kernels.cpu.onednn import PackedInt8Weight
from dia_engine.kernels.quantized import FORMATS, Int8Weight, NF4Weight
from dia_engine.model.config import DiaConfig
from dia_engine.model.shapes import parameter_shapes
from dia_engine.weights.load import DiaCheckpoint
from dia_engine.weights.recipes import RECIPES, checked_recipe, chosen_formats
from dia_engine.weights.save import quantize_model
from tests.weights.helpers import DOWN, OUT, STATE, changed, nari_state, transformers_model, with_state
from tests.weights.helpers import QUANTIZED_CONFIG as CONFIG
from tests.weights.helpers import load_quantized as load

NARROW = "encoder.layers.0.mlp.down.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "plain"
    transformers_model(CONFIG).save_pretrained(path)
    return path


def kinds(weights) -> dict[str, str]:
    names = {kind: name for name, kind in FORMATS.items()}
    return {name: names.get(type(weight), "none") for name, weight in weights.items()}


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, weight in ours.items():
        assert type(weight) is type(expected[name]), name
        if isinstance(weight, torch.Tensor):
            assert torch.equal(weight, expected[name]), name
        else:
            assert weight.dtype == expected[name].dtype and torch.equal(weight.absmax, expected[name].absmax), name
            assert torch.equal(weight.dequantize(), expected[name].dequantize()), name


# Recipes


def test_recipes_quantize_matrices_only():
    for recipe in RECIPES.values():
        formats = chosen_formats(recipe, CONFIG)
        assert set(formats) == {name for name in parameter_shapes(CONFIG) if "_attn." in name or ".mlp." in name}
    formats = chosen_formats(RECIPES["nf4"], CONFIG)
    assert formats["decoder.layers.0.mlp.down.weight"] == "nf4"
    assert formats["decoder.layers.0.self_attn.o.weight"] == "int8"


def test_rows_that_blocks_do_not_fill_become_int8(caplog):
    formats = chosen_formats(RECIPES["nf4"], CONFIG)
    assert formats[NARROW] == "int8"
    assert NARROW in caplog.text and len(caplog.records) == 1


def test_the_first_pattern_that_fits_decides():
    recipe = checked_recipe({"decoder.layers.0.*": "none", "*.head.*": "int8", **RECIPES["nf4"]})
    formats = chosen_formats(recipe, CONFIG)
    assert not any(name.startswith("decoder.layers.0.") for name in formats)
    assert formats["decoder.head.weight"] == "int8"


@pytest.mark.parametrize("quant", ["int3", "", "INT8", "fp4"])
def test_unknown_names(quant):
    with pytest.raises(ValueError, match=f"quant must be one of int8, nf4, nf4-all, 4bit, 8bit, got '{quant}'"):
        Engine.load("synthetic:tiny", quant=quant)


@pytest.mark.parametrize(
    "quant, error, message",
    [
        ({"*.mlp.*": "int3"}, ValueError, "must be one of int8, nf4, none, got int3"),
        ({"*.mpl.*": "int8"}, ValueError, r"no matrix of this model is named like \*\.mpl\.\*"),
        ({"*.embedding.*": "int8"}, ValueError, "no matrix"),
        (8, TypeError, "name or a mapping"),
        ({"*.mlp.*": 8}, TypeError, "name or a mapping"),
    ],
)
def test_bad_recipes(quant, error, message):
    with pytest.raises(error, match=message):
        Engine.load("synthetic:tiny", quant=quant)


# Loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quant", ["int8", "nf4"])
@pytest.mark.parametrize("layout", ["transformers", "nari"])
def test_quantizes_the_numbers_in_the_file(folder, tmp_path, quant, layout, dtype):
    plain, path = load(folder), folder
    if layout == "nari":
        path = tmp_path / "nari"
        path.mkdir()
        save_file(nari_state(load_file(folder / "model.safetensors"), CONFIG), path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    formats = chosen_formats(RECIPES[quant], CONFIG)
    expected = {
        name: FORMATS[formats[name]].quantize(weight, dtype) if name in formats
        else weight if name.endswith("norm.weight") else weight.to(dtype)
        for name, weight in plain.items()
    }  # fmt: skip
    ours = load(path, quant, dtype)
    assert_same(ours, expected)
    assert list(ours) == list(parameter_shapes(CONFIG))


def saved_by_transformers(folder, path, **settings):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    config = transformers.BitsAndBytesConfig(**settings)
    model = transformers.DiaForConditionalGeneration.from_pretrained(folder, quantization_config=config)
    model.save_pretrained(path)
    return model


def dequantized_by_bitsandbytes(model) -> dict[str, torch.Tensor]:
    """Name of each linear layer of transformers' model -> what bitsandbytes says its weight is."""
    from bitsandbytes import functional, nn

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear4bit):
            found[f"{name}.weight"] = functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        elif isinstance(module, nn.Linear8bitLt):
            scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
            found[f"{name}.weight"] = functional.int8_vectorwise_dequant(module.weight.data, scales)
    return found


@pytest.mark.parametrize(
    "settings, kind",
    [
        ({"load_in_8bit": True}, "int8"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, "nf4"),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.bfloat16},
            "nf4",
        ),
    ],
    ids=["8bit", "4bit", "4bit double", "4bit in bfloat16"],
)
def test_reads_what_transformers_quantized(folder, tmp_path, settings, kind):
    from dia_engine.weights.layouts import TRANSFORMERS, tensor_table

    model = saved_by_transformers(folder, tmp_path / "theirs", **settings)
    expected = dequantized_by_bitsandbytes(model)
    ours, plain = load(tmp_path / "theirs"), load(folder)
    for name, pieces in tensor_table(CONFIG, TRANSFORMERS).items():
        if pieces[0].name not in expected:
            assert torch.equal(ours[name], plain[name])
            continue
        wanted = torch.cat([expected[piece.name] for piece in pieces])
        narrow = kind == "nf4" and wanted.shape[1] % 64
        assert isinstance(ours[name], torch.Tensor if narrow else FORMATS[kind]), name
        assert torch.equal(ours[name] if narrow else ours[name].dequantize(), wanted), name
    if kind == "nf4":  # of rows that blocks do not fill, bitsandbytes' blocks reach over the ends
        planned = chosen_formats(RECIPES["nf4-all"], CONFIG)
        assert {name for name in planned if planned[name] == "nf4"} == {
            name for name, weight in ours.items() if isinstance(weight, NF4Weight)
        }
    engine = Engine.load(tmp_path / "theirs", load_dac=False)
    assert len(engine.generate("[S1] !", max_tokens=20, seed=0)) >= 0
    assert kind in describe(tmp_path / "theirs", None, "bfloat16")


@pytest.mark.parametrize("quant", ["int8", "nf4-all", {"*.mlp.*": "nf4"}])
def test_writes_what_it_reads_back_without_bitsandbytes(warm_python, folder, tmp_path, quant):
    expected = load(folder, quant, torch.bfloat16)
    size = quantize_model(folder, tmp_path / "small", quant)
    assert size == sum(weight.nbytes for weight in expected.values())
    assert_same(load(tmp_path / "small", dtype=torch.bfloat16), expected)
    assert_same(load(tmp_path / "small", quant, torch.bfloat16), expected)  # the same recipe changes nothing
    said = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    assert said["recipe"] == checked_recipe(quant) and said["source"] == str(folder)
    assert DiaConfig.from_file(tmp_path / "small" / "config.json") == CONFIG
    program = (
        "import sys; sys.modules['bitsandbytes'] = None\n"
        "from dia_engine import Engine\n"
        f"print(Engine.load({str(tmp_path / 'small')!r}, load_dac=False, dtype='bfloat16').generate("
        "'[S1] !', max_tokens=20, seed=3).tolist())"
    )
    done = warm_python.run(program)
    assert done.returncode == 0, done.stderr
    engine = Engine.load(folder, quant=quant, load_dac=False, dtype="bfloat16")
    assert eval(done.stdout) == engine.generate("[S1] !", max_tokens=20, seed=3).tolist()


def test_bitsandbytes_reads_what_is_written(folder, tmp_path):
    functional = pytest.importorskip("bitsandbytes").functional
    quantize_model(folder, tmp_path / "small", "nf4", dtype="float32")
    tensors, ours = load_file(tmp_path / "small" / "model.safetensors"), load(tmp_path / "small")
    name = "model.decoder.layers.0.mlp.down_proj.weight"
    state = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    state = functional.QuantState.from_dict(state, device=torch.device("cpu"))
    expected = ours["decoder.layers.0.mlp.down.weight"].dequantize()
    assert torch.equal(functional.dequantize_4bit(tensors[name], state), expected)


@pytest.mark.parametrize("quant", ["int8", "nf4-all", "4bit"])
def test_an_engine_holds_quantized_weights(quant):
    engine = Engine.load("synthetic:tiny", quant=quant, load_dac=False)
    held = {type(weight) for weight in engine.weights.values()}
    assert held & {PackedInt8Weight, Int8Weight} and (quant == "int8" or NF4Weight in held)
    alone = engine.generate("[S1] Hello.", max_tokens=50, seed=1)
    together = engine.generate(["[S2] Oh, (laughs) no.", "[S1] Hello."], max_tokens=50, seed=[2, 1])
    assert torch.equal(torch.as_tensor(alone), torch.as_tensor(together[1]))


# Refusing


@pytest.mark.parametrize("stored, asked", [("int8", "nf4"), ("nf4", "int8"), ("nf4", {"*.mlp.*": "nf4"})])
def test_other_formats_than_stored(folder, tmp_path, stored, asked):
    quantize_model(folder, tmp_path / "small", stored)
    with pytest.raises(ValueError, match=r"is quantized already, in int8.*; load it without quant"):
        Engine.load(tmp_path / "small", quant=asked)
    with pytest.raises(ValueError, match="is quantized already"):
        describe(tmp_path / "small", None, "bfloat16", "int8" if stored == "nf4" else "nf4")
    with pytest.raises(ValueError, match="is quantized already, in int8.*; quantize the original"):
        quantize_model(tmp_path / "small", tmp_path / "smaller", stored)
    assert not (tmp_path / "smaller").exists()


def test_a_folder_that_is_taken(folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        quantize_model(folder, tmp_path, "int8")


def renamed_to_fp4(tensors):
    tensors[STATE.replace("nf4", "fp4")] = tensors.pop(STATE)


@pytest.mark.parametrize(
    "change, message",
    [
        (with_state(blocksize=128), "nf4 in blocks of 128; only nf4 in blocks of 64"),
        (renamed_to_fp4, "fp4 in blocks of 64; only nf4"),
        (with_state(shape="x"), "is damaged"),
        (with_state(shape=[64, 64]), r"do not hold the \[64, 64\] numbers"),
        (lambda tensors: tensors.update({STATE: torch.tensor([200], dtype=torch.uint8)}), "is damaged"),
        (lambda tensors: tensors.pop(f"{DOWN}.absmax"), "do not hold"),
        (lambda tensors: tensors.pop(DOWN), "do not hold"),
        (lambda tensors: tensors.pop(f"{OUT}weight"), "SCB has no int8 weight of as many rows"),
        (lambda tensors: tensors.update({f"{OUT}SCB": torch.zeros(3)}), "SCB has no int8 weight of as many rows"),
        (lambda tensors: tensors[f"{OUT}weight_format"].fill_(2), "made for one GPU"),
        (lambda tensors: tensors.pop(f"{OUT}SCB"), "not in float16, bfloat16 or float32"),
        (lambda tensors: tensors.pop(STATE), "unexpected"),
    ],
)
def test_damaged_quantized_files(folder, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(changed(folder, tmp_path / "bad", change))


def test_formats_that_are_stored(folder, tmp_path):
    quantize_model(folder, tmp_path / "small", "nf4")
    formats = chosen_formats(RECIPES["nf4"], CONFIG)
    assert DiaCheckpoint(find_model(tmp_path / "small").weights, CONFIG).formats == formats
    assert DiaCheckpoint(find_model(folder).weights, CONFIG).formats == {}
    assert kinds(load(tmp_path / "small")) == {name: formats.get(name, "none") for name in parameter_shapes(CONFIG)}


def test_the_command(folder, tmp_path, capsys):
    def command(*arguments):
        return main(list(map(str, arguments))), capsys.readouterr()

    status, shown = command("quantize", folder, tmp_path / "small", "--quant", "nf4-all")
    assert status == 0 and "MB of weights, nf4-all" in shown.out
    _, shown = command("info", tmp_path / "small")
    assert "transformers layout, int8 and nf4 and bfloat16 and float32, 1 file" in shown.out
    status, again = command("quantize", tmp_path / "small", tmp_path / "smaller", "--quant", "int8")
    assert status == 2 and again.err.count("\n") == 1 and "quantized already" in again.err
    status, wrong = command("say", "[S1] a", "--model", "synthetic:tiny", "--quant", "int3", "-o", tmp_path / "x.wav")
    assert status == 2 and "quant must be one of int8, nf4, nf4-all, 4bit, 8bit, got 'int3'" in wrong.err
