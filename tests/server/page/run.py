"""The page in a headless Chromium: `make test-page`. Needs a Chromium (`apt install chromium`, or playwright's own).

python -m tests.server.page.run [--screenshots docs/images]
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import axe_playwright_python
from playwright.sync_api import BrowserContext, Page, sync_playwright

from dia_engine import Engine
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
    page.reload()
    page.wait_for_function("document.getElementById('voice').options.length > 3", timeout=LONGEST)
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
    page.evaluate("document.querySelector('#upload').parentElement.open = true")
    page.set_input_files("#file", files=[{"name": "a.wav", "mimeType": "audio/wav", "buffer": b"RIFF" + bytes(3000)}])
    page.fill("#transcript", SCRIPT)
    page.check("#consent")
    page.click("#upload button:has-text('Keep this voice')")
    check("audio that is none", "cannot be decoded" in said(page, "cannot"), page.inner_text("#message"))
    check("the transcript is still there", page.input_value("#transcript") == SCRIPT)


def check_failing_server(context: BrowserContext, check: Checks, engine: Engine, folder: str) -> None:
    """A server that is full, whose connection breaks, and that is gone."""
    page = context.new_page()
    with Server(engine, voices=folder, max_waiting=0) as server:
        page.goto(server.url)
        page.wait_for_function("document.getElementById('voice').options.length > 3", timeout=LONGEST)
        taken = [raw(server, body(LONG * 70)) for _ in range(engine.max_slots)]
        until(lambda: server.metric("dia_requests_running") == engine.max_slots)
        page.click("#speak")
        check("a server without room", "Try again in" in said(page, "the server is full"), page.inner_text("#message"))
        for each in taken:
            each.close()
        server.idle()
        page.fill("#script", LONG * 40)
        page.click("#speak")
        page.wait_for_function("window.dia.chunks > 0", timeout=LONGEST)
        for connection in list(server.listener.server_state.connections):
            server.loop.call_soon_threadsafe(connection.transport.abort)
        check("a connection that breaks", "broke after" in said(page, "broke"), page.inner_text("#message"))
        check("what was made until then is kept", page.locator("#history li").count() == 1)
    page.click("#speak")
    check("a server that is gone", "does not answer" in said(page, "answer"), page.inner_text("#message"))
    page.close()


def check_elsewhere(context: BrowserContext, check: Checks, server: Server) -> None:
    """Over plain HTTP from another machine."""
    page = context.new_page()
    page.goto(server.url.replace("127.0.0.1", ELSEWHERE))
    page.wait_for_function("document.getElementById('voice').options.length > 3", timeout=LONGEST)
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
    page.click("#stop")
    page.wait_for_timeout(200)
    check("it stops", page.is_disabled("#stop") and "Stopped" in page.inner_text("#message"))
    page.close()


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
    page.set_input_files("#file", [])
    page.click("#record")
    page.wait_for_timeout(2500)
    page.click("#record")
    page.wait_for_function("document.getElementById('recorded').textContent === 'recorded'", timeout=LONGEST)
    page.fill("#name", "recorded")
    page.fill("#transcript", "[S1] Hello.")
    page.click("#upload button:has-text('Keep this voice')")
    page.wait_for_function(
        "document.getElementById('message').textContent.includes('recorded is kept')", timeout=LONGEST
    )
    check("a recording becomes a voice", page.input_value("#voice").startswith("recorded-"))
    page.click("#delete")
    page.wait_for_function("document.getElementById('message').textContent.includes('deleted')", timeout=LONGEST)
    check("a voice is deleted", not page.locator("#voice option[value^='recorded-']").count())
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
    page.dispatch_event("#seed", "change")
    speak(page)
    page.click("#history li:first-child button:text-is('Link')")
    link = page.url
    other = page.context.new_page()
    other.goto(link)
    other.wait_for_function("document.getElementById('voice').options.length > 3", timeout=LONGEST)
    other.wait_for_function("document.getElementById('seed').value === '12345'", timeout=LONGEST)
    restored = [other.input_value(each) for each in ("#script", "#seed", "#p-temperature")]
    check("a link restores all", restored == ["[S2] Hello.", "12345", "0.4"], restored)
    page.click("summary:has-text('This request in')")
    check(
        "curl and Python are shown",
        "curl http" in page.inner_text("#curl") and '"seed":12345' in page.inner_text("#python"),
    )
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
        page.goto(server.url)
        page.wait_for_function("document.getElementById('voice').options.length > 3", timeout=LONGEST)
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
        check_elsewhere(context, check, server)
        check_policy(browser.new_context().new_page(), check, server.url)
        page = browser.new_context(bypass_csp=True).new_page()
        page.goto(history)
        page.wait_for_function("document.getElementById('voice').options.length > 3", timeout=LONGEST)
        page.fill("#script", SCRIPT)
        speak(page)
        for theme in ("light", "dark"):
            for name, width in (("wide", 1280), ("phone", 390), ("narrow", 320)):
                page.emulate_media(color_scheme=theme)
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_timeout(300)
                fits = page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
                check(f"{theme}, {name}: nothing is cut off", fits)
                found = violations(page)
                check(f"{theme}, {name}: axe finds nothing", not found, found)
                if options.screenshots and name != "narrow":
                    page.screenshot(path=str(options.screenshots / f"page-{theme}-{name}.png"), full_page=True)
        browser.close()
    return check.failed


if __name__ == "__main__":
    raise SystemExit(main())
