"""Text that arrives in parts from iterators that fail, that have no end, or that need the thread that waits."""

import asyncio
import threading
from itertools import repeat

import numpy as np
import pytest

from dia_engine import FLUSH
from dia_engine.longform.planning import turns
from dia_engine.longform.planning.plan import derived_seed
from dia_engine.longform.planning.source import Arriving
from dia_engine.longform_settings import LongFormSettings

PARTS = ("[S1] Can you count? ", "[S2] Yes, my friend.")


async def arriving():
    for part in PARTS:
        await asyncio.sleep(0)
        yield part


def test_an_asynchronous_text_without_a_loop(talker):
    for call in (talker.generate, talker.stream, talker.astream):
        with pytest.raises(RuntimeError, match="needs a running event loop: call astream in a coroutine"):
            call(arriving())


def test_a_loop_that_would_wait_for_itself(talker):
    async def wait():
        talker.generate(arriving())

    async def read():
        for _ in talker.stream(arriving()):
            pass

    for mistake in (wait, read):
        with pytest.raises(RuntimeError, match="comes from the event loop that this call would block"):
            asyncio.run(mistake())
    assert talker.active_requests == 0


def test_async_with_gives_the_rest_up(talker):
    async def first():
        async with talker.astream(" ".join(PARTS) * 20, seed=1) as stream:
            await anext(stream)
        return [chunk async for chunk in stream]

    assert asyncio.run(first()) == []


def test_a_text_without_an_end_is_read_as_it_is_spoken(talker):
    produced = 0

    def endless():
        nonlocal produced
        for part in repeat("[S1] Hello. "):
            produced += 1
            yield part

    async def endless_too():
        for part in endless():
            yield part

    with talker.stream(endless(), seed=1) as stream:
        assert len([next(stream) for _ in range(4)]) == 4
    assert produced < 2000

    async def read():
        async with talker.astream(endless_too(), seed=1) as stream:
            return [await anext(stream) for _ in range(4)]

    produced = 0
    assert len(asyncio.run(read())) == 4 and produced < 2000


@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.parametrize("chunk_frames", [None, 1, 400])
def test_all_of_a_sentence_is_heard_before_the_next_text_comes(talker, flushes, chunk_frames):
    """A language model may take its time: the end of a sentence that is there does not wait for it."""
    goes_on = threading.Event()

    def parts():
        yield from ("[S1] Yes, I can see you. ", *([FLUSH] if flushes else ["Now "]))
        assert goes_on.wait(60)
        yield "it is over."

    with talker.stream(parts(), seed=3, chunk_frames=chunk_frames) as stream:
        alone = talker.generate("[S1] Yes, I can see you.", seed=derived_seed(3, 0), details=True)
        kept_back = 0 if flushes else talker.windows.receptive_field.after
        wanted, heard = (alone.frames - kept_back) * talker.codec.hop_length, 0
        chunks = []
        while heard < wanted:
            chunks.append(next(stream))
            heard += len(chunks[-1])
        goes_on.set()
        chunks += stream
    assert heard == wanted and len(stream.result.pieces) == 2
    first = np.concatenate(chunks)[:wanted]
    assert np.abs(first - alone.audio[:wanted]).max() < 1e-5


class FailingText:
    """An iterator over parts that raises `at_end` behind them and `at_close` when it is closed."""

    def __init__(self, parts=PARTS, at_end=StopIteration, at_close=None):
        self.parts, self.at_end, self.at_close = iter(parts), at_end, at_close

    def __iter__(self):
        return self

    def __next__(self):
        part = next(self.parts, None)
        if part is None:
            raise self.at_end
        return part

    def close(self):
        if self.at_close is not None:
            raise self.at_close


@pytest.mark.parametrize("parts, fails_in", [((), "at_end"), (PARTS, "at_end"), (PARTS, "at_close")])
def test_errors_of_an_iterator_are_the_readers(talker, parts, fails_in):
    for call in (talker.generate, lambda text: list(talker.stream(text))):
        with pytest.raises(ZeroDivisionError, match="of the text"):
            call(FailingText(parts, **{fails_in: ZeroDivisionError("of the text")}))


