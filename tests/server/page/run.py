"""The page in a headless Chromium: `make test-page`. Needs a Chromium (`apt install chromium`, or playwright's own).

python -m tests.server.page.run [--screenshots docs/images]
"""

import argparse
import random
import shutil
import tempfile
from pathlib import Path

import axe_playwright_python
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from dia_engine import Engine
from dia_engine.server.speech.service import STARTING
from tests.server.helpers import Server, body, raw, until

LONGEST = 90_000  # milliseconds
ELSEWHERE = "page.test"  # a name of this machine for which a browser has no worklets: it is not localhost
FAKE = [
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
]
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
# Whether a canvas has a pixel that is not transparent.
DRAWN = """(name) => {
    const canvas = document.getElementById(name);
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return pixels.some((value, index) => index % 4 === 3 && value);
}"""
# Has a page note its sources of sound that play.
NOTE_SOURCES = """
    window.playing = new Set();
    const { start, stop } = AudioBufferSourceNode.prototype;
    AudioBufferSourceNode.prototype.start = function (...when) {
        window.playing.add(this);
        this.addEventListener("ended", () => window.playing.delete(this));
        return start.apply(this, when);
    };
    AudioBufferSourceNode.prototype.stop = function (...when) {
        window.playing.delete(this);
        return stop.apply(this, when);
    };
"""
# Has a page note its contexts of sound.
NOTE_CONTEXTS = """
    window.contexts = [];
    window.AudioContext = class extends AudioContext {
        constructor(options) { super(options); window.contexts.push(this); }
    };
"""
# Has a page ask for a microphone until it is granted by `grant()`, and note its streams.
NOTE_MICROPHONES = """() => {
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    window.streams = [];
    window.asked = 0;
    const granted = new Promise((resolve) => { window.grant = resolve; });
    navigator.mediaDevices.getUserMedia = async (wanted) => {
        window.asked++;
        await granted;
        window.streams.push(await ask(wanted));
        return window.streams.at(-1);
    };
}"""
LIVE = "streams.flatMap((stream) => stream.getTracks()).filter((track) => track.readyState === 'live').length"
FOCUSED = "document.activeElement.id"
LOADED = "document.getElementById('voice').options.length > 3"
SCRIPT = "[S1] Hello, my little robot.\n[S2] Can you count?"
LONG = "[S1] Can you count? [S2] Five six seven eight nine. "


