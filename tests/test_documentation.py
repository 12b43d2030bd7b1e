"""What documents list is what the code has."""

import re

from tests.helpers import ROOT

FOLDERS = ("engine", "kernels", "benchmarks", "tools")
READS = re.compile(r"environ(?:\.get|\.setdefault)?[(\[]\s*\"([A-Z0-9_]+)\"")


def test_every_environment_variable_is_documented():
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")] + [ROOT / "tests" / "conftest.py"]
    code = {path: path.read_text(encoding="utf-8") for path in sources}
    read = {name for path, text in code.items() for name in READS.findall(text) if path.name != "test_install.py"}
    set_only = {"DISABLE_MMA_V3", "PIP_CONFIG_FILE"}
    document = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", document, re.MULTILINE))
    assert {"DIA_PDL", "OMP_NUM_THREADS", "CC"} <= read
    assert documented == read - set_only
