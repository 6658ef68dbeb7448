"""`colab/talk.py` as in Colab: in Chromium, whose microphone plays the bundled recording.

It needs Chromium, playwright and IPython. `make notebook` runs it where they are.
"""

import pathlib
import runpy
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from interaction.data.audio_file import read_audio, write_audio
from interaction.data.bundled_user import ASSET

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("IPython")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = pathlib.Path("/usr/bin/chromium")
NOTEBOOK = pathlib.Path(__file__).parents[2] / "colab" / "talk.py"
STOP_MS = 9_000  # from the press of Talk to that of Stop
# Presses the buttons, and keeps what is played and when.
VISITOR = """
window.played = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (at) {
  window.played.push([at, this.context.currentTime, [...this.buffer.getChannelData(0)]]);
  start.call(this, at);
};
const press = () => document.querySelector("button")?.click();
new MutationObserver((changes, watcher) => {
  watcher.disconnect();
  press();
  setTimeout(press, STOP_MS);
}).observe(document, { childList: true, subtree: true });
"""


@pytest.fixture
def page(tmp_path: pathlib.Path) -> "Iterator[Page]":
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing")
    microphone = tmp_path / "microphone.wav"
    write_audio(microphone, read_audio(ASSET))
    flags = [
        *("--no-sandbox", "--disable-gpu", "--use-fake-ui-for-media-stream"),
        *("--use-fake-device-for-media-stream", "--disable-background-networking"),
        f"--use-file-for-fake-audio-capture={microphone}%noloop",
    ]
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        page = browser.new_page()
        empty = "<!doctype html><body></body>"
        page.route(
            "https://cell.test/", lambda route: route.fulfill(body=empty, content_type="text/html")
        )
        page.goto("https://cell.test/")  # microphones need HTTPS
        yield page
        browser.close()


def test_the_pair_hears_the_microphone_and_the_page_plays_its_answers(
    page: "Page", monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = "async (code) => await (0, eval)(code)"
    output = types.SimpleNamespace(eval_js=lambda code: page.evaluate(evaluate, code))
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(output=output))
    page.evaluate(VISITOR.replace("STOP_MS", str(STOP_MS)))
    found = runpy.run_path(str(NOTEBOOK))
    turns = len(found["entries"])
    assert STOP_MS / 200 - 5 <= turns <= STOP_MS / 200
    said = {row.who: row.text for row in found["talked"].rows if row.start_s > 5}
    assert "japan" in said["user"] and said["model"] == "tokyo"
    # All that the model said was played, one reply after the other.
    starts, clocks, pcm = zip(*page.evaluate("window.played"), strict=True)
    lengths = [len(one) / 16_000 for one in pcm]
    assert np.all(np.array(starts) >= clocks)
    assert np.all(np.diff(starts) >= np.array(lengths[:-1]) - 1e-6)
    np.testing.assert_allclose(np.concatenate(pcm), found["said"], atol=2 / 32_768)
