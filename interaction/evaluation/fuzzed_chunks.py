"""Chunks that are no PCM, no frame or no text: each is refused alone, and nothing else changes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from interaction.engine.engine import Engine
from interaction.engine.rows import BatchModel
from interaction.engine.session import Session
from interaction.types import Reply

AUDIO, INDEX, FRAME, TEXT = "audio", "index", "frame", "text"
_BETWEEN = 20  # fuzzed chunks between two micro-turns
_SHOWN = 10  # most examples of what is no clear error


class _Bad(NamedTuple):
    """An unusable input."""

    field: str  # what a clear error has to name
    give: Callable[[Session], object]  # passes it to a session
    what: str


def fuzz_chunks(model: BatchModel, count: int, seed: int = 0) -> dict[str, Any]:
    """Gives one session of an engine unusable inputs, and compares it with the same without them.

    Args:
      model: The model.
      count: Number of unusable inputs.
      seed: Decides what they are.

    Returns:
      A dict for JSON: "chunks"; "clear_errors", refused with one ValueError that names the field
      and what was wanted; "unclear", examples of others; "turns"; "unchanged", whether the session
      and its neighbour gave bit for bit the replies of an engine without unusable inputs.
    """
    rng, clear, unclear = np.random.default_rng(seed), 0, []
    fuzzed, quiet = _Pair(model), _Pair(model)
    turns, same = -(-count // _BETWEEN), True
    for turn in range(turns):
        for _ in range(min(_BETWEEN, count - turn * _BETWEEN)):
            bad = _draw(rng, model)
            try:
                bad.give(fuzzed.first)
                wrong = "accepted"
            except ValueError as error:
                told = str(error)
                wrong = "" if told.startswith(bad.field) and "wanted" in told else told
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            clear += not wrong
            if wrong and len(unclear) < _SHOWN:
                unclear.append(f"{bad.what}: {wrong[:200]}")
        pcm = rng.normal(0, 0.1, (2, model.config.audio.turn_samples)).astype(np.float32)
        same &= fuzzed.tick(turn, pcm) == quiet.tick(turn, pcm)
    return {
        "chunks": count,
        "clear_errors": clear,
        "unclear": unclear,
        "turns": turns,
        "unchanged": bool(same),
    }


class _Pair:
    """An engine with two sessions."""

    def __init__(self, model: BatchModel) -> None:
        self._now = 0.0
        frames = model.config.trained_on_frames
        self._engine = Engine(model, 2, frames=frames, clock=lambda: self._now)
        self.first, self._second = self._engine.open(seed=1), self._engine.open(seed=2)

    def tick(self, turn: int, pcm: np.ndarray) -> bytes:
        """Takes a micro-turn of float32[2, 3200]; the replies as bytes."""
        self.first.receive(turn, pcm[0])
        self._second.receive(turn, pcm[1])
        self._now += 0.1
        self._engine.tick()
        self._now += 0.1
        return b"".join(_bytes(one.reply) for one in (self.first, self._second))


def _bytes(reply: Reply | None) -> bytes:
    return b"" if reply is None else b"".join(np.asarray(leaf).tobytes() for leaf in reply)


_NO_ARRAYS = (None, 0.5, "pcm", b"\0" * 6_400, [0.1] * 3_200, {"pcm": 1}, object(), True)
_DTYPES = (np.int16, np.int32, np.float64, np.float16, np.uint8, np.complex64, np.bool_, object)
_NO_INDICES: tuple[Any, ...] = (
    "1",
    b"1",
    0.5,
    float("nan"),
    [1],
    (),
    {},
    object(),
    True,
    1j,
    np.zeros(2, int),
)
_NO_TEXTS: tuple[Any, ...] = ("one two " * 10_000, None, 5, b"a", ["a"], object())


def _draw(rng: np.random.Generator, model: BatchModel) -> _Bad:
    config = model.config
    fields = [AUDIO, AUDIO, AUDIO, INDEX]  # a model refuses even good input of an untrained kind
    fields += [FRAME] * config.trained_on_frames + [TEXT] * config.trained_on_text
    field = fields[rng.integers(len(fields))]
    if field == INDEX:
        index = _NO_INDICES[rng.integers(len(_NO_INDICES))]
        pcm = np.zeros(config.audio.turn_samples, np.float32)
        return _Bad(field, lambda session: session.receive(index, pcm), f"index {index!r:.50}")
    if field == TEXT:
        text = _NO_TEXTS[rng.integers(len(_NO_TEXTS))]
        return _Bad(field, lambda session: session.type(text), f"text {text!r:.50}")
    size = config.frame_size
    shape = (config.audio.turn_samples,) if field == AUDIO else (size, size, 3)
    value, what = _array(rng, shape)
    if field == AUDIO:
        return _Bad(field, lambda session: session.receive(None, value), f"audio {what}")
    return _Bad(field, lambda session: session.show(value), f"frame {what}")


def _array(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, str]:
    """Something that is no float32 array of a shape with values in [-1, 1], and what it is."""
    good = rng.uniform(0, 1, shape).astype(np.float32)
    kind = rng.integers(5)
    if kind == 0:
        value = _NO_ARRAYS[rng.integers(len(_NO_ARRAYS))]
        return value, f"{value!r:.50}"
    if kind == 1:
        dtype = _DTYPES[rng.integers(len(_DTYPES))]
        return good.astype(dtype), f"of {np.dtype(dtype)}"
    if kind == 2:
        wrong = _other_shape(rng, shape)
        return np.zeros(wrong, np.float32), f"of shape {wrong}"
    bad = (np.nan, np.inf, -np.inf, 3e38, -7.0, 32_767.0, 2.001)[rng.integers(7)]
    good.reshape(-1)[rng.integers(good.size, size=rng.integers(1, 50) if kind == 3 else 1)] = bad
    return good, f"with {bad}"


def _other_shape(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[int, ...]:
    first = shape[0]
    lengths = (0, 1, first - 1, first + 1, 2 * first, int(rng.integers(0, first)))
    shapes = [(length, *shape[1:]) for length in lengths]
    return (*shapes, (1, *shape), (*shape, 1), ())[rng.integers(9)]
