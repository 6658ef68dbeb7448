"""Audio as it travels, and as the model takes it: chunks of 200 ms, float32 at 16 kHz."""

from typing import Literal, NamedTuple

import numpy as np
import soxr

from interaction.data import g711

PCM, MU_LAW, A_LAW = "audio/pcm", "audio/pcmu", "audio/pcma"
Kind = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
_LAWS: dict[str, g711.Law] = {MU_LAW: "mu", A_LAW: "a"}
_SCALE = 32_768
# Short filters: sound is 13 ms late at 24 kHz, 36 ms at 8 kHz; better ones are later.
_QUALITY = soxr.LQ


class Format(NamedTuple):
    """A format of mono audio: PCM of 16 bits, little-endian, or G.711."""

    kind: Kind
    rate: int  # samples a second


class Decoder:
    """Turns bytes that arrive in pieces of any length into chunks of the model."""

    def __init__(self, form: Format, samples: int, rate: int, silence: int = 0) -> None:
        """Starts without sound.

        Args:
          form: Format of the bytes.
          samples: Samples of a chunk.
          rate: Samples a second of a chunk.
          silence: Samples of silence that the first chunk begins with.
        """
        self._form, self._samples = form, samples
        self._resampler = _resampler(form.rate, rate)
        self._rest = np.zeros(silence, np.float32)

    def feed(self, data: bytes) -> list[np.ndarray]:
        """Takes bytes; returns the chunks float32[samples] in [-1, 1] that are complete.

        Raises:
          ValueError: The bytes end within a sample; nothing was taken.
        """
        pcm = _to_float(data, self._form.kind)
        if self._resampler is not None:
            pcm = self._resampler.resample_chunk(pcm)
        self._rest = np.concatenate([self._rest, pcm])
        whole = len(self._rest) // self._samples * self._samples
        chunks = self._rest[:whole].reshape(-1, self._samples)
        self._rest = self._rest[whole:]
        return [np.clip(chunk, -1, 1) for chunk in chunks]


class Encoder:
    """Turns the model's speech into bytes of a format."""

    def __init__(self, form: Format, rate: int) -> None:
        """Starts in silence; `rate` is that of the speech, samples a second."""
        self._form, self._resampler = form, _resampler(rate, form.rate)

    def feed(self, pcm: np.ndarray) -> bytes:
        """Takes PCM float32[n] in [-1, 1]; returns what is complete, some ms later."""
        if self._resampler is not None:
            pcm = self._resampler.resample_chunk(np.ascontiguousarray(pcm, np.float32))
        whole = np.clip(np.round(pcm * _SCALE), -_SCALE, _SCALE - 1).astype("<i2")
        if self._form.kind != PCM:
            whole = g711.encode(whole, _LAWS[self._form.kind])
        return whole.tobytes()


def _resampler(before: int, after: int) -> soxr.ResampleStream | None:
    if before == after:
        return None
    return soxr.ResampleStream(before, after, 1, dtype="float32", quality=_QUALITY)


def _to_float(data: bytes, kind: str) -> np.ndarray:
    if kind != PCM:
        samples = g711.decode(np.frombuffer(data, np.uint8), _LAWS[kind])
        return samples.astype(np.float32) / _SCALE
    if len(data) % 2:
        raise ValueError(f"audio: got {len(data)} bytes, wanted whole samples of 16 bits")
    return np.frombuffer(data, "<i2").astype(np.float32) / _SCALE
