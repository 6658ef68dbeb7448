"""A session of the Realtime protocol: takes its client's messages, and tells it what happens."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from interaction.engine import session_events
from interaction.engine.session import Session
from interaction.engine.session_events import SessionEvent
from interaction.serve.audio_formats import Format
from interaction.serve.house import Card
from interaction.serve.live.live_events import INFOS
from interaction.serve.messages import ProtocolError, decode_base64, new_id
from interaction.serve.opening import Link
from interaction.serve.realtime.realtime_agent import RealtimeAgent
from interaction.serve.realtime.realtime_messages import (
    AudioAppend,
    AudioClear,
    AudioCommit,
    FunctionCallOutput,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ItemTruncate,
    Message,
    ResponseCancel,
    ResponseCreate,
    SessionUpdate,
    Settings,
    error_event,
    event,
)
from interaction.serve.realtime.turns import Turns
from interaction.serve.session_connection import CLOSED, LOST, SessionConnection

_LEFT_WELL = (1000, 1001, 1005)  # WebSocket's codes


class RealtimeSession(SessionConnection):
    """An open session and its connection."""

    def __init__(
        self, link: Link, session: Session, card: Card, agent: RealtimeAgent, instructions: str
    ) -> None:
        """Takes over a connection whose session was just opened.

        Args:
          link: The connection.
          session: The session.
          card: What the house knows of it, with the client's configuration.
          agent: Answers what the model delegates.
          instructions: What the server's agent was told to do.
        """
        super().__init__(link, session, card)
        self._agent, self._instructions = agent, instructions
        self._turns = Turns(link.outbox, Settings(card.config), link.house.turn_s)
        self._calls: set[str] = set()  # function calls that were not answered
        self._informed: set[str] = set()
        agent.called = self._call

    @property
    def formats(self) -> tuple[Format, Format]:
        """See `SessionConnection`."""
        return self._turns.settings.input, self._turns.settings.output

    def begin(self) -> list[Callable[[], object]]:
        """See `SessionConnection`."""
        conversation = {"id": self._turns.conversation, "object": "realtime.conversation"}
        self.outbox.put(event("conversation.created", conversation=conversation))

        def reply(one: Any) -> None:  # noqa: ANN401
            self.later(self._turns.reply, np.asarray(one.audio))

        def tell(told: SessionEvent) -> None:
            self.later(self._tell, told)

        return [self.session.on_reply(reply), self.session.subscribe(tell)]

    def _tell(self, told: SessionEvent) -> None:
        if told.kind == session_events.MODEL_TEXT:
            self._turns.say(told.text)
        elif told.kind == session_events.USER_TRANSCRIPT:
            self._turns.hear(told.text)
        elif told.kind in INFOS:
            self.inform(INFOS[told.kind], told.text)

    def _call(self, name: str, request: str) -> None:
        """Calls the client's function; on the engine's thread."""
        self._calls.add(name)
        self.later(self._turns.call, name, request)

    async def handle(self, message: Any) -> str | None:  # noqa: ANN401
        """See `SessionConnection`."""
        turns = self._turns
        match message:
            case AudioAppend():
                self.hear(decode_base64(message.audio, "audio"))
            case SessionUpdate():
                self._update(message)
            case ItemCreate():
                await self._create(message)
            case AudioCommit():
                if not self.heard:
                    text = "input_audio_buffer: got no sound yet, wanted some before a commit"
                    raise ProtocolError(text, "input_audio_buffer_commit_empty")
                turns.commit()
            case AudioClear():
                turns.clear()
            case ItemDelete():
                turns.remove(message.item_id)
            case ItemTruncate():
                if turns.item(message.item_id, "truncate").get("role") != "assistant":
                    text = "item_id: got another item, wanted one that the model says"
                    raise ProtocolError(text, "item_truncate_invalid_item_id", "item_id")
                fields = message.model_dump(exclude={"type", "event_id"})
                self.outbox.put(event("conversation.item.truncated", **fields))
            case ItemRetrieve():
                item = turns.item(message.item_id, "retrieve")
                self.outbox.put(event("conversation.item.retrieved", item=item))
            case ResponseCreate():
                self._create_response(message)
            case ResponseCancel():
                turns.cancel_response(message.response_id)
        return None

    def _update(self, message: SessionUpdate) -> None:
        old = self._turns.settings
        new = old.update(message.session)
        if self.heard and (new.input, new.output) != (old.input, old.output):
            text = "session.audio: got another format, wanted that of the first sound"
            raise ProtocolError(text, "immutable_parameter", "session.audio")
        self._turns.settings = new
        self._agent.by_client = bool(new.function)
        told = new.describe(self.card.id, self.card.until, self.house.name)
        self.outbox.put(event("session.updated", session=told))
        self._say_what_has_no_effect(new)

    async def _create(self, message: ItemCreate) -> None:
        item = message.item
        name = item.id or new_id("item")
        self._turns.check_new(name)
        if isinstance(item, FunctionCallOutput):
            if item.call_id not in self._calls:
                raise ProtocolError(
                    f"item.call_id: got {item.call_id[:80]!r}, wanted that of a function call that "
                    "was not answered",
                    "invalid_value",
                    "item.call_id",
                )
            self._calls.discard(item.call_id)
            # What the user has taken back is answered to nobody.
            self._agent.client.answer(item.call_id, _words(item.output))
        else:
            await self._read(item)
        given = item.model_dump(exclude_none=True) | {"id": name, "status": "completed"}
        self._turns.add(given | {"object": "realtime.item"})

    async def _read(self, item: Message) -> None:
        for part in item.content:
            if part.text is None:
                raise ProtocolError(
                    f"item.content: got {part.type[:40]!r}, wanted text; sound and pictures of the "
                    "past cannot be given",
                    "unsupported_content",
                    "item.content",
                )
        if item.role == "user" and self.house.engine.model.config.trained_on_text:
            text = " ".join(part.text or "" for part in item.content)
            await asyncio.to_thread(self.house.engine.type, self.session, text)
        else:
            self.inform("input_not_read", "the live model does not read this text")

    def _create_response(self, message: ResponseCreate) -> None:
        asked = message.response
        if asked is not None and (asked.conversation == "none" or asked.input):
            raise ProtocolError(
                "response: got a response beside the conversation, wanted one of it",
                "unsupported_parameter",
                "response.conversation",
            )
        if asked is not None and (
            asked.instructions or asked.tools or "text" in (asked.output_modalities or [])
        ):
            self.inform("response_settings_not_read", "a response has the settings of its session")
        self._turns.create_response(asked.metadata if asked is not None else None)

    # What the client is told.

    def refuse(self, error: ProtocolError) -> None:
        """See `SessionConnection`."""
        self.outbox.put(error_event(error))

    def inform(self, code: str, message: str) -> None:
        """See `SessionConnection`."""
        self.outbox.put(event("info", code=code, message=message))

    def _say_what_has_no_effect(self, settings: Settings) -> None:
        texts = {}
        if settings.model not in ("", self.house.name):
            texts["model_substituted"] = f"the model here is {self.house.name!r}"
        if settings.voice:
            texts["voice_substituted"] = "the model has one voice"
        reads = self.house.reads_instructions and settings.instructions == self._instructions
        if settings.instructions and not reads:
            texts["instructions_not_read"] = "the models here do not read these instructions"
        for code, text in texts.items():
            if code not in self._informed:
                self._informed.add(code)
                self.inform(code, text)

    def report(self) -> None:
        """See `SessionConnection`; the protocol has nothing for it."""

    # The end.

    def left(self, code: int) -> str:
        """See `SessionConnection`."""
        return CLOSED if code in _LEFT_WELL else LOST

    def keep_s(self, reason: str) -> float:
        """See `SessionConnection`; the protocol cannot go on with a session."""
        return 0.0

    def farewell(self, reason: str) -> None:
        """See `SessionConnection`."""
        if reason not in (CLOSED, LOST):
            error = ProtocolError(f"session: it is over: {reason}", f"session_{reason}")
            self.outbox.put(error_event(error, "server_error"))


def _words(output: str) -> str:
    """What a function answered, in words: text, JSON of text, or the only text of an object."""
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return output
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    return value if isinstance(value, str) else output
