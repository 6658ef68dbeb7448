"""What happens in a session, as annotated: the events of the user's side and their answers."""

import dataclasses
import json
from typing import Any

TURN_S = 0.2  # seconds of a micro-turn

REQUESTS = ("request", "pause_request")
INTERRUPTIONS = ("interrupt_stop", "interrupt_request", "interrupt_correction")
TOOL_REQUESTS = (
    "tool_request",
    "tool_request_cancel",
    "tool_request_update",
)  # what is handed over, dropped, changed
TO_MODEL = REQUESTS + INTERRUPTIONS + TOOL_REQUESTS
TO_OTHERS = ("side_speech", "background")
NOBODY = ("silence", "noise")
KINDS = (*TO_MODEL, "backchannel", *TO_OTHERS, *NOBODY)


def reply_time(turn: int) -> float:
    """When reply `turn` starts to play: the step has to hear the whole micro-turn first."""
    return TURN_S * (turn + 1)


@dataclasses.dataclass(frozen=True)
class Event:
    """One thing that the user, or somebody near, does; times in seconds on the user's clock."""

    kind: str  # one of KINDS
    form: str  # phrasing template, e.g. "capital_of"
    start_s: float
    end_s: float
    text: str = ""
    answer: str = ""  # what the model should say, "" if nothing
    answer_turn: int = -1  # step of the answer's first speech, -1 if none
    answer_end_turn: int = -1  # first silent step after it
    answer_end_s: float = -1.0  # when its last sound has played
    pauses: tuple[tuple[float, float], ...] = ()
    held_out: bool = False  # a combination of words that training never contains
    delegation: int = 0  # number of the delegation that it is about, 0 if none

    def __post_init__(self) -> None:
        """Checks the kind and the order of the times."""
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
        """The intent behind the form: its name up to the first '.' or '/'."""
        return self.form.replace("/", ".").split(".")[0]


def read_engine(meta: str) -> str:
    """Name of the speech engine of a session's user; "" if the record's `meta` names no voice."""
    return json.loads(meta).get("voice", "").split(":")[0]


def parse_events(meta: str) -> list[Event]:
    """Reads the events of a session record's `meta`, in order of time.

    Raises:
      ValueError: if `meta` is no JSON object with a list of events, or an event is none of ours.
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
