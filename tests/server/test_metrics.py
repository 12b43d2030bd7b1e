"""Metrics count what happens, and the dashboard and the documents name no others."""

import json
import re

import pytest

from tests.helpers import ROOT
from tests.server.helpers import LONG, TEXT, until

DASHBOARD = ROOT / "deploy" / "grafana" / "dia-engine.json"
NAME = re.compile(r"\bdia_[a-z_]+")


def published(server):
    """Names of all samples."""
    lines = server.client.get("/metrics").text.splitlines()
    return {line.split("{")[0].split(" ")[0] for line in lines if line and not line.startswith("#")}


def test_a_request_is_counted(server, talker):
    before = {name: server.metric(name) for name in ("dia_audio_seconds_total", "dia_steps_total")}
    for _ in range(2):
        assert server.speak().status_code == 200
    assert server.speak(voice="nobody").status_code == 400
    server.idle()
    duration = talker.generate(TEXT, seed=3, details=True).duration
    made = server.metric("dia_audio_seconds_total") - before["dia_audio_seconds_total"]
    assert made == pytest.approx(2 * duration, rel=0.02)
    assert server.metric("dia_steps_total") - before["dia_steps_total"] >= 2 * duration * 30
    names = ("first_audio_seconds", "request_seconds", "queue_seconds", "real_time_factor", "underrun_seconds")
    for name in (*names, "step_seconds", "batch_rows"):
        assert server.metric(f"dia_{name}_count") >= 2, name
    assert server.metric("dia_slots") == 4 and server.metric("dia_queue_size") == 16
    assert server.metric("dia_model_info") == 1


@pytest.mark.parametrize("name", ["pcm", "mp3", "aac", "opus", "flac"])
def test_sound_that_completes_no_bytes_yet_is_counted_with_the_next(server, talker, name):
    """Chunks of a frame, of which an encoder takes several."""
    duration = talker.generate(TEXT, seed=3, details=True).duration
    names = ("dia_audio_seconds_total", "dia_sent_audio_seconds_total")
    for is_streamed in (True, False):
        before = [server.metric(each) for each in names]
        fields = {"response_format": name, "sample_rate": None if name == "opus" else 8000, "stream": is_streamed}
        assert server.speak(**fields, chunk_frames=1, first_chunk_frames=1).status_code == 200
        server.idle()
        until(lambda: not server.app.state.service.sessions)
        counted = [server.metric(each) - then for each, then in zip(names, before, strict=True)]
        assert counted == pytest.approx([duration] * 2, abs=1e-3), is_streamed


def test_a_long_script_is_one_request_in_several_slots(server):
    with server.stream(LONG * 30) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        until(lambda: server.metric("dia_slots_used") > 1)
        assert server.metric("dia_requests_running") == 1 and server.metric("dia_requests_waiting") == 0
        state = server.client.get("/health").json()
        assert state["running"] == 1 and state["slots_used"] <= state["slots"] == 4
    until(lambda: server.metric("dia_slots_used") == 0)


def test_every_metric_of_the_dashboard_exists(server):
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for expression in expressions for name in NAME.findall(expression)}
    assert len(names) > 12 and names <= published(server)


def test_every_metric_is_documented_and_every_documented_one_exists(server):
    document = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(dia_[a-z_]+)(?:\{[^}]*\})?`", document))
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in published(server) if name.startswith("dia_")}
    assert documented == {name for name in names if not name.endswith("_created")}


def test_the_schema_tells_what_is_sent(server):
    schema = server.client.get("/openapi.json").json()
    for path, route in schema["paths"].items():
        for method, operation in route.items():
            assert "422" not in operation["responses"] and "4XX" in operation["responses"], path
            assert ("security" in operation) == (method == "delete" or method == "post"), path
    spoken = schema["paths"]["/v1/audio/speech"]["post"]["responses"]["200"]["content"]
    assert {"audio/mpeg", "audio/pcm", "text/event-stream"} <= set(spoken)
    assert "application/json" not in spoken


def test_every_route_is_documented(server):
    document = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    for path in server.client.get("/openapi.json").json()["paths"]:
        assert f"{path.replace(':path', '')}`" in document, path
