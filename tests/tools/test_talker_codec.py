"""Training of the talker's codec that is stopped and goes on."""

import numpy as np
import pytest
import torch

from tools.talker import codec
from tools.talker.flite import Spoken


@pytest.fixture
def revived(monkeypatch):
    """A codec of no size and one sound -> the sums of the usage by which its codebooks are revived."""
    sound = np.random.default_rng(0).standard_normal(9000, dtype=np.float32)
    sizes = dict(encoder_hidden_size=2, decoder_hidden_size=16, n_codebooks=2, codebook_size=16)
    monkeypatch.setattr(codec, "CONFIG", codec.CONFIG | sizes)
    monkeypatch.setattr(codec, "BATCH", 1)
    monkeypatch.setattr(codec, "LENGTH", 3072)
    monkeypatch.setattr(codec, "FREE_STEPS", 0)
    monkeypatch.setattr(codec, "load_speech", lambda work: {"a": Spoken(sound, [])})
    sums = []
    monkeypatch.setattr(codec, "revive", lambda model, latent, usage: sums.append(float(usage.sum())))
    return sums


def train(work, steps):
    with torch.enable_grad():
        codec.train(work, steps, compiled=False)


def test_it_goes_on_with_the_usage_of_all_steps(tmp_path, revived):
    train(tmp_path, 50)
    train(tmp_path, 64)
    frames = codec.LENGTH // 512
    assert revived == [pytest.approx(2 * frames * (1 - 0.98**51) / 0.02, rel=1e-3)]


def test_nothing_is_revived_before_the_usage_is_known(tmp_path, revived):
    train(tmp_path, 50)
    state = torch.load(tmp_path / codec.STATE, weights_only=True)
    del state["usage"]  # as older files are
    torch.save(state, tmp_path / codec.STATE)
    train(tmp_path, 64)
    assert not revived
