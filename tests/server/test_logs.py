"""Log lines hold what they should: one line per record, and of a script nothing unless it was asked for."""

import contextlib
import json
import logging
import sys

import pytest

from dia_engine.server.logs import TextFormatter
from tests.server.helpers import Server, body, until


@contextlib.contextmanager
def records(name):
    """What a logger of the server gets meanwhile."""
    logger, found, handler = logging.getLogger(f"dia_engine.server.{name}"), [], logging.Handler()
    handler.emit = found.append
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_a_path_neither_begins_a_line_nor_reaches_the_terminal(server):
    with records("middleware") as found:
        server.client.get("/x%0A2026-11-27%20INFO%20speech%1b[31m%e2%80%ae")
        until(lambda: any("speech" in record.fields["path"] for record in found))
    line = TextFormatter().format(next(record for record in found if "speech" in record.fields["path"]))
    assert "\n" not in line and line.isprintable()
    assert r"path=/x\n2026-11-27 INFO speech\x1b[31m\u202e status=404" in line


def test_an_exception_stands_below_its_line_which_has_the_fields():
    try:
        raise ValueError("a\n2026-11-27 INFO forged \x1b[31m")
    except ValueError:
        record = logging.makeLogRecord({"msg": "a bug\n", "levelname": "ERROR", "exc_info": sys.exc_info()})
    record.fields = {"request": "req_1", "param": None}
    first, *below = TextFormatter().format(record).split("\n")
    assert first.endswith(" ERROR a bug request=req_1")
    assert below[0] == "  Traceback (most recent call last):" and all(line.startswith("  ") for line in below)
    assert below[-1] == r"  2026-11-27 INFO forged \x1b[31m"


@pytest.mark.parametrize("log_text", [False, True])
def test_a_script_that_is_refused_is_in_the_log_only_if_asked(talker, voices, log_text):
    with Server(talker, voices=str(voices), log_text=log_text) as server, records("speech.session") as found:
        content = body("[S1] My secret is \ud800 forty two.", pause=1.0)
        data = json.dumps(content).encode()
        answer = server.client.post("/v1/audio/speech", content=data, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and "secret" in answer.json()["error"]["message"]
        until(lambda: found)
    line = TextFormatter().format(found[0])
    assert "error=invalid_value" in line and ("secret" in line) is log_text
