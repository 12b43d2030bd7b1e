"""Voices: made once from seeds, uploaded, deleted; their folder is whole whatever happens."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dia_engine.engine import Engine
from dia_engine.files.wav_header import wav_header
from dia_engine.server.errors import ApiError
from dia_engine.server.lifecycle import Startup
from dia_engine.server.settings import Settings
from dia_engine.server.speech.service import SpeechService
from dia_engine.server.voices.mint import NAMES, TRIES, mint
from dia_engine.server.voices.store import VoiceStore
from tests.helpers import ROOT
from tests.server.helpers import HANGS, Server, body

SAID = "[S1] Can you count? [S2] Five six seven eight nine."
CONSENT = {"consent": "The speaker agreed."}


@pytest.fixture(scope="module")
def recording(server):
    """A WAV of a dialogue."""
    return server.speak(SAID, response_format="wav", stream=False).content


def upload(server, recording, **fields):
    data = {"name": "My voice", "ref_text": SAID, **CONSENT} | fields
    data = {name: value for name, value in data.items() if value is not None}
    return server.client.post("/v1/audio/voices", data=data, files={"audio_sample": ("a.wav", recording, "audio/wav")})


def prompt(store, name):
    return asyncio.run(store.prompt(name))


def test_a_premade_voice_is_made_once_and_kept(talker, tmp_path):
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)

    async def two_at_once():
        return await asyncio.gather(store.prompt("alloy"), store.prompt("Alloy"))

    first, second = asyncio.run(two_at_once())
    assert first is second and len(first.codes) > 40
    again = VoiceStore(tmp_path, "talker")
    again.attach(talker)
    assert (
        torch.equal(prompt(again, "alloy").codes, first.codes) and prompt(again, "alloy").transcript == first.transcript
    )
    nova = prompt(store, "nova")
    assert not torch.equal(nova.codes[:20], first.codes[:20])
    # It leaves a request of the talker 190 bytes of its 256.
    assert len(first.transcript.replace("[S1]", "1")) + 1 + 190 <= talker.config.encoder.max_position_embeddings
    assert {voice.id for voice in store.list()} == {"default", *NAMES}
    for name in ("default", "S1", "s2"):
        assert prompt(store, name) is None


def test_a_kept_voice_that_leaves_no_room_is_made_anew_and_kept_as_it_is(talker, tmp_path):
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    kept = prompt(store, "alloy").codes
    small = Engine.load("talker", device="cpu", max_slots=1, max_rows=40)
    with small, Server(small, voices=str(tmp_path.parent), model=tmp_path.name) as server:
        assert server.app.state.startup.error is None and server.status() == 200
        short = prompt(server.app.state.service.voices, "alloy")
        assert 0 < len(short.codes) < 20 and server.speak(voice="alloy").status_code == 200
    again = VoiceStore(tmp_path, "talker")
    again.attach(talker)
    assert torch.equal(prompt(again, "alloy").codes, kept)


@pytest.mark.parametrize("rows", [5, 6])
def test_rows_that_leave_nothing_to_speak_behind_a_voice_are_refused(tmp_path, rows):
    async def start(engine):
        startup = Startup(SpeechService(Settings(model="talker", voices=str(tmp_path))), engine)
        startup.begin()
        try:
            await startup.finished()
        finally:
            await startup.end()

    with Engine.load("talker", device="cpu", max_slots=1, max_rows=rows) as engine:
        if rows == 6:
            asyncio.run(start(engine))
        else:
            with pytest.raises(ValueError, match="^--max-rows must be at least 6 to speak with a voice, got 5"):
                asyncio.run(start(engine))


def test_a_request_with_a_voice_is_generate_with_its_prompt(server, talker):
    voice = prompt(server.app.state.service.voices, "alloy")
    answer = server.speak(SAID, voice="alloy")
    whole = talker.generate(
        SAID.removeprefix("[S1] "), seed=3, audio_prompt=voice.codes, audio_prompt_text=voice.transcript
    )
    found = np.frombuffer(answer.content, "<i2") / 32767
    assert len(found) == len(whole) and np.abs(found - whole.clip(-1, 1)).max() < 1e-4


def test_upload_speak_and_delete(server, recording):
    made = upload(server, recording).json()
    assert made["object"] == "audio.voice" and made["name"] == "My voice" and made["id"].startswith("my-voice-")
    listed = {voice["id"]: voice for voice in server.client.get("/v1/audio/voices").json()["voices"]}
    assert listed[made["id"]]["ref_text"] == SAID
    eleven = server.client.get("/v1/voices").json()["voices"]
    assert {"voice_id": made["id"], "name": "My voice", "category": "cloned", "labels": {}} in eleven
    for voice in (made["id"], {"id": made["id"]}):
        assert server.speak("[S1] Hello.", voice=voice).status_code == 200
    assert server.speak("[S1] Hello.", voice=" my VOICE ").status_code == 200, "its name, as clients show it"
    other = upload(server, recording).json()
    for voice, status in (("My voice", 400), (other["id"], 200)):
        answer = server.speak("[S1] Hello.", voice=voice)
        assert answer.status_code == status and (status == 200 or other["id"] in answer.json()["error"]["message"])
    server.client.delete(f"/v1/audio/voices/{other['id']}")
    gone = server.client.delete(f"/v1/audio/voices/{made['id']}")
    assert gone.json()["deleted"] is True and gone.json()["object"] == "audio.voice.deleted"
    assert server.speak("[S1] Hello.", voice=made["id"]).status_code == 400
    assert server.client.delete(f"/v1/audio/voices/{made['id']}").status_code == 404


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"ref_text": None}, "ref_text"),
        ({"ref_text": "  "}, "ref_text"),
        ({"ref_text": "word " * 300}, "ref_text"),
        ({"consent": None}, "consent"),
        ({"consent": " "}, "consent"),
        ({"name": None}, "name"),
        ({"name": " "}, "name"),
        ({"name": "x" * 201}, "name"),
    ],
)
def test_an_upload_that_lacks_something_is_refused(server, recording, fields, param):
    answer = upload(server, recording, **fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_text_that_is_no_unicode_is_refused_and_breaks_no_list(server, recording):
    """A client names the charset of its form: this one makes half of a surrogate pair of six bytes."""
    part = b'--B\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=B; charset=unicode_escape"}
    before = server.client.get("/v1/voices").json()
    for param in ("name", "ref_text"):
        fields = {"name": b"me", "ref_text": SAID.encode(), "consent": b"yes", param: b"x\\ud800"}
        form = b"".join(part % (name.encode(), b"", value) for name, value in fields.items())
        form += part % (b"audio_sample", b'; filename="a.wav"', recording) + b"--B--\r\n"
        answer = server.client.post("/v1/audio/voices", content=form, headers=kind)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
        assert "surrogate" in answer.json()["error"]["message"]
    assert server.client.get("/v1/audio/voices").status_code == 200
    assert server.client.get("/v1/voices").json() == before


def test_an_upload_that_is_no_audio_is_refused(server, recording):
    for data in (b"", b"RIFF", recording[:60], b"#EXTM3U\n/etc/passwd\n", b"\xff" * 9999):
        answer = upload(server, data)
        assert answer.status_code == 400 and "/etc" not in answer.text, answer.text
    assert server.client.post("/v1/audio/voices", content=b"x").status_code == 400
    assert server.client.post("/v1/audio/voices", data={"name": "x", "audio_sample": "text"}).status_code == 400


def test_a_page_of_another_site_cannot_upload(server, recording):
    """A form needs no permission of CORS."""
    files = {"audio_sample": ("a.wav", recording, "audio/wav")}
    data = {"name": "x", "ref_text": SAID, **CONSENT}
    for origin, status in (("http://elsewhere.example", 403), ("null", 403), (server.url, 200)):
        headers = {"Origin": origin}
        assert server.client.post("/v1/audio/voices", data=data, files=files, headers=headers).status_code == status


def test_no_name_leads_out_of_the_folder(server, recording):
    for name in ("../../x", "/etc/passwd", "..", "voice.json", "a/b", "con", "\0", "ü" * 30):
        answer = upload(server, recording, name=name)
        folder = server.settings.voices_folder
        if answer.status_code == 200:
            identity = answer.json()["id"]
            assert (folder / identity / "voice.json").is_file() and "/" not in identity
            assert server.client.delete(f"/v1/audio/voices/{identity}").status_code == 200
        for path in (f"/v1/audio/voices/{name}", "/v1/audio/voices/..%2f..%2fetc"):
            assert server.client.delete(path.replace("\0", "%00")).status_code in (400, 404, 405)
    assert server.client.delete("/v1/audio/voices/alloy").status_code == 400
    assert not list(folder.parent.glob("*x*"))


def test_a_voice_of_another_codec_is_encoded_anew(talker, tmp_path, recording):
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    voice = asyncio.run(store.create("mine", recording, SAID))
    codes = prompt(store, voice.id).codes
    (tmp_path / voice.id / f"codes-{store._codec}.safetensors").rename(tmp_path / voice.id / "codes-other.safetensors")
    again = VoiceStore(tmp_path, "talker")
    again.attach(talker)
    assert torch.equal(prompt(again, voice.id).codes, codes)


def test_a_voice_that_lost_its_sound_says_so(talker, tmp_path, recording):
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    voice = asyncio.run(store.create("mine", recording, SAID))
    for path in (tmp_path / voice.id).iterdir():
        if path.name != "voice.json":
            path.unlink()
    again = VoiceStore(tmp_path, "talker")
    again.attach(talker)
    with pytest.raises(ApiError, match="is damaged .* upload it again") as error:
        prompt(again, voice.id)
    assert error.value.code == "voice_damaged"
    again.delete(voice.id)


def test_damaged_folders_are_no_voices(talker, tmp_path):
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    damaged = {
        "bad-json": "{", "wrong-fields": '{"a": 1}', "list": "[]",
        "half-a-pair": r'{"name": "\ud800", "category": "cloned"}',
        "no-number": '{"name": "x", "category": "cloned", "created": NaN}',
        "name-of-a-number": '{"name": 7, "category": "cloned", "transcript": "[S1] Hi."}',
        "transcript-of-a-list": '{"name": "x", "category": "cloned", "transcript": ["[S1] Hi."]}',
        "no-category": '{"name": "x", "category": null, "transcript": "[S1] Hi."}',
        "nothing-said": '{"name": "x", "category": "cloned", "transcript": " "}',
    }  # fmt: skip
    for name, content in damaged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "voice.json").write_text(content)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    assert {voice.id for voice in store.list()} == {"default", *NAMES}
    for name in ("x", "some name", "empty"):
        with pytest.raises(ApiError, match="no voice") as unknown:
            prompt(store, name)
        assert unknown.value.status == 400
    for name in damaged:
        with pytest.raises(ApiError, match="is damaged") as error:
            prompt(store, name)
        assert (error.value.status, error.value.code) == (500, "voice_damaged")
        store.delete(name)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    "codes",
    [
        torch.zeros(20, dtype=torch.int16),
        torch.zeros((20, 3), dtype=torch.int16),
        torch.zeros((0, 4), dtype=torch.int16),
        torch.full((20, 4), 256, dtype=torch.int16),
        torch.full((20, 4), -1, dtype=torch.int16),
        torch.zeros((20, 4)),
    ],
    ids=["a vector", "three channels", "no frame", "too large", "negative", "floats"],
)
def test_codes_that_cannot_be_are_encoded_again(talker, tmp_path, recording, codes):
    """Without the audio the voice is damaged."""
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    voice = asyncio.run(store.create("mine", recording, SAID))
    path = tmp_path / voice.id / f"codes-{store._codec}.safetensors"
    save_file({"codes": codes}, path)
    again = VoiceStore(tmp_path, "talker")
    again.attach(talker)
    made = prompt(again, "mine").codes
    assert torch.equal(made, prompt(store, voice.id).codes) and torch.equal(load_file(path)["codes"].long(), made)
    save_file({"codes": codes}, path)
    (tmp_path / voice.id / "audio.bin").unlink()
    again = VoiceStore(tmp_path, "talker")
    again.attach(talker)
    with pytest.raises(ApiError) as error:
        prompt(again, voice.id)
    assert error.value.code == "voice_damaged"


def test_what_lies_above_the_folder_is_no_voice(talker, tmp_path):
    store = VoiceStore(tmp_path / "voices", "talker")
    store.attach(talker)
    (tmp_path / "voices").mkdir()
    for folder in (tmp_path, tmp_path / "voices"):
        (folder / "voice.json").write_text('{"name": "x", "category": "cloned", "transcript": "[S1] Hi."}')
    for name in ("..", ".", "../voices", ""):
        with pytest.raises(ApiError, match="no voice"):
            prompt(store, name)
        with pytest.raises(ApiError, match="no voice") as error:
            store.delete(name)
        assert error.value.status == 404
    assert (tmp_path / "voice.json").is_file() and (tmp_path / "voices" / "voice.json").is_file()


def test_there_is_a_most_of_voices(talker, tmp_path, recording, monkeypatch):
    monkeypatch.setattr("dia_engine.server.voices.store.MAX_VOICES", 1)
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    first = asyncio.run(store.create("first", recording, SAID))
    with pytest.raises(ApiError, match="there are 1 voices already") as error:
        asyncio.run(store.create("second", recording, SAID))
    assert error.value.status == 400 and [path.name for path in tmp_path.iterdir()] == [first.id]
    store.delete(first.id)
    assert asyncio.run(store.create("second", recording, SAID)).name == "second"


@pytest.mark.parametrize(
    "tries, used",
    [
        ([("stop", 1.0)], 0),
        ([("length", 5.0), ("stop", 5.0)], 1),
        ([("stop", 0.99), ("length", 9.0), ("stop", 2.0)], 2),
        ([("length", 5.0)] * TRIES, TRIES - 1),
    ],
)
def test_a_premade_voice_is_the_first_try_that_has_an_end_and_a_second(talker, tries, used):
    seeds = []

    def generate(line, *, seed, **_):
        reason, seconds = tries[len(seeds)]
        seeds.append(seed)
        return SimpleNamespace(finish_reason=reason, duration=seconds, codes=np.full((9, 4), len(seeds) - 1))

    engine = SimpleNamespace(generate=generate, codec=talker.codec, config=talker.config, max_rows=talker.max_rows)
    made = mint(engine, "talker", 3)
    assert seeds == [3 + 1000 * index for index in range(used + 1)] and (made.codes == used).all()


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link-to-nothing").symlink_to(tmp_path / "nothing")
    (tmp_path / "link-to-itself").symlink_to(tmp_path / "link-to-itself")
    for name in ("file", "link-to-nothing", "link-to-itself"):
        for folder in (tmp_path / name, tmp_path / name / "voices"):
            with pytest.raises(NotADirectoryError, match=f"{name} is no folder"):
                VoiceStore(folder, "talker")


def test_a_disk_that_is_full_is_told(talker, tmp_path, recording, monkeypatch):
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    monkeypatch.setattr(store, "_create", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(ApiError, match="cannot save the voice") as failed:
        asyncio.run(store.create("a", recording, SAID))
    assert failed.value.status == 503


def test_a_disk_that_is_full_while_codes_are_written(talker, tmp_path, recording, monkeypatch, caplog):
    """safetensors has an error of its own for it. A premade voice is spoken all the same."""

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    monkeypatch.setattr("safetensors.torch.serialize_file", full)
    assert len(prompt(store, "alloy").codes) and "voice alloy is not kept" in caplog.text
    with pytest.raises(ApiError, match="cannot save the voice") as failed:
        asyncio.run(store.create("a", recording, SAID))
    assert failed.value.status == 503 and not list(tmp_path.iterdir())


def test_a_temporary_folder_that_is_full_is_no_mistake_of_the_client(server, recording, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", full)
    answer = upload(server, recording)
    assert answer.status_code == 503 and "temporary folder" in answer.json()["error"]["message"], answer.text
    assert "No space left on device" in caplog.text and answer.json()["error"]["code"] is None


def test_a_folder_that_cannot_be_written_keeps_its_voices(talker, tmp_path, recording, monkeypatch):
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    voice = asyncio.run(store.create("mine", recording, SAID))

    def refused(path, target):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(ApiError, match="cannot delete the voice") as failed:
        store.delete(voice.id)
    assert failed.value.status == 503 and prompt(store, voice.id) is not None
    monkeypatch.undo()
    store.delete(voice.id)
    assert not list(tmp_path.iterdir())


def test_a_voice_that_is_deleted_twice_at_once(talker, tmp_path, recording, monkeypatch):
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    voice = asyncio.run(store.create("mine", recording, SAID))
    monkeypatch.setattr(store, "_is_kept", lambda identity: True)  # as both see it
    store.delete(voice.id)
    with pytest.raises(ApiError, match="there is no voice"):
        store.delete(voice.id)


def test_a_voice_that_goes_while_it_is_looked_up(talker, tmp_path, recording, monkeypatch):
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    voice = asyncio.run(store.create("mine", recording, SAID))
    kept = prompt(store, voice.id)
    monkeypatch.setattr(store, "_exists", lambda identity: store._prompts.pop(identity, None) or True)
    assert torch.equal(prompt(store, voice.id).codes, kept.codes)


def test_names_that_are_asked_for_leave_nothing(talker, tmp_path, recording):
    store = VoiceStore(tmp_path, "talker")
    store.attach(talker)
    voice = asyncio.run(store.create("mine", recording, SAID))
    again = VoiceStore(tmp_path, "talker")
    again.attach(talker)
    assert prompt(again, voice.id) is not None
    again.delete(voice.id)
    for name in (voice.id, *(f"nobody-{index}" for index in range(20))):
        with pytest.raises(ApiError, match="no voice"):
            prompt(again, name)
    assert not again._locks and not again._prompts


def test_slow_work_on_voices_leaves_the_threads_of_others_alone(talker, tmp_path, monkeypatch):
    """In the event loop's default pool requests begin."""
    store, busy, over = VoiceStore(tmp_path, "talker"), threading.Event(), threading.Event()
    store.attach(talker)
    monkeypatch.setattr(store, "_make_prompt", lambda *_: busy.set() or over.wait(HANGS))

    async def both():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        making = asyncio.create_task(store.prompt("alloy"))
        while not busy.is_set():
            await asyncio.sleep(0.001)
        try:
            return await asyncio.wait_for(asyncio.to_thread(lambda: not over.is_set()), 5)
        finally:
            over.set()
            await making

    assert asyncio.run(both())
    store.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        prompt(store, "nova")


