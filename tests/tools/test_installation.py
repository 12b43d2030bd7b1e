"""What `make test-install` says without a network."""

import shutil
import subprocess

import pytest

from tools import installation


def test_downloads_are_summed_whatever_their_unit():
    log = "Downloading a-1.whl (1.5 MB)\n  Downloading b.whl.metadata (500 kB)\nUsing cached c.whl (9.0 GB)\n"
    assert installation.downloaded(log) == pytest.approx(0.002)


def test_an_unknown_part_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["installation", "jessie"])
    with pytest.raises(SystemExit) as left:
        installation.main()
    assert left.value.code == 2 and "got jessie" in capsys.readouterr().err


@pytest.mark.parametrize("name", [None, "cc", "gcc", "clang"])
def test_a_compiler_is_found_by_any_of_its_names(tmp_path, name):
    if name is not None:
        (tmp_path / name).touch(mode=0o755)
    done = subprocess.run([shutil.which("sh"), "-c", installation.NO_COMPILER], env={"PATH": str(tmp_path)})
    assert (done.returncode == 0) == (name is None)
