"""The command that talks through a sound card, with sound cards that are not there."""

import os
import signal
import sys
import threading
import time
import types
from typing import Any

import numpy as np
import pytest

from experiments import sound_card, talk
from experiments.sound_card import Player, Recorder, SoundCard
from interaction.engine import session_events
from interaction.engine.conversation import Conversation
from interaction.engine.session_events import SessionEvent
from interaction.types import Special
from tests.background.fakes import FakeModel, delegate

FINE = types.SimpleNamespace(input_overflow=False, output_underflow=False)
LOST = types.SimpleNamespace(input_overflow=True, output_underflow=True)
SPEECH = (0.1 * np.sin(np.arange(3_200) / 9)).astype(np.float32)
SILENCE = np.zeros(3_200, np.float32)


def as_bytes(pcm: np.ndarray) -> bytes:
    return np.round(pcm * 32_768).astype("<i2").tobytes()


def played(player: Player, samples: int, status: Any = FINE) -> np.ndarray:  # noqa: ANN401
    data = bytearray(2 * samples)
    player.callback(memoryview(data), samples, None, status)
    return np.frombuffer(data, "<i2").astype(np.float32) / 32_768


# The two sides.


def test_a_microphone_gives_chunks_whatever_its_buffers_are() -> None:
    recorder, sound = Recorder(16_000), np.tile(SPEECH, 3)
    for start in range(0, len(sound), 700):
        data = as_bytes(sound[start : start + 700])
        recorder.callback(memoryview(data), len(data) // 2, None, LOST if start else FINE)
    recorder.stop()
    chunks = list(recorder)
    assert len(chunks) == 3 and all(chunk.shape == (3_200,) for chunk in chunks)
    np.testing.assert_allclose(np.concatenate(chunks), sound, atol=1 / 32_768)
    assert recorder.overflows == 13


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_devices_of_other_rates_are_resampled(rate: int) -> None:
    """A tone of 440 Hz stays one, through a loudspeaker and back through a microphone."""
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.float32)
    player, recorder, parts = Player(rate), Recorder(rate), []
    for chunk in tone.reshape(5, 3_200):
        player.put(chunk)
        parts.append(played(player, rate // 5))
    out = np.concatenate(parts)
    assert np.abs(np.fft.rfft(out)).argmax() == 440
    recorder.callback(memoryview(as_bytes(out)), rate, None, FINE)
    recorder.stop()
    back = np.concatenate(list(recorder))[3_200:12_800]  # 0.6 s
    assert np.abs(np.fft.rfft(back)).argmax() == 264
    assert np.abs(back).max() == pytest.approx(0.5, abs=0.01)


def test_speech_is_played_unchanged_behind_a_cushion() -> None:
    player = Player(16_000)
    assert not played(player, 320).any()
    player.put(SILENCE)
    player.put(SPEECH)
    player.put(SPEECH)
    out = played(player, 960 + 3 * 3_200)
    assert not out[: 960 + 3_200].any()
    np.testing.assert_allclose(out[960 + 3_200 :], np.tile(SPEECH, 2), atol=1 / 32_768)
    assert player.gaps == player.underflows == 0


def test_late_speech_is_a_gap_and_gets_a_cushion_again() -> None:
    player = Player(16_000)
    player.put(SILENCE)
    player.put(SPEECH)
    played(player, 7_360)
    assert not played(player, 100, LOST).any()
    player.put(SPEECH)
    out = played(player, 4_160)
    assert not out[:960].any() and out[961:4_160].any()
    assert (player.gaps, player.underflows) == (1, 1)


@pytest.mark.parametrize("drift", [-40, 40])
def test_silence_makes_up_for_a_clock_that_differs(drift: int) -> None:
    """The device takes 200 ms and a little more or less for each reply; 1.5% is a bad clock."""
    player, waiting = Player(16_000), []
    for turn in range(200):
        player.put(SILENCE if turn % 10 < 6 else SPEECH)
        waiting.append(len(player._waiting) // 2)
        played(player, 3_200 + drift)
    assert player.gaps == 0 and max(waiting) <= 960 + 3_200 + 5 * 40
    assert min(waiting) >= 960 + 3_200 - 5 * 40


def test_a_loudspeaker_that_stops_makes_the_engine_s_thread_of_it_wait() -> None:
    player = Player(16_000)

    def put() -> None:
        for _ in range(10):
            player.put(SPEECH)

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and len(player._waiting) < 2 * 16_000
    while thread.is_alive():
        played(player, 1_600)


# The card.


class FakeStream:
    def __init__(self, log: list[tuple[str, Any]], side: str, **settings: object) -> None:
        self.log, self.side, self.settings = log, side, settings
        log.append((f"open {side}", settings))

    def start(self) -> None:
        self.log.append((f"start {self.side}", None))

    def close(self) -> None:
        self.log.append((f"close {self.side}", None))
        self.settings["finished_callback"]()


class FakePortAudio(types.ModuleType):
    """The module `sounddevice`; the loudspeaker works at 48 kHz alone."""

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("sounddevice")
        self.log: list[tuple[str, Any]] = []

    def RawInputStream(self, **settings: object) -> FakeStream:
        return FakeStream(self.log, "input", **settings)

    def RawOutputStream(self, **settings: object) -> FakeStream:
        return FakeStream(self.log, "output", **settings)

    def check_input_settings(self, device: object, **_: object) -> None:
        if device == "none":
            raise ValueError("No input device matching 'none'")

    def check_output_settings(self, samplerate: int, **_: object) -> None:
        if samplerate != 48_000:
            raise self.PortAudioError("Invalid sample rate")

    def query_devices(self, device: object, kind: str) -> dict[str, float]:
        assert kind == "output"
        if device == 9:
            raise self.PortAudioError("Error querying device 9")
        return {"default_samplerate": 48_000.0}


@pytest.fixture
def sounddevice(monkeypatch: pytest.MonkeyPatch) -> FakePortAudio:
    module = FakePortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


def test_a_card_opens_both_sides_at_a_rate_that_they_have(sounddevice: FakePortAudio) -> None:
    card = SoundCard("usb", "3")
    (_, microphone), (_, loudspeaker) = sounddevice.log
    assert (microphone["device"], loudspeaker["device"]) == ("usb", 3)
    assert (microphone["samplerate"], loudspeaker["samplerate"]) == (16_000, 48_000)
    assert {side["dtype"] for side in (microphone, loudspeaker)} == {"int16"}
    assert {side["channels"] for side in (microphone, loudspeaker)} == {1}
    with card:
        assert [what for what, _ in sounddevice.log[2:]] == ["start output", "start input"]
    assert [what for what, _ in sounddevice.log[4:]] == ["close input", "close output"]
    assert list(card.recorder) == []  # a device that is pulled out ends the talk


@pytest.mark.parametrize(("devices", "flag"), [(("none", None), "input"), ((None, "9"), "output")])
def test_a_device_that_is_not_there(
    sounddevice: FakePortAudio, devices: tuple[str | None, str | None], flag: str
) -> None:
    with pytest.raises(ValueError, match=rf"--{flag}_device: got '(none|9)' .*--list_devices"):
        SoundCard(*devices)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(error: Exception) -> None:
        def load(name: str) -> None:
            raise error

        monkeypatch.setattr(sound_card.importlib, "import_module", load)

    missing(OSError("PortAudio library not found"))
    with pytest.raises(ValueError, match="sudo apt-get install libportaudio2"):
        SoundCard()
    missing(ImportError("No module named 'sounddevice'"))
    with pytest.raises(ValueError, match=r"pip install -e '\.\[talk\]'"):
        SoundCard()


# The talk.


def run_card(card: SoundCard, seconds: float, echo: bool = False) -> list[np.ndarray]:
    """Plays the part of PortAudio in real time; with `echo`, the microphone hears the speaker."""
    heard, due = [], time.monotonic()
    for _ in range(round(seconds / 0.02)):
        out = played(card.player, 960)[::3]
        heard.append(out)
        sound = as_bytes(0.25 * out if echo else np.zeros(320))
        card.recorder.callback(memoryview(sound), 320, None, FINE)
        due += 0.02
        time.sleep(max(due - time.monotonic(), 0))
    return heard


def test_a_talk_with_a_sound_card_until_ctrl_c(sounddevice: FakePortAudio) -> None:
    script = [*delegate("seven times eight"), Special.HOLD]
    events: list[SessionEvent] = []
    with SoundCard() as card, Conversation(FakeModel(script)) as conversation:
        heard: list[np.ndarray] = []

        def play() -> None:
            heard.extend(run_card(card, 2.0))
            os.kill(os.getpid(), signal.SIGINT)

        # A program that a shell started beside others ignores the signal.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=play).start()
        talk.talk(conversation, card, events.append)
        signal.signal(signal.SIGINT, before)
    assert 8 <= conversation.stats.turns <= 13
    kinds = [event.kind for event in events]
    assert session_events.ASKED in kinds and session_events.FAILED in kinds  # there is no agent
    assert talk.ECHO not in kinds
    assert "0 overflows" in talk.summary(conversation, card)


def test_an_echo_is_told_once(sounddevice: FakePortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector has tests of its own; here it is given both sides."""
    given: dict[str, list[np.ndarray]] = {"play": [], "hear": []}

    class Detector:
        def __init__(self, rate: int) -> None:
            assert rate == 16_000

        def play(self, pcm: np.ndarray) -> None:
            given["play"].append(pcm)

        def hear(self, pcm: np.ndarray) -> bool:
            given["hear"].append(pcm)
            return len(given["hear"]) == 3

    monkeypatch.setattr(talk, "EchoDetector", Detector)
    events: list[SessionEvent] = []
    with SoundCard() as card, Conversation(FakeModel()) as conversation:

        def play() -> None:
            run_card(card, 1.0)
            card.recorder.stop()

        threading.Thread(target=play).start()
        talk.talk(conversation, card, events.append)
    assert [event.text for event in events if event.kind == talk.ECHO] == [talk.HEADPHONES]
    assert len(given["hear"]) == 5 and len(given["play"]) >= 4


def test_errors_of_a_side_end_the_talk(sounddevice: FakePortAudio) -> None:
    class Broken:
        def __iter__(self) -> None:
            raise OSError("the cable")

    with SoundCard() as card, Conversation(FakeModel()) as conversation:
        card.recorder = Broken()
        with pytest.raises(OSError, match="the cable"):
            talk.talk(conversation, card, lambda event: None)


# The terminal.


def test_the_transcript_of_a_terminal() -> None:
    user, model = session_events.USER_TRANSCRIPT, session_events.MODEL_TEXT
    events = [
        SessionEvent(1, user, "what"),
        SessionEvent(2, user, " is"),
        SessionEvent(3, session_events.SPEECH_STARTED),
        SessionEvent(3, user, " it"),
        SessionEvent(20, user, " and"),
        SessionEvent(21, model, "let"),
        SessionEvent(22, model, " me see"),
        SessionEvent(23, session_events.ASKED, "price of butter", 2),
        SessionEvent(23, session_events.TOOL_CALL, '{"tool": "lookup"}', 2),
        SessionEvent(24, model, " nineteen"),
        SessionEvent(24, session_events.DEADLINE_MISSED, "3 ms late"),
    ]
    written: list[str] = []
    transcript = talk.Transcript(written.append)
    for event in events:
        transcript.show(event)
    transcript.end()
    transcript.end()
    assert "".join(written).splitlines() == [
        "    0.2 s  you        what is it",
        "    4.0 s  you        and",
        "    4.2 s  model      let me see",
        "    4.6 s  asks       2: price of butter",
        '    4.6 s  calls      2: {"tool": "lookup"}',
        "    4.8 s  model      nineteen",
    ]
