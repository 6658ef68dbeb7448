"""The served page in a real Chromium, for commands that talk to it."""

import base64
import collections
import contextlib
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence

import numpy as np
from playwright.sync_api import ConsoleMessage, Page, sync_playwright

RATE = 16_000
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    "--use-fake-ui-for-media-stream",  # it allows the microphone
    "--autoplay-policy=no-user-gesture-required",
)


@contextlib.contextmanager
def serving(folder: pathlib.Path) -> Generator[str]:
    """Runs `experiments.serve` with its sessions in a folder; yields its host and port.

    Raises:
      RuntimeError: It did not start.
    """
    command = [sys.executable, "-m", "experiments.serve", "--port=0", f"--folder={folder}"]
    server = subprocess.Popen([*command, "--rows=2"], stdout=subprocess.PIPE, text=True)
    try:
        lines = (re.search(r"open http://(\S+)", line) for line in server.stdout or ())
        found = next((line[1] for line in lines if line), "")
        if not found:
            raise RuntimeError("the server did not start; run experiments.serve by hand")
        threading.Thread(target=collections.deque, args=(server.stdout, 0), daemon=True).start()
        yield found
    finally:
        server.terminate()
        server.wait(30)


@contextlib.contextmanager
def open_page(
    chromium: str,
    options: Sequence[str],
    setup: str = "",
    surroundings: dict[str, str] | None = None,
) -> Generator[Page]:
    """Yields an empty page, as high as a desktop shows; its errors are those of the block.

    Args:
      chromium: Path of the browser.
      options: Of its command line.
      setup: JavaScript that runs before that of the page.
      surroundings: The browser's environment, in which it plays aloud; without one it is mute.

    Raises:
      RuntimeError: JavaScript raised an error or wrote one to the console, and which.
    """
    errors: list[str] = []

    def note(said: ConsoleMessage) -> None:
        if said.type == "error":
            errors.append(said.text)

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=chromium,
            args=[*_FLAGS, *options],
            env={**surroundings} if surroundings else None,
            ignore_default_args=["--mute-audio"] if surroundings else None,
        )
        page = browser.new_page(viewport={"width": 900, "height": 1_000})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", note)
        if setup:
            page.add_init_script(setup)
        yield page
        browser.close()
    if errors:
        raise RuntimeError("the page has errors: " + "; ".join(errors))


def fake_microphone(sound: pathlib.Path) -> tuple[str, str]:
    """Options of Chromium for a microphone that hears a WAV file once."""
    return (
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={sound}%noloop",
    )


def begin_talk(page: Page, address: str) -> str:
    """Opens the page of a server and presses Talk; returns the id of the session."""
    page.goto(f"http://{address}/?watch&store")
    page.wait_for_function("document.querySelectorAll('#examples li').length > 0")
    page.click("#talk")
    page.wait_for_function("window.talk.started > 0", timeout=30_000)
    return page.evaluate("window.session()")


def read_pcm(page: Page, expression: str) -> np.ndarray:
    """The sound that a JavaScript expression gives, base64 of int16: float32[n] in [-1, 1]."""
    pcm = np.frombuffer(base64.b64decode(page.evaluate(expression)), "<i2")
    return pcm.astype(np.float32) / 32_768
