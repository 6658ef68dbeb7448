"""Events: the annotation of what happens on the user's side of a session, with the answers."""

import dataclasses
import json
from typing import Any

TURN_S = 0.2  # s, length of a micro-turn

REQUESTS = ("request", "pause_request")
INTERRUPTIONS = ("interrupt_stop", "interrupt_request", "interrupt_correction")
TOOL_REQUESTS = ("tool_request", "tool_request_cancel", "tool_request_update")
TO_MODEL = REQUESTS + INTERRUPTIONS + TOOL_REQUESTS
TO_OTHERS = ("side_speech", "background")  # by the user; by somebody else in the background
NOBODY = ("silence", "noise")  # nobody speaks
KINDS = (*TO_MODEL, "backchannel", *TO_OTHERS, *NOBODY)


def reply_time(turn: int) -> float:
    """When reply `turn` starts to play, s: the model needs the whole micro-turn of audio first."""
    return TURN_S * (turn + 1)


@dataclasses.dataclass(frozen=True)
class Event:
    """One event on the user's side; times in s from the start of the session (the user's clock)."""

    kind: str  # one of KINDS
    form: str  # phrasing of a request, such as "capital.2"
    start_s: float
    end_s: float
    text: str = ""
    answer: str = ""  # what the model should say, "" for nothing
    answer_turn: int = -1  # micro-turn in which the answer starts, -1 without an answer
    answer_end_turn: int = -1  # first micro-turn after the answer
    answer_end_s: float = -1.0  # when the answer's last sound has played
    pauses: tuple[tuple[float, float], ...] = ()  # (start, end) of pauses inside the event
    held_out: bool = False  # whether training never has its combination of words
    delegation: int = 0  # number of its delegation, 0 without one

    def __post_init__(self) -> None:
        """Checks the kind and the order of the times.

        Raises:
          ValueError: A field is wrong.
        """
        if self.kind not in KINDS:
            raise ValueError(
                f"event.kind: got {self.kind!r}, wanted one of {KINDS}; fix the record"
            )
        if not 0 <= self.start_s <= self.end_s:
            raise ValueError(
                f"event.end_s: got {self.start_s}..{self.end_s}, wanted 0 <= start <= end; "
                "fix the record"
            )
        if self.answer and self.answer_end_s <= self.answer_start_s:
            raise ValueError(
                f"event.answer_end_s: got {self.answer_end_s}, wanted a time after the answer's "
                f"start at {self.answer_start_s:.1f}; rebuild the sessions"
            )

    @property
    def wants_answer(self) -> bool:
        """Whether the model should reply."""
        return bool(self.answer)

    @property
    def answer_start_s(self) -> float:
        """When the annotated answer starts to play."""
        return reply_time(self.answer_turn)

    @property
    def family(self) -> str:
        """The intent of the form: its name up to the first '.' or '/'."""
        return self.form.replace("/", ".").split(".")[0]


def read_engine(meta: str) -> str:
    """The speech engine of a session's user; "" if `meta` has no voice."""
    return json.loads(meta).get("voice", "").split(":")[0]


def parse_events(meta: str) -> list[Event]:
    """Reads the events of a stored session's `meta`, in order of time.

    Raises:
      ValueError: `meta` is no JSON object with a list of events, or an event is wrong.
    """
    try:
        listed = json.loads(meta)["events"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"meta: got {meta[:60]!r}, wanted a JSON object with 'events'; rebuild the sessions"
        ) from error
    names = {field.name for field in dataclasses.fields(Event)}
    events = []
    try:
        for entry in listed:
            known: dict[str, Any] = {name: entry[name] for name in names if name in entry}
            known["pauses"] = tuple((start, end) for start, end in known.get("pauses", ()))
            events.append(Event(**known))
        return sorted(events, key=lambda event: (event.start_s, event.end_s))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"meta: event {len(events)} cannot be read ({error}), wanted the fields {sorted(names)}"
            "; rebuild the sessions"
        ) from error
