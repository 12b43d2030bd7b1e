"""Windows of pieces that are decoded several at a time: the same sound, in order, and none left behind."""

import numpy as np
import pytest
import torch

from dia_engine.codec.receptive_field import ReceptiveField
from dia_engine.longform.assembly import Assembler
from dia_engine.longform.options import SpeechOptions
from dia_engine.runtime.chunking import ChunkSizes

FIELD = ReceptiveField(before=2, after=3)


class Window:
    """A window whose samples are its codes."""

    def __init__(self, codes: np.ndarray):
        self.codes, self.cancelled, self.awaited = codes, False, False

    def wait(self) -> torch.Tensor:
        self.awaited = True
        return torch.from_numpy(self.codes[:, 0].astype(np.float32))

    def cancel(self) -> None:
        self.cancelled = True


def samples_of(window: Window) -> np.ndarray:
    return window.wait().numpy()


def assembler(at_once: int, samples=samples_of, rate=8) -> tuple[Assembler, list[Window]]:
    begun: list[Window] = []

    def decode(codes: np.ndarray, first: int, last: int | None) -> Window:
        begun.append(Window(codes[first:last]))
        return begun[-1]

    made = Assembler(
        decode, samples, FIELD, ChunkSizes(4, 4), SpeechOptions(),
        hop=1, frames_per_second=rate, sample_rate=rate, windows_at_once=at_once,
    )  # fmt: skip
    return made, begun


def frames(first: int, last: int) -> np.ndarray:
    return np.arange(first, last)[:, None]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_pieces_come_in_order_each_when_its_frames_are_there(at_once):
    sound, begun = assembler(at_once)
    sound.add(frames(0, 9))
    end = sound.frames
    sound.add(frames(9, 30))
    first = list(sound.sound(end))
    assert np.concatenate(first).tolist() == list(range(4)), "the next window needs frames of the piece that follows"
    assert len(begun) == min(6, 1 + at_once) and sum(window.awaited for window in begun) == 1
    rest = [*sound.sound(sound.frames), *sound.sound(sound.frames, ended=True)]
    assert np.concatenate([*first, *rest]).tolist() == list(range(30))


def test_no_more_windows_than_were_asked_for_are_begun():
    sound, begun = assembler(3)
    sound.add(frames(0, 100))
    chunks = sound.sound(100)
    for count in range(1, 5):
        next(chunks)
        assert len(begun) - sum(window.awaited for window in begun) <= 3 and len(begun) == 2 + count


def test_windows_that_nobody_waits_for_are_cancelled():
    sound, begun = assembler(3)
    sound.add(frames(0, 100))
    next(sound.sound(100))
    sound.close()
    assert [window.cancelled for window in begun] == [False, True, True]


@pytest.mark.parametrize("at_once", [1, 3])
def test_what_fills_no_chunk_is_given_out_where_more_may_be_long_in_coming(at_once):
    sound, begun = assembler(at_once)
    found = []
    for first, last, to_the_end in ((0, 9, False), (9, 11, False), (11, 12, True), (12, 13, True), (13, 30, False)):
        sound.add(frames(first, last))
        found += [*sound.sound(sound.frames), *sound.sound_so_far(to_the_end)]
        heard = last if to_the_end else last - FIELD.after
        assert np.concatenate(found).tolist() == list(range(heard)) and not list(sound.sound_so_far(to_the_end))
    found += list(sound.sound(sound.frames, ended=True))
    assert np.concatenate(found).tolist() == list(range(30)) and all(window.awaited for window in begun)


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("silence", [0.0, 0.5])
def test_sound_fades_out_and_in_where_a_piece_was_cut(at_once, silence):
    sound, _ = assembler(at_once, rate=1000)  # fades of 10 samples
    for last in (False, True):
        sound.add(np.ones((100, 1)))
        if not last:
            sound.fade_out()
            sound.pause(silence)
    found = np.concatenate([*sound.sound(sound.frames), *sound.sound(sound.frames, ended=True)])
    gap = round(1000 * silence)
    assert len(found) == 200 + gap and sound.seconds == pytest.approx(0.2 + silence)
    assert not found[95 : 101 + gap].any() and (found[110 + gap :] == 1).all()
    assert np.abs(np.diff(found)).max() < 0.17, "half a cosine over ten samples"
    assert found[100 + gap : 110 + gap].tolist() == pytest.approx(
        [0.5 - 0.5 * np.cos(np.pi * k / 10) for k in range(10)]
    )


def test_there_is_no_pause_before_the_first_sound():
    sound, _ = assembler(1, rate=1000)
    sound.pause(0.5)
    assert sound.seconds == 0 and not list(sound.sound(0, ended=True))
    sound, _ = assembler(1, rate=1000)
    sound.pause(0.5)
    sound.add(np.ones((30, 1)))
    assert len(np.concatenate(list(sound.sound(30, ended=True)))) == 30 and sound.seconds == pytest.approx(0.03)


def test_samples_that_are_no_numbers_are_an_error():
    def samples(window: Window) -> np.ndarray:
        raise RuntimeError("not finite")

    sound, _ = assembler(2, samples)
    sound.add(frames(0, 20))
    with pytest.raises(RuntimeError, match="not finite"):
        next(sound.sound(20))


def test_the_end_of_a_piece_is_held_back_until_it_is_known_whether_it_was_cut():
    sound, _ = assembler(1, rate=1000)  # a fade of 10 samples, then 20 of silence
    sound.add(np.ones((100, 1)))
    found = list(sound.sound(sound.frames))
    heard = sum(map(len, found))
    assert 60 < heard <= 70
    sound.fade_out()
    whole = np.concatenate([*found, *sound.sound(sound.frames, ended=True)])
    assert len(whole) == 100 and not whole[-20:].any() and (whole[:heard] == 1).all()
    assert np.abs(np.diff(whole)).max() < 0.17, "half a cosine over ten samples"
