"""What `tools.talker.long_dialogues` says of dialogues that it cannot compare by quarters."""

import pytest

from tools.talker import long_dialogues


@pytest.mark.parametrize("turns", ["1", "5"])
def test_short_dialogues_are_refused(monkeypatch, turns):
    monkeypatch.setattr(long_dialogues, "Listener", lambda: None)
    with pytest.raises(SystemExit, match="dialogue 0 has no piece for each quarter; give more --turns"):
        long_dialogues.main(["--turns", turns])
