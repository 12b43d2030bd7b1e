"""What documents list is what the code has, and what they print runs."""

import ast
import asyncio
import importlib.util
import inspect
import json
import re
import shlex
import shutil

import pytest
import soundfile
import torch
import yaml

import dia_engine
from dia_engine import Engine
from dia_engine.cli import main
from dia_engine.codec import Codec
from dia_engine.weights.save import quantize_model, save_weights
from dia_engine.weights.source import TALKER_FOLDER, load_generation_config
from tests.helpers import ROOT

FOLDERS = ("engine", "kernels", "benchmarks", "tools")
READS = re.compile(r"environ(?:\.get|\.setdefault)?[(\[]\s*\"([A-Z0-9_]+)\"")
PAGES = sorted(path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.parts))


def read(path):
    return path.read_text(encoding="utf-8")


def blocks(page, language):
    """The fenced blocks of a page in docs/ in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(ROOT / "docs" / page), re.MULTILINE | re.DOTALL)


def test_every_environment_variable_is_documented():
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")] + [ROOT / "tests" / "conftest.py"]
    code = {path: read(path) for path in sources}
    found = {name for path, text in code.items() for name in READS.findall(text) if path.name != "installation.py"}
    set_only = {"DISABLE_MMA_V3", "PIP_CONFIG_FILE"}
    documented = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", read(ROOT / "docs" / "environment.md"), re.MULTILINE))
    assert {"DIA_PDL", "CC"} <= found
    assert documented == (found - set_only) | {"OMP_NUM_THREADS"}  # torch reads this one


def public_functions():
    """What `make docs` shows: methods and functions by name."""
    found = {"quantize_model": quantize_model, "save_weights": save_weights}
    for owner in (*(getattr(dia_engine, name) for name in dia_engine.__all__ if name not in ("FLUSH", "Dia")), Codec):
        for name, member in vars(owner).items():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if inspect.isfunction(function) and not name.startswith("_"):
                found[f"{owner.__name__}.{name}"] = function
    return found


PUBLIC = public_functions()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_docstrings_tell_every_parameter(name):
    function = PUBLIC[name]
    docstring = inspect.getdoc(function)
    assert docstring, name
    parameters = [each for each in inspect.signature(function).parameters if each not in ("self", "cls")]
    if function is Engine.stream:
        shared = list(inspect.signature(Engine.generate).parameters)
        parameters = [each for each in parameters if each not in shared]
    assert not [each for each in parameters if not re.search(rf"\b{each}\b", docstring)]


def anchors(page):
    """The names that GitHub gives a page's headings."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```|^    .*?$|`[^`\n]*`", "", read(page), flags=re.MULTILINE | re.DOTALL)  # without code
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_targets_and_modules_that_are_named_exist(page):
    targets = set(re.findall(r"^([a-z][a-z-]*):", read(ROOT / "Makefile"), re.MULTILINE))
    text = read(page)
    assert set(re.findall(r"(?:^    |`)make ([a-z][a-z-]+)", text, re.MULTILINE)) <= targets
    modules = re.findall(r"python -m ((?:benchmarks|tools|dia_engine|tests)[\w.]*)", text)
    assert not [module for module in modules if importlib.util.find_spec(module) is None]


def messages():
    """All texts in the sources, where what is filled in is left out."""
    found = []
    for path in (*(ROOT / "engine").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%(s|\.?\d*[df])", "...", node.value))
    return found


def test_messages_that_are_explained_are_messages():
    rows = re.findall(r"^\| (.+?) \|", read(ROOT / "docs" / "troubleshooting.md"), re.MULTILINE)
    quoted = {text.strip(".").strip() for row in rows for text in re.findall(r'"([^"]{4,})"', row)}
    elsewhere = {"no kernel image is available"}  # CUDA's
    assert len(quoted) > 10 and elsewhere < quoted
    every = messages()
    assert not [text for text in quoted - elsewhere if not any(text in message for message in every)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a fine-tuned model as transformers and a trainer would save it."""
    from transformers import DiaForConditionalGeneration

    folder = tmp_path_factory.mktemp("docs")
    tuned = DiaForConditionalGeneration.from_pretrained(TALKER_FOLDER, dtype=torch.float32)
    tuned.save_pretrained(folder / "my-dia")
    shutil.copytree(TALKER_FOLDER / "codec", folder / "my-dia" / "codec")
    weights = {f"_orig_mod.{name}": weight for name, weight in tuned.state_dict().items()}
    torch.save({"model": weights, "optimizer": {}, "step": 7}, folder / "trainer.pth")
    with Engine.load("talker") as engine:
        engine.save_audio(folder / "voice.wav", engine.generate("[S2] I have two red birds.", seed=0))
    return folder


@pytest.mark.parametrize("page", ["checkpoints.md", "research.md", "streaming.md"])
def test_a_pages_python_runs(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    played = []

    async def send(chunk):
        played.append(chunk)

    names = {"play": played.append, "send": send}
    if page == "streaming.md":
        names["engine"] = Engine.load("talker")
    code = blocks(page, "python")
    assert code
    for block in code:
        compiled = compile(block, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(compiled, names)
        if result is not None:
            asyncio.run(result)
    names["engine"].close()
    if page == "streaming.md":
        assert len(played) > 4
    if page == "checkpoints.md":
        assert Engine.load(folder / "my-dia-copy", codec=names["engine"].codec).dtype == torch.float32


def test_the_commands_about_checkpoints_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    commands = re.findall(r"^    dia-engine (.+)$", read(ROOT / "docs" / "checkpoints.md"), re.MULTILINE)
    for command in [*commands, "info my-dia"]:
        assert main(shlex.split(command, comments=True)) == 0
    assert "my-dia-int8" in capsys.readouterr().out
    assert Engine.load(folder / "my-dia-int8").codec is not None


def test_the_defaults_shown_are_defaults(tmp_path):
    (shown,) = blocks("checkpoints.md", "json")
    (tmp_path / "generation_config.json").write_text(shown)
    defaults, long_form = load_generation_config(tmp_path)
    assert defaults == {"temperature": 0.8, "cfg_scale": 2.0}
    assert long_form.good_bytes == json.loads(shown)["dia_engine"]["long_form"]["good_bytes"]


def test_the_sound_files_are_what_their_commands_make(tmp_path, monkeypatch):
    folder = ROOT / "docs" / "audio"
    commands = re.findall(r"^    dia-engine (.+)$", read(folder / "README.md"), re.MULTILINE)
    made = [shlex.split(command)[-1] for command in commands]
    assert sorted(folder.glob("*.mp3")) == sorted(ROOT / name for name in made)
    (tmp_path / "docs").mkdir()
    shutil.copytree(folder, tmp_path / "docs" / "audio", ignore=shutil.ignore_patterns("*.mp3"))
    monkeypatch.chdir(tmp_path)
    for command, name in zip(commands, made, strict=True):
        assert main(shlex.split(command)) == 0
        assert (ROOT / name).stat().st_size < 100_000
        # Of the same length but for what the order of sums changes, where there is no compiler.
        kept, again = (soundfile.info(path).duration for path in (ROOT / name, tmp_path / name))
        assert abs(kept - again) < 0.2 * kept


def test_a_bug_report_asks_for_the_output_of_info():
    form = yaml.safe_load(read(ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml"))
    fields = {field["id"]: field for field in form["body"] if "id" in field}
    assert "dia-engine info" in fields["info"]["attributes"]["label"] and fields["info"]["validations"]["required"]
