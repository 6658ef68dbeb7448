"""Reads audio files as 16 kHz mono, and writes them."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000  # Hz, of all audio that models read and write
SHORTEST_S = 0.02  # s; shorter files are refused
LOUDEST = 2.0  # largest magnitude of a float file: PCM in [-1, 1] may overshoot up to this
_UNKNOWN = 0x7FFF0000  # sizes from here on are what a program writes that writes to a pipe


def _refuse(path: object, got: str, wanted: str, fix: str) -> None:
    raise ValueError(f"input {path}: got {got}, wanted {wanted}; {fix}")


def read_audio(path: str | os.PathLike, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Reads a recording of one speaker.

    Args:
      path: A WAV, FLAC or other file that libsndfile reads, of any rate and number of channels.
      sample_rate: Of the result, Hz.

    Returns:
      float32[n] in [-1, 1]: the mean of the channels, resampled by soxr (very high quality),
      clipped. A WAV file from a pipe, which does not know its size, is read to its end.

    Raises:
      ValueError: The file is missing, empty, no audio, cut off, or has NaN, Inf or samples beyond
        `LOUDEST` in it.
    """
    pcm, rate = _read(Path(path))
    return _resampled(pcm.mean(axis=1), rate, sample_rate)


def read_channels(path: str | os.PathLike, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Reads a recording whose channels are several speakers; like `read_audio`, without the mean.

    Args:
      path: A file that `read_audio` reads.
      sample_rate: Of the result, Hz.

    Returns:
      float32[channels, n] in [-1, 1].

    Raises:
      ValueError: See `read_audio`.
    """
    pcm, rate = _read(Path(path))
    return np.stack([_resampled(channel, rate, sample_rate) for channel in pcm.T])


def _resampled(pcm: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if rate != sample_rate:
        pcm = soxr.resample(pcm, rate, sample_rate, quality="VHQ")
    return np.clip(pcm, -1.0, 1.0).astype(np.float32)


def _read(path: Path) -> tuple[np.ndarray, int]:
    """PCM float32[n, channels] of a file that is complete and sound, and its rate in Hz."""
    if not path.is_file():
        _refuse(path, "no such file", "a WAV or FLAC file", "check the path")
    size = path.stat().st_size
    if size == 0:
        _refuse(path, "an empty file (0 bytes)", "a WAV or FLAC file", "record or copy it again")
    streamed = _check_complete(path, size)
    try:
        with soundfile.SoundFile(streamed or str(path)) as file:
            promised, rate = file.frames, file.samplerate
            pcm = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(
            f"input {path}: got {size} bytes that cannot be decoded ({error}), wanted a complete "
            "WAV or FLAC file; copy or convert it again, it may be cut off or of another format"
        ) from error
    if len(pcm) < promised:
        got = f"{len(pcm)} of the {promised} samples that its header announces"
        _refuse(path, got, "a complete file", "it is cut off: copy it again")
    if len(pcm) < SHORTEST_S * rate:
        got = f"{len(pcm)} samples at {rate} Hz"
        _refuse(path, got, f"at least {SHORTEST_S} s", "record it again")
    bad = int(np.sum(~np.isfinite(pcm)))
    if bad:
        got = f"{bad} samples that are NaN or Inf"
        _refuse(path, got, "finite PCM in [-1, 1]", "export it again as 16-bit PCM")
    if np.abs(pcm).max() > LOUDEST:
        got = f"samples up to {np.abs(pcm).max():.6g}"
        _refuse(path, got, "PCM in [-1, 1]", "divide int16 by 32768, or export it as 16-bit PCM")
    return pcm, rate


def _check_complete(path: Path, size: int) -> io.BytesIO | None:
    """Refuses a WAV file that is shorter than its header says; libsndfile would accept it.

    Returns:
      The file with its true size if it does not know its size, otherwise None.
    """
    with path.open("rb") as file:
        header = file.read(12)
        if header[:4] != b"RIFF" or header[8:12] != b"WAVE":
            return None
        whole = int.from_bytes(header[4:8], "little") == size - 8
        while len(chunk := file.read(8)) == 8:
            length, start = int.from_bytes(chunk[4:], "little"), file.tell()
            left = size - start
            if chunk[:4] == b"data" and (length > left or (length == 0 and not whole)):
                if 0 < length < _UNKNOWN:
                    got = f"{left} of the {length} bytes of PCM that its header announces"
                    _refuse(path, got, "a complete file", "it is cut off: copy it again")
                file.seek(0)
                data = bytearray(file.read())
                struct.pack_into("<I", data, 4, size - 8)
                struct.pack_into("<I", data, start - 4, left)
                return io.BytesIO(data)
            file.seek(length + length % 2, os.SEEK_CUR)
    return None


def write_audio(path: str | os.PathLike, pcm: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Writes 16-bit PCM in the format that the path's suffix names.

    Args:
      path: For example "a.wav" or "a.flac"; a missing folder is made.
      pcm: float32[n] or float32[n, channels] in [-1, 1]; what is outside is clipped.
      sample_rate: Of `pcm`, Hz.

    Raises:
      ValueError: `pcm` has another shape or is not finite.
    """
    pcm = np.asarray(pcm, np.float32)
    if pcm.ndim not in (1, 2):
        _refuse(path, f"PCM of shape {pcm.shape}", "[n] or [n, channels]", "reshape it")
    if not np.isfinite(pcm).all():
        _refuse(path, "PCM with NaN or Inf", "finite PCM", "check how it was computed")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), np.clip(pcm, -1.0, 1.0), sample_rate, subtype="PCM_16")
