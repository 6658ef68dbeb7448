"""The page in Chromium, on a server of an echo; the microphone beeps once a second.

They need the `browser` extra and Chromium: `make page`.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from interaction.engine.engine import Engine
from interaction.serve.app import About
from interaction.serve.house import House
from interaction.serve.limits import Door
from interaction.types import Special
from tests.background.fakes import words
from tests.serve.echo import EchoModel, serving

pytest.importorskip("playwright", reason="needs the browser extra")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the browser extra")

from playwright.sync_api import Page, expect  # noqa: E402

from experiments.chromium import open_page  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
pytestmark = pytest.mark.skipif(not pathlib.Path(CHROMIUM).exists(), reason="needs Chromium")
BEEPS = "--use-fake-device-for-media-stream"
KEEP_SOCKETS = """
window.sockets = [];
window.WebSocket = class extends WebSocket {
  constructor(...given) { super(...given); window.sockets.push(this); }
};
"""
COUNT_CHANGES = """
window.told = [];
document.addEventListener("DOMContentLoaded", () => {
  const said = document.querySelector("#said");
  new MutationObserver(() => window.told.push(said.textContent)).observe(said, {childList: true});
});
"""


@contextlib.contextmanager
def page_of(
    script: str = "",
    *options: str,
    heard: str = "",
    setup: str = "",
    rows: int = 2,
    frames: bool = False,
    **more: Any,
) -> Iterator[Page]:
    """The page of a model that says and hears these words, a token in a micro-turn."""
    silent, none = [Special.SILENT] * 4, [Special.NONE] * 2
    model = EchoModel([*silent, *words(script)], [*none, *words(heard)] if heard else [])
    house = House(Engine(model, rows, frames=frames), "demo", **more)
    with (
        serving(house, About("Numbers.", ["one two"])) as address,
        open_page(CHROMIUM, (BEEPS, *options), setup) as page,
    ):
        page.set_default_timeout(10_000)
        page.goto(f"http://{address}/?watch")
        expect(page.locator("#examples li")).to_have_count(1)
        page.model = model  # pyrefly: ignore[missing-attribute]
        yield page


def status(page: Page, text: str) -> None:
    expect(page.get_by_role("status")).to_contain_text(text, timeout=10_000)


def test_a_keyboard_reaches_every_control_and_talks() -> None:
    with page_of("one two") as page:
        assert page.locator("#examples").inner_text() == "one two"
        reached = []
        for _ in range(4):
            page.keyboard.press("Tab")
            focus = page.evaluate(
                "[document.activeElement.id, getComputedStyle(document.activeElement.id === 'open'"
                " ? document.activeElement.parentElement : document.activeElement).outlineStyle]"
            )
            reached.append(tuple(focus))
        wanted = ("talk", "open", "transcript", "delegations")
        assert reached == [(name, "solid") for name in wanted]
        page.focus("#talk")
        page.keyboard.press("Enter")
        status(page, "Connected")
        expect(page.locator("#talk")).to_have_text("Stop")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        expect(page.get_by_role("button", name="Mute")).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#doing")).to_have_text("muted")
        page.focus("#talk")
        page.keyboard.press("Space")
        status(page, "Press Talk")


def test_a_checker_of_accessibility_finds_nothing() -> None:
    with page_of("one two three", heard="four five") as page:
        checker = axe.Axe()
        assert not checker.run(page).response["violations"]
        page.click("#talk")
        expect(page.locator("#transcript li")).to_have_count(2)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert not checker.run(page).response["violations"]


def test_nothing_is_wider_than_the_page() -> None:
    with page_of("one two three four five six seven eight nine ten") as page:
        page.click("#talk")
        expect(page.locator("#transcript")).to_contain_text("three")
        for width in (320, 390, 900):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_screen_reader_is_told_whole_lines() -> None:
    script, heard = "one two three four five six", "seven eight nine"
    with page_of(script, heard=heard, setup=COUNT_CHANGES) as page:
        page.click("#talk")
        expect(page.locator("#said")).to_contain_text("six", timeout=15_000)
        lines = page.locator("#transcript li").all_inner_texts()
        assert page.evaluate("window.told") == lines and len(lines) <= 4


def test_a_session_is_saved_and_plays_again(tmp_path: pathlib.Path) -> None:
    with page_of("one two three", heard="four") as page:
        for _ in range(2):  # the file of a second talk begins with that talk
            page.click("#talk")
            expect(page.locator("#transcript")).to_contain_text("three")
            page.click("#talk")
        lines = page.locator("#transcript").inner_text()
        with page.expect_download() as download:
            page.click("#save")
        path = tmp_path / "session.json"
        download.value.save_as(path)
        saved = json.loads(path.read_text())
        assert 0 < saved["events"][-1]["at"] < 8 and saved["events"][0]["at"] == 0
        page.reload()
        page.set_input_files("#open", path)
        status(page, "Playing a saved session")
        status(page, "The saved session is over")
        assert page.locator("#transcript").inner_text() == lines
        path.write_text("{}")
        page.set_input_files("#open", path)
        status(page, "session.json has version undefined, wanted 1")
        path.write_text('{"version": 1, "you": "?"}')
        page.set_input_files("#open", path)
        status(page, "session.json is damaged")
        path.write_text("no")
        page.set_input_files("#open", path)
        status(page, "session.json is no saved session")


def test_a_microphone_that_is_not_allowed_is_told_plainly() -> None:
    with page_of("", "--use-fake-ui-for-media-stream=deny") as page:
        page.click("#talk")
        status(page, "The microphone is not allowed. Allow it for this page in the browser")
        expect(page.locator("#talk")).to_have_text("Talk")


def test_a_full_server_is_told_plainly() -> None:
    with page_of(rows=1) as page:
        page.click("#talk")
        status(page, "Connected")
        other = page.context.browser.new_page()
        other.goto(page.url)
        other.click("#talk")
        status(other, "All places are taken. Try again later.")
        expect(other.locator("#talk")).to_have_text("Talk")


def test_a_lost_connection_goes_on(tmp_path: pathlib.Path) -> None:
    script = f"one two {'three four five ' * 5} six"  # the session goes on while it is alone
    with page_of(script, setup=KEEP_SOCKETS, folder=tmp_path) as page:
        page.click("#talk")
        expect(page.locator("#transcript")).to_contain_text("two")
        first = page.evaluate("window.session()")
        page.evaluate("window.sockets[0].close(3000)")
        expect(page.locator("#transcript")).to_contain_text("six", timeout=10_000)
        assert page.evaluate("window.session()") != first
        assert "session_resumed" in page.evaluate("window.talk.codes")


def test_a_wrong_token_is_told_and_an_error_of_the_page_is_no_secret() -> None:
    with (
        pytest.raises(RuntimeError, match=r"the page has errors: .*Authentication failed"),
        page_of(door=Door(["secret"])) as page,
    ):
        page.fill("#token", "wrong")
        page.click("#talk")
        status(page, "The server does not answer or does not accept the token")
        page.fill("#token", "secret")
        page.click("#talk")
        status(page, "Connected")


def test_talk_and_stop_while_the_microphone_opens_leave_no_microphone_on() -> None:
    keep = """
      window.tracks = [];
      const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = async (wanted) => {
        const stream = await ask(wanted);
        window.tracks.push(...stream.getTracks());
        return stream;
      };
    """
    with page_of(setup=keep) as page:
        page.evaluate("for (let n = 0; n < 3; n++) document.querySelector('#talk').click()")
        status(page, "Connected")
        page.wait_for_function("window.tracks.length === 2")
        states = page.evaluate("window.tracks.map((track) => track.readyState).sort()")
        assert states == ["ended", "live"]


def test_a_model_that_sees_gets_the_camera() -> None:
    with page_of(frames=True) as page:
        expect(page.locator("#camera")).to_be_disabled()
        page.click("#talk")
        page.click("#camera")
        expect(page.locator("#view")).to_be_visible()
        seen = page.model.seen
        page.wait_for_timeout(1_500)
        # Chromium's fake camera is green, with a disc and a clock.
        assert 4 <= len(seen) <= 9 and seen[-1].dtype == np.float32
        size = page.model.config.frame_size
        assert seen[-1].shape == (size, size, 3)
        red, green, blue = seen[-1].mean((0, 1))
        assert green > 0.4 and green > red + 0.1 and green > blue + 0.1
        page.click("#camera")
        expect(page.locator("#view")).to_be_hidden()
        page.wait_for_timeout(500)
        count = len(seen)
        page.wait_for_timeout(500)
        assert len(seen) == count


def test_a_blind_model_shows_no_camera() -> None:
    with page_of() as page:
        expect(page.locator("#camera")).to_be_hidden()


def test_stop_while_it_connects_leaves_no_session() -> None:
    slow = """
      window.WebSocket = class extends WebSocket {
        set onopen(callback) { super.onopen = () => setTimeout(callback, 500); }
      };
    """
    with page_of(setup=slow) as page:
        page.click("#talk")
        status(page, "Connecting")
        page.click("#talk")
        page.wait_for_timeout(1_500)
        status(page, "Press Talk to begin again.")
        health = page.evaluate("fetch('/healthz').then((answer) => answer.json())")
        assert health["sessions"] == 0
        expect(page.locator("#mute")).to_be_disabled()