def read_by(talker, arguments):
    """The calls that may end in an error, each with these arguments."""

    async def asynchronously():
        return [chunk async for chunk in talker.astream(**arguments())]

    yield lambda: talker.generate(**arguments())
    yield lambda: list(talker.stream(**arguments()))
    yield lambda: asyncio.run(asynchronously())


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_an_error_that_would_end_a_loop_ends_none_in_silence(talker, kind):
    def stop(progress):
        raise kind

    long = " ".join(PARTS) * 4
    for call in read_by(talker, arguments=lambda: {"text": long, "seed": 1, "on_progress": stop}):
        with pytest.raises(RuntimeError, match=f"^on_progress raised {kind.__name__}$") as told:
            call()
        assert isinstance(told.value.__cause__, kind)
    if kind is StopAsyncIteration:  # of an iterator, where StopIteration is its end
        for call in read_by(talker, arguments=lambda: {"text": FailingText(at_end=kind), "seed": 1}):
            with pytest.raises(RuntimeError, match="^the iterator of the text raised StopAsyncIteration$"):
                call()


def test_an_asynchronous_text_that_raises_stop_iteration(talker):
    class Text:
        def __aiter__(self):
            return self

        def __anext__(self):
            raise StopIteration

    async def read():
        return [chunk async for chunk in talker.astream(Text(), seed=1)]

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        asyncio.run(read())


TALKER = LongFormSettings(good_bytes=128, piece_bytes=65, anchor_bytes=65)


@pytest.mark.parametrize("passes_on", [True, False])
def test_a_cancelled_source_is_no_end_that_is_waited_for(talker, passes_on):
    async def read():
        model = asyncio.create_task(asyncio.sleep(60))

        async def text():
            yield "[S1] Hello there. [S2] Can you count? " * 3
            asyncio.get_running_loop().call_later(0.2, model.cancel)
            if passes_on:
                await model
            raise asyncio.CancelledError

        async def rest():
            return [chunk async for chunk in talker.astream(text(), seed=1)]

        await asyncio.wait_for(rest(), timeout=30)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(read())


def pieces_of(parts, one_turn=False):
    """The pieces of a text that arrives in parts, as they can be taken: before its end, and behind it."""
    source = Arriving(1, TALKER, None, one_turn, False, check=lambda piece: None)
    early = []
    for part in parts:
        source.feed(part)
        while source.ready:
            early.append(source.take(idle=False))
        assert len(source._text) < 4 * TALKER.piece_bytes, "what waits is looked at again with every part"
    source.end()
    return early, [*early, *iter(lambda: source.take(idle=False), None)]


@pytest.mark.parametrize("text", ["word " * 2000, "x" * 9000, "(" + "laughs " * 900, "\u4f60\u597d" * 900])
def test_a_sentence_without_an_end_is_cut_while_it_arrives(text):
    for size in (4, 1000):
        early, pieces = pieces_of(text[start : start + size] for start in range(0, len(text), size))
        assert len(early) >= len(pieces) - 8 > 70
        assert "".join(piece.text for piece in pieces).replace(" ", "") == text.replace(" ", "")
        assert all(piece.size <= 1.5 * TALKER.piece_bytes + 8 for piece in pieces)


@pytest.mark.parametrize("unit", ["x", "word ", "(laughs ", "(laughs) ", "a. b ", "[S1] ", "\u4f60"])
def test_planning_takes_time_by_the_length_of_a_text(monkeypatch, unit):
    ends, looked_at = turns._ends, 0

    def counted(text, pattern):
        nonlocal looked_at
        looked_at += len(text)
        return ends(text, pattern)

    monkeypatch.setattr(turns, "_ends", counted)
    for size in (5_000, 20_000):
        looked_at = 0
        pieces_of([unit * (size // len(unit))])
        assert looked_at < 30 * size


@pytest.mark.parametrize("parts, wanted", [
    (["Hello. ", "My friend. ", FLUSH, "Yes."], [("Hello. My friend.", True), ("Yes.", False)]),
    (["[S1] ", FLUSH, "Hello. ", FLUSH, "Yes. [S2] ", FLUSH, "No."],
     [("[S1] Hello.", True), ("[S1] Yes.", False), ("[S2] No.", True)]),
    (["[S1] Hello. [S2] ", FLUSH, "[S1] Yes."], [("[S1] Hello.", True), ("[S1] Yes.", False)]),
])  # fmt: skip
def test_turns_begin_where_the_speaker_changes_however_the_text_is_cut(parts, wanted):
    _, pieces = pieces_of(parts, one_turn=True)
    assert [(piece.text, piece.opens_turn) for piece in pieces] == wanted
