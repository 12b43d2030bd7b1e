"""The page: what it loads and asks for is here. `make test-page` runs it in a browser."""

import re

from dia_engine.server.routes.page import PAGE


def test_the_page_needs_nothing_from_elsewhere(server):
    answer = server.client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    sources = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}
    assert set(sources) == {"index.html", "player.js"}
    for text in sources.values():
        found = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`]*", text)
        assert set(found) <= {"http://www.w3.org/2000/svg"}, found
    assert server.client.get("/player.js").headers["content-type"].startswith("text/javascript")


def test_the_routes_that_it_asks_exist(server):
    page = server.client.get("/").text
    asked = set(re.findall(r"(?:ask|fetch)\(\"([\w/]+?)/?\"", page)) | set(re.findall(r"href=\"(\w+)\"", page))
    assert {"v1/audio/speech", "v1/audio/voices", "v1/models", "health", "docs", "metrics"} <= asked
    for path in asked:
        assert server.client.get(f"/{path}").status_code in (200, 405), path


def test_the_defaults_that_it_shows_are_the_engines(server, talker):
    described = server.client.get("/v1/models").json()["data"][0]["dia"]
    assert described["defaults"]["temperature"] == talker.defaults["temperature"]
    assert described["sample_rate"] == 16_000 and described["max_bytes"] == 256 and described["is_toy"]
    assert described["good_bytes"] == talker.long_form.good_bytes
