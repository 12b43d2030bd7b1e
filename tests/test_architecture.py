"""Imports go one way between the packages of the engine, and no folder grows too full to be read at a glance."""

import ast
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "engine"
# Package -> the packages that it may import from, beside its own. "" is what lies beside them: small modules that any
# of them may use; the engine and the command line on top of them use all.
ALLOWED = {
    "kernels": set(),
    "devices": {"kernels", ""},
    "files": {"devices", ""},
    "model": {"kernels", "devices", "files", ""},
    "codec": {"kernels", "devices", "files", ""},
    "weights": {"kernels", "devices", "files", "model", "codec", ""},
    "text": {"model", ""},
    "runtime": {"kernels", "devices", "files", "model", "codec", "text", ""},
    "audio": {"devices", "files", ""},
    "longform": {"devices", "files", "model", "codec", "text", "runtime", "audio", ""},
}
ON_TOP = {"engine", "batch", "capacity", "cli", "cluster", "info", "server", "__init__", "__main__"}
FOLDERS = [
    "",
    "batch",
    "cli",
    "cluster",
    *(each for each in ALLOWED if each != "kernels"),
    "longform/planning",
    "server",
    *(f"server/{each}" for each in ("audio", "routes", "speech", "voices")),
]
MOST_MODULES = 11


def imported(path: Path) -> set[tuple[str, ...]]:
    """The modules of this package that a file imports, anywhere in it, as names relative to the package."""
    here = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            names = node.module.split(".") if node.module else []
            found |= {(*base, *names, alias.name) for alias in node.names}
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package):
    for path in (PACKAGE / package).rglob("*.py"):
        for target in imported(path):
            owner = target[0] if target[0] in ALLOWED else ""
            assert owner == package or owner in ALLOWED[package], f"{path} imports {'.'.join(target)}"
            assert target[0] not in ON_TOP, f"{path} imports {'.'.join(target)}"


@pytest.mark.parametrize("package", FOLDERS)
def test_a_folder_can_be_read_at_a_glance(package):
    modules = [path.name for path in (PACKAGE / package).glob("*.py") if path.name != "__init__.py"]
    assert 0 < len(modules) <= MOST_MODULES, modules


def test_no_test_imports_another():
    """What several test modules use is in `helpers.py` of their folder: a test module is free to change."""
    tests = list((ROOT / "tests").rglob("*.py"))
    modules = {path.stem for path in tests if path.name.startswith("test_")} | {"conftest"}
    for path in tests:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {part for alias in node.names for part in alias.name.split(".")}
                names |= set((getattr(node, "module", None) or "").split("."))
                assert not names & modules, f"{path} imports {', '.join(names & modules)}"


def test_functions_beside_triton_kernels_have_types():
    """mypy demands types of every function in `engine/`; in `kernels/` it cannot tell kernels from other functions."""
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "triton.jit" not in map(decorator, node.decorator_list):
                every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                untyped = [each.arg for each in every if each.annotation is None and each.arg not in ("self", "cls")]
                assert not untyped and (node.returns or node.name == "__init__"), f"{path}: {node.name} {untyped}"


def decorator(node: ast.expr) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)


def test_every_module_says_what_it_is():
    files = [
        path
        for folder in ("engine", "kernels", "benchmarks", "tools", "tests", "examples")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 200
    assert not [path for path in files if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None]
