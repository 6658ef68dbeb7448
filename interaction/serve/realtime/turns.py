"""`Turns`: shows a stream of micro-turns as the items and responses of the Realtime protocol.

The model hears and speaks all the time and has no turns. A response begins with the first
micro-turn in which it speaks, and ends when it has been silent for three. A user's item begins with
the first word of the transcript, and ends when no word has come for three.
"""

import collections
import dataclasses
import json
from typing import Any

import numpy as np

from interaction.serve.messages import ProtocolError, new_id
from interaction.serve.outbox import Outbox, Speech
from interaction.serve.realtime.realtime_messages import REQUEST, Settings, event

_QUIET = 3  # micro-turns that end a response or an item
_PATIENCE = 25  # micro-turns for the model to speak after the client asked for it
_KEPT = 64  # items that can be asked for


@dataclasses.dataclass
class _Response:
    """A response that is open."""

    id: str
    began: int  # micro-turn
    active: int  # the last micro-turn in which the model spoke
    text_only: bool
    metadata: dict[str, str] | None = None  # the client's
    outputs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    words: str = ""
    message: int | None = None  # its place in `outputs`
    spoken_over: int = -1  # the last micro-turn in which the user said a word


@dataclasses.dataclass
class _Utterance:
    """An item of the user that is open."""

    id: str
    began: int  # micro-turn
    active: int  # the last micro-turn in which the user said a word
    words: str = ""
    started: bool = False  # whether the client knows that the user speaks
    committed: bool = False


