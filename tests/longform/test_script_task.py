"""Scripts that are spoken in pieces, with the talker: the same however they run, honest about what was made."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dia_engine import FLUSH, Engine, EngineFull, SamplingParams
from dia_engine.longform import script_task
from dia_engine.longform.checks import Pace, best, guard_frames, is_good
from dia_engine.longform.planning.plan import plan_pieces
from dia_engine.longform_settings import LongFormSettings
from dia_engine.results import Generation

SCRIPT = (
    "[S1] Can you count? [S2] Yes, I can count very well. [S1] I see two black cats. [S2] Five six seven eight. "
    "[S1] Good morning, my friend. [S2] The dogs are red. [S1] Can you sing? [S2] No, little robot."
)
HANGS = 60  # seconds
SHORT = "[S1] Can you count? [S2] Yes, my friend."


@pytest.fixture(scope="module")
def whole(talker) -> Generation:
    return talker.generate(SCRIPT, seed=3, details=True)


def test_pieces_tell_what_was_made(talker, whole):
    plan = talker.plan(SCRIPT, seed=3)
    assert [piece.text for piece in whole.pieces] == [piece.text for piece in plan.pieces] and len(plan.pieces) > 2
    assert whole.finish_reason == "stop" and whole.seed == 3 and whole.frames == len(whole.codes)
    assert whole.pieces[0].start == 0 and whole.pieces[-1].end == pytest.approx(whole.duration)
    for before, after in zip(whole.pieces, whole.pieces[1:], strict=False):
        assert before.end == after.start > before.start
    assert len(whole.audio) == round(whole.duration * talker.sample_rate) == 512 * whole.frames


def test_the_sound_is_that_of_the_joined_codes(talker, whole):
    assert np.abs(talker.codec.decode(whole.codes).numpy() - whole.audio).max() < 1e-5


def test_streamed_is_whole(talker, whole):
    stream = talker.stream(SCRIPT, seed=3)
    audio = np.concatenate(list(stream))
    assert audio.shape == whole.audio.shape and np.abs(audio - whole.audio).max() < 1e-5
    assert stream.result.pieces == whole.pieces and np.array_equal(stream.result.codes, whole.codes)


def test_one_slot_is_four_and_strangers_change_nothing(talker, whole):
    with Engine.load("talker", device="cpu", max_slots=1) as single:
        assert np.array_equal(single.generate(SCRIPT, seed=3, details=True).codes, whole.codes)
    alone = talker.generate(SHORT, seed=5, details=True)
    together = talker.generate([SHORT, SCRIPT, SHORT], seed=[5, 3, 6], details=True)
    assert np.array_equal(together[0].codes, alone.codes) and np.array_equal(together[1].codes, whole.codes)
    assert together[0].pieces == () and np.array_equal(together[0].audio, alone.audio)


def test_a_short_script_stays_as_it_is(talker):
    wanted = talker.generate(SHORT, seed=5, split=False)
    assert np.array_equal(talker.generate(SHORT, seed=5), wanted)
    assert not talker.plan(SHORT).is_split and talker.plan(SHORT, seed=5).pieces[0].sent == SHORT
    with pytest.raises(ValueError, match="text has .* bytes .*, the model reads at most 256"):
        talker.generate(SCRIPT * 2, split=False)


def test_speed_tail_and_pause(talker, whole):
    slow = talker.generate(SCRIPT, seed=3, speed=0.8, tail_silence=0.5, details=True)
    assert len(slow.audio) == round(len(whole.audio) / 0.8) + talker.sample_rate // 2
    assert slow.duration == pytest.approx(len(slow.audio) / talker.sample_rate, abs=1e-3)
    assert np.array_equal(slow.codes, whole.codes) and not slow.audio[-8000:].any()
    streamed = np.concatenate(list(talker.stream(SCRIPT, seed=3, speed=0.8, tail_silence=0.5)))
    assert streamed.shape == slow.audio.shape
    short = talker.generate(SHORT, seed=5)
    assert len(talker.generate(SHORT, seed=5, speed=1.25)) == round(len(short) / 1.25)
    paused = talker.generate(SHORT, seed=5, pause=1.0, details=True)
    assert len(paused.pieces) == 2 and paused.pieces[1].start - paused.pieces[0].end == pytest.approx(1.0)
    gap = slice(*(round(at * talker.sample_rate) for at in (paused.pieces[0].end, paused.pieces[1].start)))
    assert not paused.audio[gap].any() and len(paused.audio) == round(paused.duration * talker.sample_rate)


def test_a_cut_end_is_told_and_trimmed(talker):
    params = {"max_tokens": 60, "seed": 1}
    kept = talker.generate(SHORT, details=True, **params)
    assert kept.finish_reason == "length" and len(kept.audio) == 512 * kept.frames
    trimmed = talker.generate(SHORT, trim_cut_end=True, details=True, **params)
    delay = talker.config.max_delay
    assert np.array_equal(trimmed.codes, kept.codes) and len(trimmed.audio) == 512 * (kept.frames - delay)
    same = (
        len(trimmed.audio) - 512 * talker.windows.receptive_field.after
    )  # from there the sound depends on what was dropped
    assert np.abs(trimmed.audio[:same] - kept.audio[:same]).max() < 1e-5
    assert not trimmed.audio[-talker.sample_rate // 50 :].any() and trimmed.audio[-talker.sample_rate // 30 :].any()
    streamed = np.concatenate(list(talker.stream(SHORT, trim_cut_end=True, **params)))
    assert streamed.shape == trimmed.audio.shape and np.abs(streamed - trimmed.audio).max() < 1e-5
    for speed in (0.75, 1.3):  # a window of stretched sound is taken from somewhat before its place
        assert not talker.generate(SHORT, trim_cut_end=True, speed=speed, **params)[-talker.sample_rate // 50 :].any()
    pieces = talker.generate(SCRIPT, details=True, **params)
    assert pieces.finish_reason == "length" and any(piece.finish_reason == "length" for piece in pieces.pieces)


@pytest.mark.parametrize("least", [0, 40])
def test_no_piece_may_end_far_before_its_text_can_have_been_said(talker, monkeypatch, least):
    submit, submitted = talker._thread.submit, {}

    def recorded(requests, *arguments, **options):
        submitted.update({request.seed: request.params.min_tokens for request in requests})
        submit(requests, *arguments, **options)

    monkeypatch.setattr(talker._thread, "submit", recorded)
    talker.generate(SCRIPT, seed=3, min_tokens=least)
    pieces, pace = talker.plan(SCRIPT, seed=3).pieces, Pace(talker.long_form.frames_per_byte)
    guards = [guard_frames(piece, pace.prior) for piece in pieces]
    assert [submitted[piece.seed] for piece in pieces] == [max(least, guard) for guard in guards]
    assert 0 < min(guards) < 40 and len(guards) > 2


def test_text_that_arrives(talker):
    def parts():
        yield from (
            "[S1] Can you co",
            "unt? [S2] Yes, I can ",
            "count. Th",
            "e dogs are",
            FLUSH,
            " red. [S1] Good",
            " morning.",
        )

    stream = talker.stream(parts(), seed=2)
    chunks = list(stream)
    texts = " ".join(piece.text for piece in stream.result.pieces)
    assert texts.replace("[S1] ", "").replace("[S2] ", "") == (
        "Can you count? Yes, I can count. The dogs are red. Good morning."
    )
    assert sum(map(len, chunks)) == 512 * stream.result.frames

    async def collect():
        async def arriving():
            for part in ("[S1] Hello, my ", "friend. ", "Can you sing?"):
                await asyncio.sleep(0)
                yield part

        return [chunk async for chunk in talker.astream(arriving(), seed=2)]

    assert sum(map(len, asyncio.run(collect()))) > 0
    with pytest.raises(ValueError, match="split=False needs all of it"):
        talker.stream(iter(["a"]), split=False)
    with pytest.raises(TypeError, match="the parts of a text must be strings, got int"):
        list(talker.stream(iter([3])))


def test_the_first_piece_does_not_wait_for_the_rest_of_the_text(talker):
    heard = threading.Event()

    def parts():
        yield "[S1] Can you count? [S2] Yes"
        assert heard.wait(60), "no sound of the first sentence while the second is open"
        yield ", my friend."

    for _ in talker.stream(parts(), seed=1):
        heard.set()


def test_closing_a_stream_frees_the_slots(talker):
    stream = talker.stream(SCRIPT * 4, seed=1)
    next(stream)
    stream.close()
    assert talker.generate(SHORT, seed=5) is not None
    assert talker.active_requests == 0


def test_mistakes_are_told_before_any_work(talker):
    for arguments, message in (
        ({"speed": 5}, r"speed must be in \[0.25, 4\], got 5"),
        ({"pause": -1}, r"pause must be in \[0, 60\], got -1"),
        ({"tail_silence": float("nan")}, "tail_silence must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            talker.generate(SCRIPT, **arguments)
    with pytest.raises(ValueError, match=r"speed must be in \[0.25, 4\], got 1000"):
        talker.generate(SHORT, speed=10**400)
    assert len(talker.generate(SHORT, seed=5, speed=np.float32(1.25))) == len(
        talker.generate(SHORT, seed=5, speed=1.25)
    )
    with pytest.raises(TypeError, match="split must be True or False, got 1"):
        talker.generate(SCRIPT, split=1)
    with pytest.raises(ValueError, match="nothing but speaker tags"):
        talker.generate("[S1] [S2] " * 300)


def test_plan_makes_the_mistakes_of_generate(talker):
    codes = np.zeros((4, talker.config.decoder.num_channels), np.int64)
    for script, arguments, message in (
        ("", {}, "text must not be empty"),
        ("[S1]", {}, "nothing but speaker tags"),
        ("[S1] \u200b [S2]", {"pause": 1.0}, "nothing but speaker tags"),
        ("\u200b", {"pause": 1.0}, "text must not be empty"),
        ("\ud800", {}, "cannot be encoded as UTF-8"),
        ("\udcff" * 300, {}, "cannot be encoded as UTF-8"),
        (SHORT, {"audio_prompt_text": "x" * 300}, "^audio_prompt_text has 300 bytes .* at most 256 of it"),
        (SCRIPT, {"audio_prompt_text": "x" * 300}, "^audio_prompt_text has 300 bytes .* at most 256 of it"),
        (SCRIPT, {"audio_prompt_text": "x" * 250}, "behind audio_prompt_text, 250 bytes, cannot be generated"),
        (SCRIPT * 2, {"split": False}, "the model reads at most 256"),
    ):
        prompt = {"audio_prompt": codes} if "audio_prompt_text" in arguments else {}
        with pytest.raises(ValueError, match=message) as generated:
            talker.generate(script, **prompt, **arguments)
        with pytest.raises(ValueError) as planned:
            talker.plan(script, **arguments)
        assert str(planned.value) == str(generated.value)
    for call in (talker.generate, lambda script: list(talker.stream(iter([script])))):
        with pytest.raises(ValueError, match="cannot be encoded as UTF-8"):
            call("\udcff" * 300)
    with pytest.raises(TypeError, match="audio_prompt_text must be a string, got int"):
        talker.plan(SHORT, audio_prompt_text=3)


def test_codes_without_a_codec(talker, whole):
    with Engine.load("talker", device="cpu", load_dac=False) as engine:
        assert np.array_equal(engine.generate(SCRIPT, seed=3), whole.codes)
        assert np.array_equal(np.concatenate(list(engine.stream(SCRIPT, seed=3))), whole.codes)
        with pytest.raises(ValueError, match="speed is about sound, and this engine has no codec"):
            engine.generate(SCRIPT, speed=0.5)


def test_progress_by_piece(talker, whole, capsys):
    told, heard = [], []
    talker.generate([SHORT, SCRIPT], seed=[5, 3], on_progress=told.append, verbose=True)
    assert [(each.index, each.pieces) for each in told] == [(1, count + 1) for count in range(len(whole.pieces))]
    for each, piece in zip(told, whole.pieces, strict=True):
        assert each.total == len(whole.pieces) and each.seconds == piece.end and each.elapsed > 0
        assert each.times_real_time == pytest.approx(each.seconds / each.elapsed)
    assert told[0].left > 0 and told[-1].left == pytest.approx(0, abs=1e-6)
    assert f"piece {len(told)} of {len(told)}, {whole.duration:.1f} s" in capsys.readouterr().err
    stream = talker.stream(iter([SCRIPT]), seed=3, on_progress=heard.append)
    sum(map(len, stream))
    assert [each.pieces for each in heard] == list(range(1, len(stream.result.pieces) + 1))
    assert all(each.total is None and each.left is None for each in heard) and "1 piece," in str(heard[0])
    talker.generate(SHORT, seed=5, on_progress=lambda _: pytest.fail("a script that is not planned has no pieces"))
    for call in (talker.generate, talker.stream):
        with pytest.raises(TypeError, match="on_progress must be a function of a Progress, got 5"):
            call(SHORT, on_progress=5)


# Checks and tries

LIMITS = LongFormSettings(good_bytes=128, piece_bytes=65, anchor_bytes=65, shortest=0.7, longest=1.45)
PIECE = list(plan_pieces(SCRIPT, 1, LIMITS))[1]


def made(frames: int, finish_reason: str = "stop", seed: int = 0) -> Generation:
    return Generation(None, np.zeros((frames, 4), np.int64), finish_reason, seed, frames, frames / 31.25)


def test_a_piece_is_judged_by_the_median_before_it():
    pace = Pace(2.0)
    assert pace.expected == 2.0
    for frames in (100, 100, 100):
        pace = pace.after(PIECE, made(frames))
    assert pace.expected == pytest.approx(100 / PIECE.size)
    for frames, good in ((100, True), (71, True), (69, False), (144, True), (146, False), (0, False)):
        assert is_good(PIECE, made(frames), pace, LIMITS) == good
    assert not is_good(PIECE, made(100, "length"), pace, LIMITS)
    tries = [made(0), made(160), made(60), made(100, "length")]
    assert best(PIECE, tries, pace) is tries[1]
    assert guard_frames(PIECE, 2.0) == PIECE.size // 2


def test_bad_pieces_are_made_again_at_most_twice(talker, whole, monkeypatch):
    seen = []

    def never(piece, generation, pace, settings):
        seen.append((piece.text, generation.seed))
        return False

    monkeypatch.setattr(script_task, "is_good", never)
    worst = talker.generate(SCRIPT, seed=3, details=True)
    assert [piece.tries for piece in worst.pieces] == [1] + [3] * (len(worst.pieces) - 1)
    assert len({seed for _, seed in seen}) == len(seen) == 2 * (len(worst.pieces) - 1)
    again = talker.generate(SCRIPT, seed=3, sampling_params=SamplingParams(), details=True)
    assert again.pieces == worst.pieces and np.array_equal(again.codes, worst.codes)


def in_thread(function, *arguments, **keywords):
    """Its result, which a test waits for no longer than `HANGS`."""
    return ThreadPoolExecutor(1).submit(function, *arguments, **keywords).result(HANGS)


@pytest.mark.parametrize("sizes", [{"chunk_frames": 400}, {"first_chunk_frames": 400}])
def test_a_chunk_may_be_longer_than_what_may_be_unread(talker, sizes, monkeypatch):
    monkeypatch.setattr(script_task, "UNREAD_SECONDS", 2.0)
    chunks = in_thread(list, talker.stream(SCRIPT * 4, seed=3, **sizes))
    assert len(chunks) > 1 and max(map(len, chunks)) == 400 * 512


def test_a_script_is_one_request_for_those_who_wait():
    """Its pieces wait in numbers, and must not keep others out."""
    with Engine.load("talker", device="cpu", max_slots=2, max_waiting=1) as engine, ThreadPoolExecutor(1) as pool:
        long = pool.submit(engine.generate, SCRIPT * 4, seed=3)
        answers = 0
        while not long.done():
            assert len(engine.generate("[S1] Yes.", seed=answers))
            answers += 1
        assert answers > 3 and len(long.result())


def test_of_scripts_for_which_there_is_no_room_none_is_begun(monkeypatch):
    start, begun = script_task.ScriptTask.start, []
    monkeypatch.setattr(script_task.ScriptTask, "start", lambda self: (begun.append(self), start(self)))
    with Engine.load("talker", device="cpu", max_slots=2, max_waiting=1) as engine:
        with engine.stream(SCRIPT * 8, seed=3) as running:
            next(running)
            scripts = [SCRIPT, SHORT, SCRIPT]
            for call in (engine.generate, lambda scripts, **params: next(engine.stream(scripts, **params))):
                with pytest.raises(EngineFull, match="^1 requests are running or waiting, and 3 more would exceed"):
                    call(scripts, seed=3)
            assert len(begun) == 1
        assert len(engine.generate(scripts, seed=3)) == 3


def test_a_cut_piece_of_a_few_frames_leaves_none(talker):
    """All of them are damaged: a cut end is as long as the largest delay."""
    for max_tokens in range(talker.config.max_delay + 2, 2 * talker.config.max_delay + 3):
        found = talker.generate(SCRIPT, seed=3, max_tokens=max_tokens, details=True)
        first = found.pieces[0]
        frames = round((first.end - first.start) * talker.sample_rate / talker.codec.hop_length)
        assert first.finish_reason == "length" and frames == max(0, max_tokens - 1 - 2 * talker.config.max_delay)


# A sample of each speaker

SAMPLES = {"S1": "I see two black cats.", "S2": "The dogs are red."}


@pytest.fixture(scope="module")
def samples(talker):
    """Codes of what each speaker says alone."""
    return {name: talker.generate(f"[{name}] {text}", seed=4, details=True).codes for name, text in SAMPLES.items()}


@pytest.mark.parametrize(
    "script, order", [(SHORT, "S1 S2"), ("[S2] Can you sing? [S1] No.", "S2 S1"), ("Can you sing?", "S1 S2")]
)
def test_a_sample_of_each_speaker_is_one_prompt_that_ends_with_the_other(talker, samples, script, order):
    found = talker.generate(script, audio_prompt=samples, audio_prompt_text=SAMPLES, seed=5)
    joined = np.concatenate([samples[name] for name in order.split()])
    transcript = " ".join(f"[{name}] {SAMPLES[name]}" for name in order.split())
    wanted = talker.generate(script, audio_prompt=joined, audio_prompt_text=transcript, seed=5)
    assert len(found) and np.array_equal(found, wanted)
    tagged = {name: f"[{name}] {text}" for name, text in SAMPLES.items()}
    assert np.array_equal(talker.generate(script, audio_prompt=samples, audio_prompt_text=tagged, seed=5), wanted)


def test_samples_are_the_anchor_of_every_piece(talker, samples):
    given = {"audio_prompt": samples, "audio_prompt_text": SAMPLES}
    plan = talker.plan(SCRIPT, seed=3, audio_prompt_text=SAMPLES)
    said = "[S1] I see two black cats. [S2] The dogs are red."
    assert len(plan.pieces) > 2 and {piece.anchor for piece in plan.pieces} == {said}
    assert all(piece.sent == f"{said} {piece.text}" or "[S2]" in piece.text[:4] for piece in plan.pieces)
    made = talker.generate(SCRIPT, seed=3, details=True, **given)
    assert [piece.text for piece in made.pieces] == [piece.text for piece in plan.pieces]
    assert np.array_equal(np.concatenate([*talker.stream(SCRIPT, seed=3, **given)]).shape, made.audio.shape)
    parts = talker.stream(iter([SHORT, FLUSH]), seed=5, **given)
    assert sum(map(len, parts)) and parts.result.frames


def test_samples_as_sound_and_in_lists(talker, samples):
    sound = {name: (talker.codec.decode(codes).numpy(), talker.sample_rate) for name, codes in samples.items()}
    encoded = {name: talker.load_audio(sample) for name, sample in sound.items()}
    wanted = talker.generate(SHORT, audio_prompt=encoded, audio_prompt_text=SAMPLES, seed=5)
    both = talker.generate(
        (SHORT, SHORT), audio_prompt=[sound, None], audio_prompt_text=(SAMPLES, None), seed=5, split=False
    )
    assert np.array_equal(both[0], wanted) and np.array_equal(both[1], talker.generate(SHORT, seed=5))


@pytest.mark.parametrize("prompt, text, message", [
    ({"S3": 1}, {"S3": "x"}, "the speakers of an audio_prompt are S1 and S2, got 'S3'"),
    ({}, {}, "the speakers of an audio_prompt are S1 and S2, got none"),
    ({"S1": 1}, {"S1": "x", "S2": "y"}, "must have the same speakers; one lacks S2"),
    ({"S1": 1}, "x", "must both be given by speaker, or neither"),
    ({"S1": 1}, None, "must both be given by speaker, or neither"),
    ({"S1": 1}, {"S1": " [S1] "}, "audio_prompt_text of S1 must say what is said"),
    ({"S1": 1}, {"S1": 3}, "audio_prompt_text of S1 must be a string, got 3"),
    ({"S1": 1}, {"S1": "[S1] a [S2] b"}, r"must be of S1 alone, but its transcript has \[S2\]"),
    ({"S1": None}, {"S1": "x"}, "an audio prompt of each speaker is"),
    ({"S1": "absent.wav"}, {"S1": "x"}, "absent.wav"),
    ({"S1": np.zeros((300, 4), int), "S2": np.zeros((300, 4), int)}, {"S1": "x", "S2": "y"}, "has 600 frames"),
])  # fmt: skip
def test_samples_that_cannot_be(talker, prompt, text, message):
    channels = talker.config.decoder.num_channels
    prompt = {
        name: np.zeros((len(each), channels), int) if isinstance(each, np.ndarray) else each
        for name, each in prompt.items()
    }
    for script, given, said in ((SHORT, prompt, text), ([SHORT], [prompt], [text])):
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
            talker.generate(script, audio_prompt=given, audio_prompt_text=said)
