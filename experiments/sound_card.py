"""The microphone and the loudspeaker of a sound card, through PortAudio.

PortAudio calls back on threads of its own; the engine takes and gives 200 ms at a time. Each side
has a queue in between. A device that does not work at 16 kHz is resampled.
"""

import contextlib
import importlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from interaction.data.audio_file import SAMPLE_RATE
from interaction.evaluation.rollout import TURN
from interaction.serve.audio_formats import PCM, Decoder, Encoder, Format

CUSHION_S = 0.06  # s that wait when a reply comes: replies may be so late
MOST_S = 0.6  # s; if more waits, the device has stopped
# s, of PortAudio's own buffer for the loudspeaker. Its default of 0.035 s ran empty 9 to 25 times a
# minute through PulseAudio on 2 busy cores, this one not once.
OUTPUT_S = 0.1
_SAMPLE = 2  # bytes


class Recorder:
    """What a microphone records, as an iterable of float32[3200] in [-1, 1] at 16 kHz."""

    def __init__(self, rate: int) -> None:
        """Starts empty; `rate` is the device's, samples a second."""
        self._decoder = Decoder(Format(PCM, rate), TURN, SAMPLE_RATE)
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.overflows = 0  # times that PortAudio lost sound

    def callback(self, data: Any, frames: int, time: object, status: Any) -> None:  # noqa: ANN401
        """Takes a buffer of int16[frames] from PortAudio."""
        self.overflows += bool(status.input_overflow)
        self._waiting.put(bytes(data))

    def stop(self) -> None:
        """Ends the sound; from any thread."""
        self._waiting.put(None)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Waits for each chunk."""
        for data in iter(self._waiting.get, None):
            yield from self._decoder.feed(data)


class Player:
    """What a loudspeaker plays next.

    Silence is elastic: it is cut or stretched so that the same time is always waiting. This follows
    a clock that differs, and makes up for what came late.
    """

    def __init__(self, rate: int) -> None:
        """Starts empty; `rate` is the device's, samples a second."""
        self._encoder = Encoder(Format(PCM, rate), SAMPLE_RATE)
        self._cushion, self._most = (_SAMPLE * round(s * rate) for s in (CUSHION_S, MOST_S))
        self._waiting = bytearray()
        self._room = threading.Condition()
        self.underflows = 0  # times that PortAudio had nothing to play
        self.gaps = 0  # times that speech came too late

    def put(self, pcm: np.ndarray) -> None:
        """Takes a reply's float32[n] in [-1, 1] at 16 kHz; waits if the device does not play."""
        data = self._encoder.feed(pcm)
        with self._room:
            self._room.wait_for(lambda: len(self._waiting) <= self._most)
            if not np.any(pcm):
                size = max(self._cushion + len(data) - len(self._waiting), 0)
                data = data[:size].ljust(size, b"\0")
            elif not self._waiting:
                self.gaps += 1
                data = bytes(self._cushion) + data
            self._waiting += data

    def callback(self, data: Any, frames: int, time: object, status: Any) -> None:  # noqa: ANN401
        """Fills a buffer of int16[frames] for PortAudio, with silence where nothing is waiting."""
        self.underflows += bool(status.output_underflow)
        with self._room:
            found = bytes(self._waiting[: len(data)])
            del self._waiting[: len(data)]
            self._room.notify()
        data[:] = found.ljust(len(data), b"\0")


def load_sounddevice() -> Any:  # noqa: ANN401
    """The module `sounddevice`.

    Raises:
      ValueError: It or PortAudio is not installed.
    """
    try:
        return importlib.import_module("sounddevice")
    except ImportError as error:
        raise ValueError(
            "sounddevice: got no such package, wanted it for the sound card; "
            "install it: pip install -e '.[talk]'"
        ) from error
    except OSError as error:
        raise ValueError(
            f"sounddevice: got no PortAudio ({error}), wanted it for the sound card; "
            "install it: sudo apt-get install libportaudio2"
        ) from error


class SoundCard:
    """Both sides of a sound card; they run in a `with` statement."""

    def __init__(self, input_device: str | None = None, output_device: str | None = None) -> None:
        """Opens both sides.

        Args:
          input_device: Number or part of the name of a microphone; None takes the default one.
          output_device: The same of a loudspeaker.

        Raises:
          ValueError: PortAudio is not installed, or a device is missing or does not work.
        """
        sounddevice = load_sounddevice()
        with _clear_errors(sounddevice, "--input_device", input_device):
            given = _settings(sounddevice, "input", input_device)
            self.recorder = Recorder(given["samplerate"])
            calls = {"callback": self.recorder.callback, "finished_callback": self.recorder.stop}
            self._input = sounddevice.RawInputStream(**given, **calls)
        with _clear_errors(sounddevice, "--output_device", output_device):
            given = _settings(sounddevice, "output", output_device)
            self.player = Player(given["samplerate"])
            calls = {"callback": self.player.callback, "finished_callback": self.recorder.stop}
            self._output = sounddevice.RawOutputStream(**given, **calls, latency=OUTPUT_S)

    def __enter__(self) -> Self:
        self._output.start()
        self._input.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._input.close()
        self._output.close()


@contextlib.contextmanager
def _clear_errors(sounddevice: Any, flag: str, device: str | None) -> Iterator[None]:  # noqa: ANN401
    try:
        yield
    except (sounddevice.PortAudioError, ValueError) as error:
        raise ValueError(
            f"{flag}: got {device or 'the default device'!r} ({error}), wanted one that works; "
            "choose one of --list_devices"
        ) from error


def _settings(sounddevice: Any, kind: str, device: str | None) -> dict[str, Any]:  # noqa: ANN401
    """Of a stream: mono of 16 bits, at 16 kHz if the device does that, else at its own rate."""
    known = int(device) if device and device.isdigit() else device
    settings = {"device": known, "channels": 1, "dtype": "int16"}
    try:
        getattr(sounddevice, f"check_{kind}_settings")(**settings, samplerate=SAMPLE_RATE)
    except sounddevice.PortAudioError:
        own = sounddevice.query_devices(known, kind)["default_samplerate"]
        return settings | {"samplerate": round(own)}
    return settings | {"samplerate": SAMPLE_RATE}
