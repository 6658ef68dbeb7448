"""Checks of inputs on the host before a step: the fields of a chunk, PCM and frames."""

from typing import Any, NamedTuple

import numpy as np

from interaction.config import ModelConfig
from interaction.model.streaming import PCM_LIMIT
from interaction.types import Chunk


class _Field(NamedTuple):
    """Requirements of a field of a chunk."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fix: str  # fix for another shape or dtype
    span: tuple[float, float] = (-np.inf, np.inf)  # smallest and largest value
    unit: str = ""  # meaning of values within the span, and fix for others


def _fields(config: ModelConfig, sessions: int) -> dict[str, _Field]:
    size, row = config.frame_size, "pass one value for each session"
    samples, rate = config.audio.turn_samples, config.audio.sample_rate
    return {
        "audio": _Field(
            (sessions, samples),
            np.dtype(np.float32),
            f"cut {rate} Hz mono PCM into 200 ms, scaled to [-1, 1]",
            (-PCM_LIMIT, PCM_LIMIT),
            "PCM in [-1, 1]; divide int16 by 32768",
        ),
        "text": _Field(
            (sessions, config.text_slots),
            np.dtype(np.int32),
            "use model.encode for each session",
            (0, config.vocab - 1),
            f"ids below {config.vocab}; use this model's tokenizer",
        ),
        "frame": _Field(
            (sessions, size, size, 3),
            np.dtype(np.float32),
            f"resize each frame to {size}x{size} RGB in [0, 1]",
            (0, 1),
            "RGB pixels in [0, 1]; divide uint8 by 255",
        ),
        "has_frame": _Field((sessions,), np.dtype(np.bool_), row),
        "active": _Field((sessions,), np.dtype(np.bool_), row),
        "reset": _Field((sessions,), np.dtype(np.bool_), row),
        "seed": _Field((sessions,), np.dtype(np.int32), row),
    }


def chunk_forms(config: ModelConfig, sessions: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each field of a chunk of `sessions` rows, by its name."""
    return {name: (one.shape, one.dtype) for name, one in _fields(config, sessions).items()}


def _check_form(name: str, value: Any, wanted: _Field) -> None:  # noqa: ANN401
    got = (tuple(np.shape(value)), getattr(value, "dtype", type(value).__name__))
    if got != (wanted.shape, wanted.dtype):
        raise ValueError(
            f"{name}: got {got[1]}{list(got[0])}, wanted {wanted.dtype}{list(wanted.shape)}; "
            f"{wanted.fix}"
        )


def _usable_rows(value: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """Rows bool[rows] without values outside the span; NaN is outside."""
    return np.all((value >= span[0]) & (value <= span[1]), axis=tuple(range(1, value.ndim)))


def check_trained_on_frames(config: ModelConfig) -> None:
    """Refuses video for a model that was not trained on it.

    Raises:
      ValueError: The model's `trained_on_frames` is false.
    """
    if not config.trained_on_frames:
        raise ValueError(
            "frame: got video, wanted none: this model was not trained on it and would say "
            "anything; leave frames out, or load a model that was"
        )


def check_form(config: ModelConfig, chunk: Chunk, sessions: int) -> None:
    """Refuses fields of wrong shapes and dtypes.

    Args:
      config: Model configuration.
      chunk: Inputs, as NumPy arrays or arrays on a device.
      sessions: Expected number of rows.

    Raises:
      ValueError: Names the field, the shape and dtype, the wanted ones and the fix.
    """
    for name, wanted in _fields(config, sessions).items():
        value = getattr(chunk, name)
        if value is not None or name == "audio":
            _check_form(f"chunk.{name}", value, wanted)
    if chunk.frame is not None:
        check_trained_on_frames(config)
    if (chunk.frame is None) != (chunk.has_frame is None):
        raise ValueError(
            "chunk.has_frame: got only one of frame and has_frame, wanted both or neither; set "
            "has_frame to the rows with a frame"
        )
    if (chunk.reset is None) != (chunk.seed is None):
        raise ValueError(
            "chunk.seed: got only one of reset and seed, wanted both or neither; give the rows "
            "that start a fresh session their seeds"
        )


def check_chunk(config: ModelConfig, chunk: Chunk, sessions: int) -> None:
    """Refuses a chunk that the step cannot take.

    Args:
      config: Model configuration.
      chunk: Inputs; only values of NumPy arrays are checked.
      sessions: Expected number of rows.

    Raises:
      ValueError: A field has a wrong shape or dtype, or values out of range in every row. The
        message names the field, what it was, what was wanted and the fix.
    """
    check_form(config, chunk, sessions)
    for name, wanted in _fields(config, sessions).items():
        value = getattr(chunk, name)
        low, high = wanted.span
        if np.isinf(high) or not isinstance(value, np.ndarray):
            continue
        # Comparisons are false for NaN. For nearly every call the first condition is enough.
        if not (value.min() >= low and value.max() <= high):
            usable = _usable_rows(value, wanted.span)
            if name == "frame":
                usable |= ~np.asarray(chunk.has_frame)
            if not np.any(usable):
                raise ValueError(
                    f"chunk.{name}: got NaN or values outside [{low}, {high}] in every row, "
                    f"wanted {wanted.unit}"
                )


def checked(config: ModelConfig, name: str, value: np.ndarray) -> np.ndarray:
    """Checks one session's input and copies it.

    Args:
      config: Model configuration.
      name: "audio" or "frame".
      value: float32[turn_samples], PCM in [-1, 1], or float32[size, size, 3], RGB in [0, 1].

    Returns:
      A copy, float32[turn_samples] or float32[size, size, 3].

    Raises:
      ValueError: Names the field, what it was, what was wanted and the fix.
    """
    wanted = _fields(config, 1)[name]
    _check_form(name, value, wanted._replace(shape=wanted.shape[1:]))
    copy, (low, high) = np.array(value), wanted.span
    if not np.all(_usable_rows(copy[None], (low, high))):
        raise ValueError(f"{name}: got NaN or values outside [{low}, {high}], wanted {wanted.unit}")
    return copy


def unusable_chunk(config: ModelConfig, chunk: Chunk, sessions: int) -> Chunk:
    """A chunk with the same fields as another one, whose rows the step refuses.

    Args:
      config: Model configuration.
      chunk: The other chunk, of any shapes and dtypes.
      sessions: Number of rows of the new chunk.

    Returns:
      PCM of NaN, zeros in the other fields of `chunk`, all rows active.
    """
    given = {name for name in Chunk._fields if getattr(chunk, name, None) is not None}
    for pair in ({"frame", "has_frame"}, {"reset", "seed"}):
        given |= pair if given & pair else set()
    wanted = _fields(config, sessions)
    fields: dict[str, Any] = {
        name: np.zeros(wanted[name].shape, wanted[name].dtype) for name in given
    }
    fields["audio"] = np.full(wanted["audio"].shape, np.nan, wanted["audio"].dtype)
    if "active" in fields:
        fields["active"][:] = True
    return Chunk(**fields)
