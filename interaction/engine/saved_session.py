"""The parts of a saved conversation beside the model's state: kept micro-turns and delegations."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from interaction.background.agent import MicroTurn
from interaction.background.delegations import Delegation
from interaction.config import ModelConfig
from interaction.engine.level import MOST_DB
from interaction.engine.session_file import pack_array, unpack_array
from interaction.engine.typed_values import Fields, typed
from interaction.model.streaming import PCM_LIMIT

_LAST = (1 << 31) - 1  # largest number of a token or a delegation


@dataclasses.dataclass
class SavedTalk:
    """The fields of `Delegations.saved`."""

    last: int
    turn: int
    open: list[Delegation]
    told: list[Delegation]
    ready: list[int]
    floor: int | None
    span: tuple[int, list[int]] | None


@dataclasses.dataclass
class SavedLevel:
    """The fields of `LevelControl.saved`."""

    speech: list[float]
    noise: list[float]
    clipped: list[bool]
    changes: bool
    gain_db: float


@dataclasses.dataclass
class SavedEvents:
    """The fields of `EventReader.saved`."""

    speaks: bool
    inside: bool
    heard: list[int]
    said: list[int]


def pack_turns(turns: Iterable[MicroTurn]) -> list[list[Any]]:
    """Packs micro-turns."""
    return [
        [None if leaf is None else pack_array(np.asarray(leaf)) for leaf in turn] for turn in turns
    ]


def kept_turns(fields: Fields, config: ModelConfig) -> list[MicroTurn]:
    """The micro-turns in the field `kept` of a saved conversation.

    Args:
      fields: The file's fields.
      config: Configuration of the model.

    Raises:
      ValueError: They are no micro-turns of the model.
    """
    samples, size = config.audio.turn_samples, config.frame_size
    wanted: dict[str, tuple[tuple[int, ...], type]] = {
        "audio": ((samples,), np.float32),
        "speech": ((samples,), np.float32),
        "user_transcript": ((config.audio_positions,), np.int32),
        "text": ((), np.int32),
        "arrived": ((config.text_slots,), np.int32),
        "frame": ((size, size, 3), np.float32),
    }
    turns = []
    for at, packed in enumerate(fields.take("kept", list[list[Any]])):
        where = f"{fields.where}: kept[{at}]"
        if len(packed) != len(MicroTurn._fields):
            raise ValueError(
                f"{where}: got {len(packed)} values, wanted {MicroTurn._fields}; copy the file "
                "again"
            )
        leaves: dict[str, Any] = {}
        for name, one in zip(MicroTurn._fields, packed, strict=True):
            if one is None and name in ("arrived", "frame"):
                leaves[name] = None
                continue
            shape, dtype = wanted[name]
            leaf = unpack_array(one, f"{where}.{name}", 8 * int(np.prod(shape)))
            kind = leaf.dtype.kind == np.dtype(dtype).kind  # the text token is int64 on some hosts
            if leaf.shape != shape or not kind or not np.all(np.isfinite(leaf)):
                raise ValueError(
                    f"{where}.{name}: got {leaf.dtype.name}{list(leaf.shape)}, wanted finite "
                    f"{dtype.__name__}{list(shape)}; copy the file again"
                )
            leaves[name] = int(leaf) if name == "text" else leaf
        turns.append(MicroTurn(**leaves))
    return turns


def saved_talk(fields: Fields) -> dict[str, Any]:
    """The field `talk` of a saved conversation, for `Delegations.restore`.

    Raises:
      ValueError: It is no result of `Delegations.saved`.
    """
    where = f"{fields.where}: talk"
    talk: SavedTalk = typed(fields["talk"], SavedTalk, where)
    numbers = [one.number for one in talk.open]
    every = [*talk.open, *talk.told]
    whole = [number for one in every for number in (one.calling, one.length, one.newest, *one.due)]
    whole += [talk.turn, *([] if talk.span is None else [talk.span[0], *talk.span[1]])]
    floor = [] if talk.floor is None else [talk.floor]
    if not (
        len(set(numbers)) == len(numbers)
        and {*talk.ready, *floor} <= set(numbers)
        and all(0 <= one.number <= talk.last for one in every)
        and all(0 <= number <= _LAST for number in [talk.last, *whole])
    ):
        raise ValueError(f"{where}: got delegations that contradict themselves; copy it again")
    return fields["talk"]


def saved_level(fields: Fields) -> dict[str, Any]:
    """The field `level` of a saved conversation, for `LevelControl.resume`.

    Raises:
      ValueError: It is no result of `LevelControl.saved`.
    """
    where = f"{fields.where}: level"
    level: SavedLevel = typed(fields["level"], SavedLevel, where)
    powers = [*level.speech, *level.noise]
    if abs(level.gain_db) > MOST_DB or any(not 0 <= power <= PCM_LIMIT**2 for power in powers):
        raise ValueError(f"{where}: got levels that no microphone has; copy the file again")
    return fields["level"]


def saved_events(fields: Fields, vocab: int) -> dict[str, Any]:
    """The field `told` of a saved conversation, for `EventReader.resume`.

    Raises:
      ValueError: It is no result of `EventReader.saved`.
    """
    where = f"{fields.where}: told"
    told: SavedEvents = typed(fields["told"], SavedEvents, where)
    if any(not 0 <= one < vocab for one in (*told.heard, *told.said)):
        raise ValueError(f"{where}: got tokens that the model has not; copy the file again")
    return fields["told"]
