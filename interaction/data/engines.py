"""Speech engines: they turn text into PCM and the onset times of its words.

espeak-ng (github.com/espeak-ng/espeak-ng) and flite (github.com/festvox/flite) are called through
their shared libraries. This is faster than one process per sentence, and it gives the times of the
words.
"""

import ctypes
import functools
import json
import subprocess
import sys
from ctypes import POINTER, c_char_p, c_float, c_int, c_short, c_void_p
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

ESPEAK_LIBRARY = "libespeak-ng.so.1"
FLITE_LIBRARY = "libflite.so.1"


class EngineMissing(RuntimeError):
    """The library of a speech engine is not installed."""


class Voiced(NamedTuple):
    """Output of an engine."""

    pcm: np.ndarray  # float32[samples] in [-1, 1]
    rate: int  # Hz
    onsets: np.ndarray  # float32[words], s from the first sample, one for each word of the text


def _missing(library: str, package: str) -> EngineMissing:
    return EngineMissing(
        f"speech engine library {library} was not found or does not start; it comes with the "
        f"Debian package {package}: sudo apt-get install {package}"
    )


def _load(library: str, package: str, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(library, mode)
    except OSError as error:
        raise _missing(library, package) from error


def _fill(onsets: dict[int, float], words: int, end: float) -> np.ndarray:
    """Onsets of all words, float32[words] in s; missing ones are interpolated linearly."""
    known = sorted({0: 0.0, **onsets}.items())
    positions = [index for index, _ in known] + [words]
    times = [time for _, time in known] + [end]
    return np.interp(np.arange(words), positions, times).astype(np.float32)


class Espeak:
    """espeak-ng in its own process, see `espeak_server`; `espeak()` gives the shared instance."""

    def __init__(self, library: str) -> None:
        """Starts the process.

        Raises:
          EngineMissing: The library or its data is not installed.
        """
        server = Path(__file__).with_name("espeak_server.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(server), library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._requests = cast(IO[bytes], self._process.stdin)
        self._replies = cast(IO[bytes], self._process.stdout)
        if self._answer()["rate"] <= 0:
            self._process.wait()
            raise _missing(library, "espeak-ng")

    def _answer(self) -> dict:
        line = self._replies.readline()
        if not line:
            raise RuntimeError(
                f"espeak-ng: its process ended with status {self._process.wait()}, wanted a reply; "
                "start the program again"
            )
        return json.loads(line)

    def say(self, text: str, voice: str, speed: int, pitch: int) -> Voiced:
        """Speaks a text; the same arguments give the same samples.

        Args:
          text: Lower-case words.
          voice: A voice of espeak-ng with an optional variant, such as `en-us+f2`.
          speed: 80 to 450 words a minute.
          pitch: 0 to 99.

        Raises:
          ValueError: espeak-ng has no such voice, or cannot say the text.
        """
        request = json.dumps([text, voice, int(speed), int(pitch)])
        self._requests.write(request.encode() + b"\n")
        self._requests.flush()
        header = self._answer()
        if "error" in header:
            raise ValueError(header["error"])
        data = self._replies.read(2 * header["samples"])
        if not data:
            raise ValueError(f"text: got {text!r}, wanted words that espeak-ng can say; change it")
        pcm = np.frombuffer(data, np.int16).astype(np.float32) / 32_768
        onsets: dict[int, float] = {}
        for character, sample in header["words"]:
            onsets.setdefault(text[: max(character, 0)].count(" "), sample / header["rate"])
        seconds = len(pcm) / header["rate"]
        return Voiced(pcm, header["rate"], _fill(onsets, len(text.split()), seconds))


class _FliteWave(ctypes.Structure):
    _fields_ = (
        ("type", c_char_p),
        ("rate", c_int),
        ("samples", c_int),
        ("channels", c_int),
        ("data", POINTER(c_short)),
    )


class _FliteVoice(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("features", c_void_p))  # only the first fields of the struct


class Flite:
    """The flite library, in this process; `flite()` gives the shared instance."""

    def __init__(self, library: str) -> None:
        """Loads and initialises the library.

        Raises:
          EngineMissing: The library is not installed.
        """
        self._library = _load(library, "flite", mode=ctypes.RTLD_GLOBAL)
        for part in ("usenglish", "cmulex"):
            _load(f"libflite_{part}.so.1", "flite", mode=ctypes.RTLD_GLOBAL)
        signatures = {
            "flite_synth_text": (c_void_p, (c_char_p, c_void_p)),
            "utt_relation": (c_void_p, (c_void_p, c_char_p)),
            "relation_head": (c_void_p, (c_void_p,)),
            "item_next": (c_void_p, (c_void_p,)),
            "item_feat_string": (c_char_p, (c_void_p, c_char_p)),
            "ffeature_float": (c_float, (c_void_p, c_char_p)),
            "utt_wave": (POINTER(_FliteWave), (c_void_p,)),
            "delete_utterance": (None, (c_void_p,)),
            "feat_set_float": (None, (c_void_p, c_char_p, c_float)),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._library.flite_init()
        self._random = ctypes.CDLL(None)
        self._voices: dict[str, int] = {}

    def _voice(self, name: str) -> int:
        if name not in self._voices:
            part = _load(f"libflite_cmu_us_{name}.so.1", "flite")
            register = getattr(part, f"register_cmu_us_{name}")
            register.restype, register.argtypes = c_void_p, (c_char_p,)
            self._voices[name] = register(None)
        return self._voices[name]

    def _onsets(self, utterance: int, text: str, end: float) -> np.ndarray:
        """Onsets of the text's words, float32[words] in s; flite splits "that's" in two words."""
        item = self._library.relation_head(self._library.utt_relation(utterance, b"Word"))
        onsets: dict[int, float] = {}
        word = -1
        while item:
            if not self._library.item_feat_string(item, b"name").startswith(b"'"):
                word += 1
                onsets[word] = self._library.ffeature_float(
                    item, b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
                )
            item = self._library.item_next(item)
        count = len(text.split())
        if len(onsets) != count:
            raise ValueError(
                f"text: got {text!r}, which flite reads as {len(onsets)} words, wanted {count}; "
                "spell out numbers and abbreviations"
            )
        return _fill(onsets, count, end)

    def say(self, text: str, voice: str, stretch: float) -> Voiced:
        """Speaks a text; the same arguments give the same samples.

        Args:
          text: Lower-case words.
          voice: slt, awb, rms or kal16.
          stretch: Factor of all durations.

        Raises:
          EngineMissing: The voice is not installed.
          ValueError: flite reads the text as another number of words.
        """
        pointer = self._voice(voice)
        features = ctypes.cast(pointer, POINTER(_FliteVoice)).contents.features
        self._library.feat_set_float(features, b"duration_stretch", stretch)
        self._random.srand(1)  # flite draws its excitation noise from the C library
        utterance = self._library.flite_synth_text(text.encode(), pointer)
        try:
            wave = self._library.utt_wave(utterance).contents
            pcm = np.ctypeslib.as_array(wave.data, (wave.samples,)).astype(np.float32) / 32_768
            return Voiced(pcm, wave.rate, self._onsets(utterance, text, len(pcm) / wave.rate))
        finally:
            self._library.delete_utterance(utterance)


@functools.cache
def espeak(library: str = ESPEAK_LIBRARY) -> Espeak:
    """The espeak-ng of this process, started at the first call."""
    return Espeak(library)


@functools.cache
def flite(library: str = FLITE_LIBRARY) -> Flite:
    """The flite of this process, loaded at the first call."""
    return Flite(library)