class Checks:
    """Named checks, counted."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, name: str, holds: bool, note: object = "") -> None:
        self.failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'} {name} {note}", flush=True)


def state(page: Page) -> dict:
    return page.evaluate("window.dia")


def load(page: Page, url: str = "") -> None:
    """Go to a page, or load it once more, until it lists the voices."""
    page.goto(url) if url else page.reload()
    page.wait_for_function(LOADED, timeout=LONGEST)


def break_connections(server: Server) -> None:
    for connection in list(server.listener.server_state.connections):
        server.loop.call_soon_threadsafe(connection.transport.abort)


def speak(page: Page) -> None:
    """Speak to the end of playing."""
    page.click("#speak")
    page.wait_for_function("window.dia.done", timeout=LONGEST)


def check_speaking(page: Page, check: Checks, server: Server) -> None:
    page.fill("#script", "")
    page.type("#script", SCRIPT)
    check("the script is colored", page.locator("#colored b.two").count() == 1)
    check("its bytes are counted", "of 128 bytes" in page.inner_text("#count"), page.inner_text("#count"))
    page.click("#palette button:has-text('(laughs)')")
    check("a sound is inserted at the cursor", page.input_value("#script").endswith("(laughs) "))
    page.fill("#script", SCRIPT)
    page.keyboard.press("Alt+x")
    check("speakers are swapped", "[S1] Can you count?" in page.input_value("#script"), page.input_value("#script"))
    page.fill("#script", "\n[S1] Hello.")
    page.evaluate("document.getElementById('script').setSelectionRange(0, 0)")
    page.keyboard.press("Alt+x")
    check("of no line but the cursor's", page.input_value("#script") == "\n[S1] Hello.", page.input_value("#script"))
    page.fill("#script", LONG * 4)  # of so many chunks that a browser does not read all but one as one
    page.click("#speak")
    page.wait_for_function("window.dia.chunks > 1", timeout=LONGEST)
    check("audio plays while it is made", page.is_enabled("#stop"))
    page.wait_for_function("window.dia.done", timeout=LONGEST)
    found = state(page)
    check("samples arrived in chunks and were played", found["chunks"] > 2 and found["played"] > 16_000, found)
    check("they are not silent", found["peak"] > 0.05)
    check("no gap between chunks", found["gaps"] == 0, found["gaps"])
    for name in ("wave", "spectrum"):
        check(f"the {name} is drawn", page.evaluate(DRAWN, name))
    check("first audio is shown", page.inner_text("#first").endswith(" s"), page.inner_text("#first"))


def said(page: Page, words: str) -> str:
    """What the page says, once it says these words."""
    page.wait_for_function(
        "words => document.getElementById('message').textContent.includes(words)", arg=words, timeout=LONGEST
    )
    return page.inner_text("#message")


def check_stopping(page: Page, check: Checks, server: Server) -> None:
    page.fill("#script", LONG * 40)
    page.click("#speak")
    page.wait_for_function("window.dia.chunks > 0", timeout=LONGEST)
    page.click("#history li:first-child button:text-is('Play')")
    check("a result does not play into another request", said(page, "stop it") and page.is_enabled("#stop"))
    page.click("#stop")
    server.idle()
    check("stop frees the slot", "Stopped" in page.inner_text("#message"), page.inner_text("#message"))
    first = page.locator("#history li:first-child")
    check("what was made is kept", first.locator("button:text-is('WAV')").count() == 1)
    check("a part is no voice: its words are not known", not first.locator("button:text-is('Use as a voice')").count())
    check("and is not made again: that would be all", not first.locator("button:text-is('MP3')").count())
    page.fill("#script", SCRIPT)
    page.click("#speak")
    said(page, "Made ")
    check("stop works as long as something plays", page.is_enabled("#stop"))
    page.click("#stop")
    played = state(page)["played"]
    page.wait_for_timeout(300)
    stopped = page.is_disabled("#stop") and state(page)["played"] <= played + 4096
    check("and ends it", stopped and "Stopped" in page.inner_text("#message"), state(page))


def check_long(page: Page, check: Checks) -> None:
    page.fill("#script", LONG * 4)
    check("a long script is spoken in pieces", "in pieces" in page.inner_text("#count"), page.inner_text("#count"))
    speak(page)
    found = state(page)
    check("all of it is played", found["played"] > 16_000 * 8 and not found["gaps"], found)
    for name in ("wave", "spectrum"):
        fills = page.evaluate(
            "(name) => document.getElementById(name).at >= 0.95 * document.getElementById(name).width", name
        )
        check(f"the {name} of it fills its canvas", fills)


def check_keyboard(page: Page, check: Checks) -> None:
    load(page)
    page.keyboard.press("Tab")
    check("the script is the first to be reached", page.evaluate("document.activeElement.id") == "script")
    page.keyboard.press("Control+a")
    page.keyboard.press("Alt+1")
    page.keyboard.type("Hello. ")
    page.keyboard.press("Alt+2")
    page.keyboard.type("Can you count?")
    check(
        "speakers by keys",
        page.input_value("#script") == "[S1] Hello. [S2] Can you count?",
        page.input_value("#script"),
    )
    page.keyboard.press("Control+Enter")
    page.wait_for_function("window.dia.chunks > 0", timeout=LONGEST)
    page.keyboard.press("Escape")
    check("Escape stops", "Stopped" in said(page, "Stopped"))
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "WAV":
            break
    with page.expect_download(timeout=LONGEST) as waiting:
        page.keyboard.press("Enter")
    check("a result is reached and kept by keys", Path(waiting.value.path()).stat().st_size > 44)


def check_mistakes(page: Page, check: Checks) -> None:
    """What is wrong is told, and what it was is not lost."""
    page.fill("#script", "x" * 4097)
    check("a script that is too long is said to be", "too many" in page.inner_text("#count"), page.inner_text("#count"))
    page.click("#speak")
    check("and refused", "4096 characters" in said(page, "characters"), page.inner_text("#message"))
    page.fill("#script", SCRIPT)
    page.fill("#p-temperature", "-3")
    page.click("#speak")
    check("a wrong parameter", "temperature" in said(page, "temperature"), page.inner_text("#message"))
    page.fill("#p-temperature", "")
    page.type("#p-temperature", "1-2")
    page.click("#speak")
    check("a parameter that is no number", "Temperature" in said(page, "no number"), page.inner_text("#message"))
    page.fill("#p-temperature", "")
    for seed in ("", "x", "1.5", "9" * 17):
        page.fill("#seed", seed)
        page.check("#lock")
        page.click("#speak")
        check(f"a wrong seed {seed!r}", "whole number" in said(page, "Seed"))
    page.uncheck("#lock")
    page.fill("#script", "  ")
    page.click("#speak")
    check("an empty script", "input" in said(page, "input"), page.inner_text("#message"))
    page.fill("#script", SCRIPT)
    page.click("summary:has-text('API key')")
    page.fill("#key", "key\u200b")
    page.click("#speak")
    check("a key that cannot be sent", "API key" in said(page, "character"), page.inner_text("#message"))
    page.fill("#key", "")
    page.evaluate("document.querySelector('#upload').parentElement.open = true")
    page.set_input_files("#file", files=[{"name": "a.wav", "mimeType": "audio/wav", "buffer": b"RIFF" + bytes(3000)}])
    page.fill("#transcript", SCRIPT)
    page.check("#consent")
    page.click("#upload button:has-text('Keep this voice')")
    check("audio that is none", "cannot be decoded" in said(page, "cannot"), page.inner_text("#message"))
    check("the transcript is still there", page.input_value("#transcript") == SCRIPT)
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        file.write(b"RIFF" + bytes(3000))
        file.flush()
        page.set_input_files("#file", file.name)
    page.click("#upload button:has-text('Keep this voice')")
    check("a file that is gone", "cannot be read" in said(page, "file"), page.inner_text("#message"))
    for status_text in ("Bad Gateway", ""):  # HTTP/2 has none
        page.evaluate(
            "text => { fetch = async () => new Response('<html>', { status: 502, statusText: text }); }", status_text
        )
        page.click("#speak")
        check("an error of a proxy", (status_text or "Error 502") in said(page, status_text or "502"))


def check_failing_server(context: BrowserContext, check: Checks, engine: Engine, folder: str) -> None:
    """A server that is full, whose connection breaks, and that is gone."""
    page = context.new_page()
    with Server(engine, voices=folder, max_waiting=0) as server:
        load(page, server.url)
        taken = [raw(server, body(LONG * 70)) for _ in range(engine.max_slots)]
        until(lambda: server.metric("dia_requests_running") == engine.max_slots)
        unused = context.new_page()
        unused.add_init_script(NOTE_CONTEXTS)
        load(unused, server.url)
        page.click("#speak")
        check(
            "a server without room", ". Try again in" in said(page, "the server is full"), page.inner_text("#message")
        )
        for each in taken:
            each.close()
        server.idle()
        page.fill("#script", LONG * 40)
        page.click("#speak")
        page.wait_for_function("window.dia.chunks > 0", timeout=LONGEST)
        break_connections(server)
        check("a connection that breaks", "broke after" in said(page, "broke"), page.inner_text("#message"))
        check("what was made until then is kept", page.locator("#history li").count() == 1)
    page.click("#speak")
    check("a server that is gone", "does not answer" in said(page, "answer"), page.inner_text("#message"))
    unused.click("#speak")
    check(
        "one that is gone at the first time", "does not answer" in said(unused, "answer"), unused.inner_text("#message")
    )
    unused.wait_for_function("contexts.length === 1 && contexts[0].state === 'closed'", timeout=LONGEST)
    unused.close()
    page.close()


def check_made_again(context: BrowserContext, check: Checks, server: Server) -> None:
    """A result that is made again as MP3 can be stopped, and can break."""
    page = context.new_page()
    load(page, server.url)
    page.fill("#script", SCRIPT)
    speak(page)
    # A long one's request with the short one's sound: it takes a while to be made again.
    page.evaluate("script => keep({ input: script, voice: 'alloy', seed: 1 }, sound)", LONG * 40)
    again = page.locator("#history li:first-child button:text-is('MP3')")
    again.click()
    until(lambda: server.metric("dia_requests_running") == 1)
    page.click("#stop")
    server.idle()
    check("an MP3 that is made can be stopped", said(page, "Stopped") and page.is_disabled("#stop"))
    with page.expect_response("**/v1/audio/speech", timeout=LONGEST):  # its head; the audio takes longer
        again.click()
    break_connections(server)
    check("or break", "connection broke" in said(page, "broke"), page.inner_text("#message"))
    page.close()


def check_focus(context: BrowserContext, check: Checks, server: Server) -> None:
    """A button that cannot be used for a while keeps the focus."""
    page = context.new_page()
    load(page, server.url)
    page.fill("#script", SCRIPT)
    page.focus("#speak")
    page.keyboard.press("Space")
    page.wait_for_function("window.dia.done", timeout=LONGEST)
    check("Speak has the focus after it", page.evaluate(FOCUSED) == "speak", page.evaluate(FOCUSED))
    page.fill("#script", LONG * 40)
    page.focus("#speak")
    page.keyboard.press("Space")
    page.wait_for_function("window.dia.chunks > 0", timeout=LONGEST)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    check("Stop has it too", said(page, "Stopped") and page.evaluate(FOCUSED) == "stop", page.evaluate(FOCUSED))
    page.close()


def check_restart(context: BrowserContext, check: Checks, server: Server) -> None:
    """A page that is opened while the model loads, and a server that is started again with another model."""
    service, page = server.app.state.service, context.new_page()
    ready, model = service._state, service.settings.model
    service._state = STARTING
    load(page, server.url)
    page.click("#speak")
    check("a model that is being loaded", "Try again" in said(page, "loaded"), page.inner_text("#message"))
    check("a script waits for it", page.input_value("#script") == "", page.input_value("#script"))
    service._state = ready
    check("it is told once it is there", said(page, "talker is ready") and "Can you" in page.input_value("#script"))
    object.__setattr__(service.settings, "model", "other/model")
    said(page, "other/model is ready")
    check("another model is noticed", page.inner_text("#model") == "other/model", page.inner_text("#model"))
    speak(page)
    check("and speaks", state(page)["played"] > 16_000, state(page))
    object.__setattr__(service.settings, "model", model)
    page.close()


def check_editor(browser: Browser, check: Checks, url: str) -> None:
    """With scrollbars that take room the colored script lies under the one that is edited."""
    page = browser.new_page(bypass_csp=True)
    load(page, url)
    draw, words = random.Random(1), "the quick brown robot can you count five six seven eight nine hello little".split()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        differ = 0
        for _ in range(10):
            turns = (f"[S{1 + turn % 2}] " + " ".join(draw.choices(words, k=draw.randint(8, 30))) for turn in range(12))
            page.fill("#script", "\n".join(turns))
            sizes = "['script', 'colored'].map((id) => $(id)).map((each) => [each.clientWidth, each.scrollHeight])"
            edited, colored = page.evaluate(sizes)
            differ += edited != colored
        check(f"lines break alike at {width}", not differ, differ)
    check("there are scrollbars", page.evaluate("$('script').offsetWidth - $('script').clientWidth > 10"))
    page.close()


def check_elsewhere(context: BrowserContext, check: Checks, server: Server) -> None:
    """Over plain HTTP from another machine."""
    page = context.new_page()
    page.add_init_script(NOTE_SOURCES)
    load(page, server.url.replace("127.0.0.1", ELSEWHERE))
    check("there are no worklets there", page.evaluate("new AudioContext().audioWorklet === undefined"))
    page.fill("#script", LONG * 4)
    speak(page)
    found = state(page)
    check("it plays all the same", found["played"] > 16_000 and found["chunks"] > 2 and not found["gaps"], found)
    page.click("summary:has-text('A voice of your own')")
    page.click("#record")
    check("recording says what it needs", "https" in said(page, "https"))
    page.fill("#script", LONG * 6)
    page.click("#speak")
    page.wait_for_function("window.dia.played > 4000", timeout=LONGEST)
    playing = page.evaluate("playing.size")
    page.click("#stop")
    check("it stops", page.is_disabled("#stop") and "Stopped" in said(page, "Stopped"))
    check("and is not heard any more", playing > 0 and not page.evaluate("playing.size"), playing)
    page.close()


def record(page: Page) -> None:
    """Record what becomes the audio of a voice."""
    page.click("#record")
    page.wait_for_timeout(2500)
    page.click("#record")
    page.wait_for_function("document.getElementById('recorded').textContent === 'recorded'", timeout=LONGEST)


def check_recording(page: Page, check: Checks) -> None:
    """Recordings and their microphones; the last line of the history can be a voice."""
    page.fill("#script", SCRIPT)
    speak(page)
    page.evaluate(NOTE_MICROPHONES)
    page.click("#record")
    page.evaluate("document.getElementById('record').click()")  # before the first click was granted anything
    page.evaluate("grant()")
    page.wait_for_function("document.getElementById('record').textContent === 'End recording'", timeout=LONGEST)
    check("a microphone is asked for once", page.evaluate("asked") == 1 and page.evaluate(LIVE) == 1)
    page.click("#keep-voice")
    check("what is still recorded is no voice", "End the recording" in said(page, "recording"))
    page.click("#history li:first-child button:text-is('Use as a voice')")
    page.wait_for_function(f"{LIVE} === 0", timeout=LONGEST)
    found = [page.inner_text("#recorded"), page.inner_text("#record"), page.evaluate("source.type")]
    check("a result takes a recording's place", found == ["the audio above", "Record", "audio/wav"], found)
    page.evaluate("() => { MediaRecorder = class { constructor() { throw new Error('no recorder'); } }; }")
    page.click("#record")
    told = said(page, "no recorder")
    check("a recorder that fails leaves no microphone on", not page.evaluate(LIVE), told)
    load(page)
    page.click("summary:has-text('A voice of your own')")


def check_voices(page: Page, check: Checks, folder: Path, server: Server) -> None:
    wav = folder / "voice.wav"
    wav.write_bytes(server.speak(SCRIPT, response_format="wav", stream=False).content)
    page.click("summary:has-text('A voice of your own')")
    page.set_input_files("#file", str(wav))
    page.fill("#transcript", SCRIPT)
    page.fill("#name", "uploaded")
    page.click("#upload button:has-text('Keep this voice')")
    check("consent is asked for", "agreed" in page.inner_text("#message"), page.inner_text("#message"))
    page.check("#consent")
    page.click("#upload button:has-text('Keep this voice')")
    page.wait_for_function("document.getElementById('message').textContent.includes('is kept')", timeout=LONGEST)
    check("a voice is uploaded and chosen", page.input_value("#voice").startswith("uploaded-"))
    page.fill("#script", "[S1] Hello.")
    speak(page)
    check("it speaks", state(page)["played"] > 3000, state(page))
    kept = [page.is_checked("#consent"), page.input_value("#file"), page.input_value("#transcript")]
    check("consent to it is none to the next one", kept == [False, "", ""], kept)
    check_recording(page, check)
    page.set_input_files("#file", str(wav))
    record(page)
    check("a recording takes a file's place", page.input_value("#file") == "", page.input_value("#file"))
    page.fill("#name", "recorded")
    page.fill("#transcript", "[S1] Hello.")
    page.check("#consent")
    page.dblclick("#keep-voice")
    said(page, "recorded is kept")
    check("a recording becomes a voice", page.input_value("#voice").startswith("recorded-"))
    server.idle()
    found = list(folder.glob("**/recorded-*/audio.bin"))
    check("one, however often one clicks", len(found) == 1, found)
    check("of the recording, not of a file that was chosen before", not found[0].read_bytes().startswith(b"RIFF"))
    page.click("#delete")
    page.wait_for_function("document.getElementById('message').textContent.includes('deleted')", timeout=LONGEST)
    check("a voice is deleted", not page.locator("#voice option[value^='recorded-']").count())
    check("the focus goes to the voices", page.evaluate(FOCUSED) == "voice", page.evaluate(FOCUSED))
    page.fill("#script", SCRIPT)


def check_results(page: Page, check: Checks) -> None:
    speak(page)
    for label, start in (("WAV", b"RIFF"), ("MP3", b"\xff"), ("OPUS", b"OggS")):
        with page.expect_download(timeout=LONGEST) as waiting:
            page.click(f"#history li:first-child button:text-is('{label}')")
        data = Path(waiting.value.path()).read_bytes()
        check(f"a download as {label}", data.startswith(start) and len(data) > 2000, len(data))
    page.evaluate("window.dia = {played: 0, gaps: 0, done: false}")
    page.click("#history li:first-child button:text-is('Play')")
    page.wait_for_function("window.dia.done", timeout=LONGEST)
    check("a result plays again", state(page)["played"] > 16_000)
    page.fill("#p-temperature", "0.4")
    page.fill("#seed", "12345")
    page.fill("#script", "[S2] Hello.")
    speak(page)
    page.fill("#script", "[S1] Another one.")
    page.click("#history li:first-child button:text-is('Link')")
    said(page, "link")
    check("a link leaves the script alone", page.input_value("#script") == "[S1] Another one.")
    link = page.url
    other = page.context.new_page()
    load(other, link)
    other.wait_for_function("document.getElementById('seed').value === '12345'", timeout=LONGEST)
    restored = [other.input_value(each) for each in ("#script", "#seed", "#p-temperature")]
    check("a link restores all", restored == ["[S2] Hello.", "12345", "0.4"], restored)
    page.uncheck("#lock")
    page.fill("#seed", "777")
    page.press("#seed", "Control+Enter")
    check("a seed that is typed is taken at once", "seed 777" in said(page, "Made "), page.inner_text("#message"))
    page.fill("#seed", "12345")
    page.click("summary:has-text('This request in')")
    check(
        "curl and Python are shown",
        "curl http" in page.inner_text("#curl") and '"seed":12345' in page.inner_text("#python"),
    )
    page.fill("#seed", "x")
    shown = [page.inner_text("#curl"), page.inner_text("#python")]
    check("without a seed that is none", not any('"seed"' in each for each in shown), shown)
    page.fill("#seed", "12345")
    other.close()


def check_policy(page: Page, check: Checks, url: str) -> None:
    """The other checks evaluate strings in the page, which its own policy forbids: once with it."""
    noise: list[str] = []
    page.on("console", lambda message: noise.append(message.text) if message.type in ("error", "warning") else None)
    page.goto(url)
    page.wait_for_selector("#voice option[value='nova']", state="attached", timeout=LONGEST)
    page.click("#speak")
    page.wait_for_selector("#history li", timeout=LONGEST)
    check("it works under its content security policy", not noise and state(page)["peak"] > 0.05, noise)


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong for people who do not see or point."""
    page.add_script_tag(content=AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return [f"{each['id']}: {each['nodes'][0]['target']}" for each in found]


def fits(page: Page) -> bool:
    """Whether nothing is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def check_long_words(page: Page, check: Checks) -> None:
    """Words that are wider than a phone: of a script, a message, a model's name, a voice's."""
    page.evaluate("keep({ input: 'Hello'.repeat(60), voice: 'v'.repeat(200) }, sound)")
    page.evaluate("say('x'.repeat(200), true)")
    page.evaluate("$('model').textContent = '/home/models/' + 'fine_tuned_'.repeat(20)")
    page.evaluate("choose('W'.repeat(60))")
    page.fill("#script", "Hello" * 60)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        check(f"long words at {width}", fits(page), page.evaluate("document.documentElement.scrollWidth"))
        found = violations(page)
        check(f"long words at {width}: axe finds nothing", not found, found)
    load(page)
    page.fill("#script", SCRIPT)
    speak(page)


def main() -> int:
    """Run all of it; the number of checks that failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--screenshots", type=Path)
    options = parser.parse_args()
    check, noise = Checks(), []
    with (
        tempfile.TemporaryDirectory() as folder,
        Engine.load("talker", device="cpu") as engine,
        Server(engine, voices=folder) as server,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=[*FAKE, "--no-sandbox"])
        context = browser.new_context(bypass_csp=True, viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.on("console", lambda message: noise.append(message.text) if message.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: dialog.accept())
        page.on("pageerror", lambda error: noise.append(str(error)))
        load(page, server.url)
        check("it says that the model is a toy", page.is_visible("#toy"))
        check_speaking(page, check, server)
        check_stopping(page, check, server)
        check_long(page, check)
        check_voices(page, check, Path(folder), server)
        check_results(page, check)
        history = page.url
        check("no error on the console", not noise, noise)
        check_keyboard(page, check)
        check("no error on the console by keys", not noise, noise)
        check_mistakes(page, check)
        check_failing_server(context, check, engine, folder)
        check_made_again(context, check, server)
        check_focus(context, check, server)
        check_restart(context, check, server)
        check_elsewhere(context, check, server)
        check_policy(browser.new_context().new_page(), check, server.url)
        page = browser.new_context(bypass_csp=True).new_page()
        load(page, history)
        page.fill("#script", SCRIPT)
        speak(page)
        check_long_words(page, check)
        for theme in ("light", "dark"):
            for name, width in (("wide", 1280), ("phone", 390), ("narrow", 320)):
                page.emulate_media(color_scheme=theme)
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_timeout(300)
                check(f"{theme}, {name}: nothing is cut off", fits(page))
                found = violations(page)
                check(f"{theme}, {name}: axe finds nothing", not found, found)
                if options.screenshots and name != "narrow":
                    page.screenshot(path=str(options.screenshots / f"page-{theme}-{name}.png"), full_page=True)
        browser.close()
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"], ignore_default_args=["--hide-scrollbars"]
        )
        check_editor(browser, check, server.url)
        browser.close()
    return check.failed


if __name__ == "__main__":
    raise SystemExit(main())