class Turns:
    """The items and responses of a session; all of it belongs to the thread of the connection.

    Attributes:
      settings: Those of the session, which may change.
    """

    def __init__(self, outbox: Outbox, settings: Settings, turn_s: float) -> None:
        """Starts in silence.

        Args:
          outbox: Where events go.
          settings: Those of the session.
          turn_s: Length of a micro-turn, s.
        """
        self._outbox, self.settings, self._turn_s = outbox, settings, turn_s
        self.conversation = new_id("conv")
        self._turn = self._silent = 0
        self._cut = False  # the client wants to hear nothing until the model is silent
        self._response: _Response | None = None
        self._utterance: _Utterance | None = None
        self._items: collections.OrderedDict[str, dict[str, Any]] = collections.OrderedDict()
        self._last: str | None = None  # id of the newest item
        self._function = settings.function  # the last one that there was

    # From the model.

    def reply(self, pcm: np.ndarray) -> None:
        """Takes what the model says in the next micro-turn, float32[turn_samples] in [-1, 1]."""
        self._turn += 1
        voiced = bool(np.any(pcm))
        self._silent = 0 if voiced else self._silent + 1
        self._cut = self._cut and self._silent < _QUIET
        if voiced and not self._cut:
            self._speak()
        response = self._response
        if response is not None:
            if response.message is not None and not response.text_only:
                fields = self._place(response, response.message)
                self._outbox.put(Speech(pcm, event("response.output_audio.delta", **fields)))
            waits = self._turn - response.active
            if waits >= (_QUIET if response.outputs else _PATIENCE):
                self._end_response()
        said = self._utterance
        if said is not None and self._turn - said.active > _QUIET:  # words come after the reply
            self._end_utterance(said)

    def say(self, text: str) -> None:
        """Takes words of the model."""
        self._silent = 0
        if self._cut:
            return
        response = self._speak()
        response.words += text
        kind = "output_text" if response.text_only else "output_audio_transcript"
        self._put(f"response.{kind}.delta", delta=text, **self._place(response, response.message))

    def hear(self, text: str) -> None:
        """Takes words of the user."""
        if self._utterance is None:
            self._utterance = self._begin_utterance()
        said = self._utterance
        said.words += text
        said.active = self._turn
        if self._response is not None:
            self._response.spoken_over = self._turn
        if self.settings.transcribes:
            self._put(f"{_TRANSCRIPTION}.delta", item_id=said.id, content_index=0, delta=text)

    def call(self, name: str, request: str) -> None:
        """Passes a delegation to the client's function.

        Args:
          name: Id of the delegation.
          request: The request, in words.
        """
        self._function = self.settings.function or self._function
        alone = self._response is None
        response = self._response or self._begin_response()
        response.active = self._turn
        arguments = json.dumps({REQUEST: request})
        item = {
            "id": new_id("item"),
            "object": "realtime.item",
            "type": "function_call",
            "status": "in_progress",
            "call_id": name,
            "name": self._function,
            "arguments": "",
        }
        index = self._add_output(response, item)
        fields = self._place(response, index)
        del fields["content_index"]
        fields |= {"call_id": name}
        self._put("response.function_call_arguments.delta", delta=arguments, **fields)
        done = fields | {"name": item["name"], "arguments": arguments}
        self._put("response.function_call_arguments.done", **done)
        item |= {"status": "completed", "arguments": arguments}
        self._finish_output(response, index)
        if alone:
            self._end_response()

    # From the client.

    def create_response(self, metadata: dict[str, str] | None = None) -> None:
        """Opens a response before the model speaks, with metadata of the client.

        Raises:
          ProtocolError: One is open.
        """
        if self._response is not None:
            raise ProtocolError(
                f"response: {self._response.id} is open; wait for its response.done",
                "conversation_already_has_active_response",
            )
        self._begin_response(metadata)

    def cancel_response(self, name: str | None) -> None:
        """Ends a response; what the model still says of it is not sent.

        Raises:
          ProtocolError: It is not open.
        """
        response = self._response
        if response is None or name not in (None, response.id):
            raise ProtocolError(
                f"Cancellation failed: got response_id {str(name)[:80]}, wanted an open one",
                "response_cancel_not_active",
            )
        self._cut = True
        self._end_response("client_cancelled")

    def commit(self) -> None:
        """Makes an item of what the user said."""
        if self._utterance is not None and self._utterance.committed:
            self._end_utterance(self._utterance)
        said = self._utterance or _Utterance(new_id("item"), self._turn, self._turn)
        self._utterance = said
        self._stop_speech(said)
        self._commit(said)
        said.active = self._turn  # words may be on their way

    def clear(self) -> None:
        """Forgets what the user said since the last commit; the model has heard it."""
        said = self._utterance
        if said is not None and not said.committed:
            self._stop_speech(said)
            self._utterance = None
        self._put("input_audio_buffer.cleared")

    def check_new(self, name: str) -> None:
        """Checks the id of an item that the client adds.

        Raises:
          ProtocolError: There is one with it.
        """
        if name in self._items:
            raise ProtocolError(
                f"item.id: got {name[:80]!r}, wanted one that no item has",
                "item_create_duplicate_item_id",
                "item.id",
            )

    def add(self, item: dict[str, Any]) -> None:
        """Adds an item of the client."""
        self._added(item)
        self._done(item)

    def remove(self, name: str) -> None:
        """Removes an item from those that can be asked for.

        Raises:
          ProtocolError: There is none.
        """
        self.item(name, "delete")
        del self._items[name]
        self._put("conversation.item.deleted", item_id=name)

    def item(self, name: str, what: str) -> dict[str, Any]:
        """An item.

        Raises:
          ProtocolError: There is none; `what` tells for which purpose.
        """
        if name not in self._items:
            raise ProtocolError(
                f"item_id: got {name[:80]!r}, wanted one of the last {_KEPT} items",
                f"item_{what}_invalid_item_id",
                "item_id",
            )
        return self._items[name]

    # Responses.

    def _speak(self) -> _Response:
        """The open response, with its message; begins both if need be."""
        response = self._response or self._begin_response()
        response.active = self._turn
        if response.message is None:
            kind = "output_text" if response.text_only else "output_audio"
            item = {"id": new_id("item"), "object": "realtime.item", "type": "message"}
            item |= {"status": "in_progress", "role": "assistant", "content": []}
            response.message = self._add_output(response, item)
            part = {"type": kind.removeprefix("output_"), _WORDS[kind]: ""}
            place = self._place(response, response.message)
            self._put("response.content_part.added", part=part, **place)
        return response

    def _begin_response(self, metadata: dict[str, str] | None = None) -> _Response:
        text_only = self.settings.text_only
        response = _Response(new_id("resp"), self._turn, self._turn, text_only, metadata)
        self._response = response
        self._put("response.created", response=self._resource(response, "in_progress"))
        return response

    def _end_response(self, reason: str = "") -> None:
        """Closes the open response; `reason` is why it was cancelled."""
        response, self._response = self._response, None
        if response is None:
            return
        over = response.spoken_over
        if over > response.began and over >= response.active - _QUIET and self.settings.detects:
            reason = reason or "turn_detected"
        if response.message is not None:
            self._end_message(response, response.message, "incomplete" if reason else "completed")
        status = "cancelled" if reason else "completed"
        told = self._resource(response, status)
        told["status_details"] = {"type": status} | ({"reason": reason} if reason else {})
        self._put("response.done", response=told)

    def _end_message(self, response: _Response, index: int, status: str) -> None:
        text_only = response.text_only
        kind, place = "output_text" if text_only else "output_audio", self._place(response, index)
        if text_only:
            self._put("response.output_text.done", text=response.words, **place)
        else:
            self._put("response.output_audio.done", **place)
            told = {"transcript": response.words, **place}
            self._put("response.output_audio_transcript.done", **told)
        part = {"type": kind.removeprefix("output_"), _WORDS[kind]: response.words}
        self._put("response.content_part.done", part=part, **place)
        content = [{"type": kind, _WORDS[kind]: response.words}]
        response.outputs[index] |= {"status": status, "content": content}
        self._finish_output(response, index)

    def _add_output(self, response: _Response, item: dict[str, Any]) -> int:
        response.outputs.append(item)
        index = len(response.outputs) - 1
        fields = {"response_id": response.id, "output_index": index, "item": dict(item)}
        self._put("response.output_item.added", **fields)
        self._added(item)
        return index

    def _finish_output(self, response: _Response, index: int) -> None:
        item = response.outputs[index]
        self._done(item)
        fields = {"response_id": response.id, "output_index": index, "item": dict(item)}
        self._put("response.output_item.done", **fields)

    def _resource(self, response: _Response, status: str) -> dict[str, Any]:
        form = self.settings.output
        return {
            "id": response.id,
            "object": "realtime.response",
            "status": status,
            "status_details": None,
            "output": [dict(item) for item in response.outputs],
            "conversation_id": self.conversation,
            "output_modalities": ["text" if response.text_only else "audio"],
            "audio": {"output": {"format": {"type": form.kind, "rate": form.rate}}},
            "metadata": response.metadata,
        }

    def _place(self, response: _Response, index: int | None) -> dict[str, Any]:
        index = index or 0
        item = response.outputs[index]["id"]
        fields = {"response_id": response.id, "item_id": item}
        return fields | {"output_index": index, "content_index": 0}

    # The user's items.

    def _begin_utterance(self) -> _Utterance:
        said = _Utterance(new_id("item"), self._turn, self._turn)
        if self.settings.detects:
            kind = "input_audio_buffer.speech_started"
            self._put(kind, audio_start_ms=self._milliseconds(self._turn - 1), item_id=said.id)
            said.started = True
        return said

    def _stop_speech(self, said: _Utterance) -> None:
        """Tells that the user is silent, if it was told that the user spoke."""
        if said.started:
            said.started = False
            kind = "input_audio_buffer.speech_stopped"
            self._put(kind, audio_end_ms=self._milliseconds(said.active), item_id=said.id)

    def _commit(self, said: _Utterance) -> None:
        if said.committed:
            return
        said.committed = True
        told = {"previous_item_id": self._last, "item_id": said.id}
        self._put("input_audio_buffer.committed", **told)
        self._added(_user_item(said, "in_progress"))

    def _end_utterance(self, said: _Utterance) -> None:
        if not (said.committed or said.started or self.settings.detects):
            return  # the client commits
        self._utterance = None
        self._stop_speech(said)
        self._commit(said)
        self._done(_user_item(said, "completed"))
        if self.settings.transcribes:
            seconds = (said.active - said.began + 1) * self._turn_s
            usage = {"type": "duration", "seconds": seconds}
            told = {"item_id": said.id, "content_index": 0, "transcript": said.words.strip()}
            self._put(f"{_TRANSCRIPTION}.completed", usage=usage, **told)

    # All items.

    def _added(self, item: dict[str, Any]) -> None:
        told = {"previous_item_id": self._last, "item": dict(item)}
        self._put("conversation.item.added", **told)
        self._items[item["id"]] = item
        self._last = item["id"]
        if len(self._items) > _KEPT:
            self._items.popitem(last=False)

    def _done(self, item: dict[str, Any]) -> None:
        if item["id"] in self._items:
            self._items[item["id"]] = item
        self._put("conversation.item.done", item=dict(item))

    def _put(self, kind: str, **fields: Any) -> None:  # noqa: ANN401
        self._outbox.put(event(kind, **fields))

    def _milliseconds(self, turn: int) -> int:
        return round(1_000 * turn * self._turn_s)


_TRANSCRIPTION = "conversation.item.input_audio_transcription"
_WORDS = {"output_text": "text", "output_audio": "transcript"}  # where a part's words stand


def _user_item(said: _Utterance, status: str) -> dict[str, Any]:
    words = said.words.strip() if status == "completed" else None
    return {
        "id": said.id,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": "user",
        "content": [{"type": "input_audio", "transcript": words}],
    }
