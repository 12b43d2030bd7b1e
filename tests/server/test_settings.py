"""Settings: from options and the environment, refused in one line that names them."""

import argparse
import re
from dataclasses import fields

import pytest

from dia_engine.server.settings import PREFIX, Settings, add_arguments, read_settings
from tests.helpers import ROOT


def given(*arguments, **environment):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_settings(vars(parser.parse_args(arguments)), environment)


def test_options_go_before_the_environment():
    found = given("--port", "9", "--api-key", "a", "--api-key", "b", DIA_SERVE_PORT="8", DIA_SERVE_SLOTS="3")
    assert (found.port, found.slots, found.api_key, found.host) == (9, 3, ("a", "b"), "127.0.0.1")
    assert given(DIA_API_KEYS="x, y").api_key == ("x", "y")
    assert given(DIA_SERVE_MINT="1").mint and not given(DIA_SERVE_MINT="0").mint and given("--mint").mint


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"DIA_SERVE_PORT": "http"}, "DIA_SERVE_PORT must be an integer, got 'http'"),
        ({"DIA_SERVE_PORT": "70000"}, "port must be in [0, 65535], got 70000"),
        ({"DIA_SERVE_SLOTS": "0"}, "slots must be at least 1, got 0"),
        ({"DIA_SERVE_MAX_WAIT": "nan"}, "max_wait must be finite"),
        ({"DIA_SERVE_MINT": "perhaps"}, "DIA_SERVE_MINT must be 0 or 1"),
        ({"DIA_SERVE_LOG_FORMAT": "xml"}, "log_format must be one of text, json, got 'xml'"),
        ({"DIA_SERVE_ROOT_PATH": "api/"}, "root_path must begin with /"),
        ({"DIA_API_KEYS": "schlüssel"}, "api_key must be printable ASCII"),
        ({"DIA_API_KEYS": ","}, "DIA_API_KEYS must hold at least one value, with commas between several, got ','"),
        ({"DIA_API_KEYS": " "}, "DIA_API_KEYS must hold at least one value"),
        ({"DIA_SERVE_API_KEY": " ", "DIA_API_KEYS": "good"}, "DIA_SERVE_API_KEY must hold at least one value"),
    ],
)
def test_what_cannot_be_is_refused(environment, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        given(**environment)


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--host", "", "host must not be empty"),
        ("--host", " ", "host must not be empty"),
        ("--voices", "", "voices must not be empty"),
        ("--max-body-mb", "1e305", "max_body_mb must be in [0.001, 1000000], got 1e+305"),
        ("--max-upload-mb", "1e308", "max_upload_mb must be in [0.001, 1000000], got 1e+308"),
    ],
)
def test_options_that_cannot_be_are_refused(option, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        given(option, value)


def test_a_key_that_is_blank_is_refused_and_an_empty_variable_is_not_set():
    with pytest.raises(ValueError, match="api_key must be printable ASCII and not empty"):
        given("--api-key", " ")
    assert given(DIA_API_KEYS="").api_key == () and given(DIA_SERVE_API_KEY="", DIA_API_KEYS="x").api_key == ("x",)


def test_only_a_server_that_others_reach_without_a_key_is_public():
    assert Settings(host="0.0.0.0").is_public
    assert not Settings(host="0.0.0.0", api_key=("k",)).is_public and not Settings().is_public


def test_voices_of_a_model_have_a_folder_of_their_own(tmp_path):
    folder = Settings(model="../../etc/passwd", voices=str(tmp_path)).voices_folder
    assert folder.parent == tmp_path and ".." not in folder.parts
    assert Settings(model="nari-labs/Dia-1.6B-0626").voices_folder.name == "nari-labs-Dia-1.6B-0626"


def test_every_setting_is_documented():
    document = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    for each in fields(Settings):
        assert f"`--{each.name.replace('_', '-')}`" in document, each.name
    assert PREFIX in document and "DIA_API_KEYS" in document