KILLED = """
import asyncio, sys
from pathlib import Path
from dia_engine import Engine
from dia_engine.server.voices.store import VoiceStore
store = VoiceStore(Path(sys.argv[1]), "talker")
store.attach(Engine.load("talker", device="cpu"))
recording = Path(sys.argv[2]).read_bytes()
async def work():
    print("ready", flush=True)
    for index in range(1000):
        voice = await store.create("mine", recording, "[S1] Can you count? [S2] Five six seven eight nine.")
        store.delete(voice.id)
        await store.create(f"kept {index}", recording, "[S1] Can you count? [S2] Five six seven eight nine.")
asyncio.run(work())
"""


@pytest.mark.slow
def test_a_killed_server_leaves_a_whole_folder(talker, tmp_path, recording):
    """Killed at several moments of uploads: each voice that is listed can be spoken with, nothing half is left."""
    (tmp_path / "a.wav").write_bytes(recording)
    folder = tmp_path / "voices"
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "a.wav")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    while not folder.is_dir() or not any(folder.iterdir()):
        time.sleep(0.001)
    time.sleep(0.15)
    process.kill()
    process.wait()
    process.stdout.close()
    store = VoiceStore(folder, "talker")
    store.attach(talker)
    assert not [path for path in folder.iterdir() if path.name.endswith(".partial")]
    for voice in store.list():
        if voice.category == "cloned":
            assert len(prompt(store, voice.id).codes)
            assert json.loads((folder / voice.id / "voice.json").read_text())["transcript"] == SAID


def test_the_audio_of_an_upload_may_be_of_any_usual_rate(server):
    wav = server.speak(SAID, response_format="wav", sample_rate=44_100, stream=False).content
    answer = upload(server, wav, ref_text=SAID)
    assert answer.status_code == 200, answer.text
    stereo = wav_header(16_000, 40_000) + b"\1\0" * 20_000
    assert upload(server, stereo).status_code == 400  # almost silent


def test_voices_survive_a_restart(talker, tmp_path, recording):
    with Server(talker, voices=str(tmp_path)) as server:
        made = upload(server, recording).json()["id"]
    with Server(talker, voices=str(tmp_path)) as server:
        assert server.client.post("/v1/audio/speech", json=body("[S1] Hello.", voice=made)).status_code == 200
