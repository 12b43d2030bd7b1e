"""The API reference, made from the docstrings: `make docs`, or `python -m tools.api_reference FOLDER`.

A warning of pdoc is an error, such as a name that does not resolve, and so is a public function or class without a
docstring.
"""

import importlib
import sys
import warnings
from pathlib import Path

from pdoc import doc, render

# What users import. Everything else may change in any version.
PUBLIC = (
    "dia_engine",
    "dia_engine.codec",
    "dia_engine.weights.save",
    "dia_engine.server.app",
    "dia_engine.server.settings",
)


def documented_modules() -> dict[str, doc.Module]:
    """The public modules by name."""
    modules = {name: importlib.import_module(name) for name in PUBLIC}
    package = modules["dia_engine"]
    for name in package.__all__:
        setattr(package, name, getattr(package, name))  # imported on first use; pdoc looks into the module's dict alone
    return {name: doc.Module(module) for name, module in modules.items()}


def undocumented(module: doc.Module) -> list[str]:
    """Public functions and classes without a docstring."""
    members = [member for member in module.flattened_own_members if member.kind in ("function", "class")]
    return [each.fullname for each in members if not (each.docstring or "_" in (each.name[0], each.qualname[0]))]


def main(folder: str) -> bool:
    """Write the reference into a folder; whether a member has no docstring."""
    modules = documented_modules()
    missing = [name for module in modules.values() for name in undocumented(module)]
    for name in missing:
        print(f"no docstring: {name}", file=sys.stderr)
    warnings.simplefilter("error")
    render.configure(docformat="google", show_source=False, search=False)
    pages = {name: render.html_module(module, modules) for name, module in modules.items()}
    for name, page in {**pages, "index": render.html_index(modules)}.items():
        path = Path(folder, *name.split(".")).with_suffix(".html")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    return bool(missing)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
