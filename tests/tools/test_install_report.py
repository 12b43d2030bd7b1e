"""What `make test-install` says without a network."""

import pytest

from tools import test_install


def test_downloads_are_summed_whatever_their_unit():
    log = "Downloading a-1.whl (1.5 MB)\n  Downloading b.whl.metadata (500 kB)\nUsing cached c.whl (9.0 GB)\n"
    assert test_install.downloaded(log) == pytest.approx(0.002)


def test_an_unknown_part_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["test_install", "jessie"])
    with pytest.raises(SystemExit) as left:
        test_install.main()
    assert left.value.code == 2 and "got jessie" in capsys.readouterr().err
