"""Messages of OpenAI's Realtime protocol: what a client may send, and what it is told.

The names of events and fields are those of `openai.types.realtime`. Unknown fields and events are
refused, as there.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from interaction.serve.audio_formats import PCM, Format
from interaction.serve.messages import ClientMessage, ProtocolError, Strict, new_id, read_message

LONGEST_TEXT = 4_000  # characters of an item
_LARGEST = 200_000  # characters of a configuration
REQUEST = "request"  # the parameter of a function that takes what the model delegates, in words


class _Pcm(Strict):
    type: Literal["audio/pcm"]
    rate: Literal[24_000] = 24_000


class _G711(Strict):
    type: Literal["audio/pcmu", "audio/pcma"]
    rate: Literal[8_000] = 8_000


_Format = Annotated[_Pcm | _G711, Field(discriminator="type")]


class _Input(Strict):
    format: _Format | None = None
    noise_reduction: Any = None
    transcription: dict[str, Any] | None = None
    turn_detection: dict[str, Any] | None = None


class _Voice(Strict):
    id: str


class _Output(Strict):
    format: _Format | None = None
    speed: float | None = None
    voice: str | _Voice | None = None


class _Audio(Strict):
    input: _Input | None = None
    output: _Output | None = None


class SessionConfig(Strict):
    """What a client asks of a session."""

    type: Literal["realtime"]
    audio: _Audio | None = None
    expires_at: int | None = None
    id: str | None = None
    include: list[Any] | None = None
    instructions: str | None = Field(None, max_length=100_000)
    max_output_tokens: int | Literal["inf"] | None = None
    model: str | None = None
    object: Literal["realtime.session"] | None = None
    output_modalities: list[Literal["text", "audio"]] | None = Field(None, max_length=1)
    parallel_tool_calls: bool | None = None
    prompt: Any = None
    reasoning: Any = None
    tool_choice: Any = None
    tools: list[dict[str, Any]] | None = None
    tracing: Any = None
    truncation: Any = None


class SessionUpdate(ClientMessage):
    """Changes the session."""

    type: Literal["session.update"]
    session: SessionConfig


class AudioAppend(ClientMessage):
    """Sound of the user."""

    type: Literal["input_audio_buffer.append"]
    audio: str


class AudioCommit(ClientMessage):
    """The user has spoken."""

    type: Literal["input_audio_buffer.commit"]


class AudioClear(ClientMessage):
    """What the user said since the last commit makes no item."""

    type: Literal["input_audio_buffer.clear"]


class _Content(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    type: str = Field(max_length=40)
    text: str | None = Field(None, max_length=LONGEST_TEXT)


class Message(Strict):
    """An item of text."""

    type: Literal["message"]
    role: Literal["system", "user", "assistant"]
    content: list[_Content] = Field(min_length=1, max_length=4)
    id: str | None = Field(None, max_length=64)
    object: Literal["realtime.item"] | None = None
    status: str | None = None


class FunctionCallOutput(Strict):
    """The answer to a function call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str = Field(max_length=LONGEST_TEXT)
    id: str | None = Field(None, max_length=64)
    object: Literal["realtime.item"] | None = None
    status: str | None = None


class ItemCreate(ClientMessage):
    """Adds an item."""

    type: Literal["conversation.item.create"]
    item: Annotated[Message | FunctionCallOutput, Field(discriminator="type")]
    previous_item_id: str | None = None


class ItemDelete(ClientMessage):
    """Removes an item from those that can be asked for; the model has heard or said it."""

    type: Literal["conversation.item.delete"]
    item_id: str


class ItemTruncate(ClientMessage):
    """The client stopped to play an item."""

    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: int = Field(ge=0, le=0)
    audio_end_ms: int = Field(ge=0)


class ItemRetrieve(ClientMessage):
    """Asks for an item."""

    type: Literal["conversation.item.retrieve"]
    item_id: str


class _ResponseConfig(BaseModel):
    model_config = ConfigDict(extra="allow")
    conversation: str | None = None
    input: list[Any] | None = None
    instructions: str | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    output_modalities: list[str] | None = None
    tools: list[Any] | None = None


class ResponseCreate(ClientMessage):
    """Asks for a response, which the model gives when it speaks."""

    type: Literal["response.create"]
    response: _ResponseConfig | None = None


class ResponseCancel(ClientMessage):
    """Ends a response."""

    type: Literal["response.cancel"]
    response_id: str | None = None


_EVENTS: dict[str, type[ClientMessage]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": AudioAppend,
    "input_audio_buffer.commit": AudioCommit,
    "input_audio_buffer.clear": AudioClear,
    "conversation.item.create": ItemCreate,
    "conversation.item.delete": ItemDelete,
    "conversation.item.truncate": ItemTruncate,
    "conversation.item.retrieve": ItemRetrieve,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
}


def read_event(text: str | bytes) -> Any:  # noqa: ANN401
    """Reads a message of a client, one of the classes of this module.

    Raises:
      ProtocolError: It is no JSON object, of an unknown type, or has a wrong field.
    """
    return read_message(text, _EVENTS)


def event(kind: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    """An event of the server."""
    return {"type": kind, "event_id": new_id("event"), **fields}


def error_event(error: ProtocolError, kind: str = "invalid_request_error") -> dict[str, Any]:
    """The event that tells a client what was refused."""
    fields = {"type": kind, "code": error.code, "message": error.message}
    more = {"param": error.param or None, "event_id": error.event_id or None}
    return event("error", error=fields | more)


class Settings:
    """What of a session's configuration has an effect here."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Reads a configuration, the merged fields of `SessionConfig`.

        Raises:
          ProtocolError: It asks for what this server cannot do.
        """
        self.config = config
        audio = config.get("audio") or {}
        heard, said = audio.get("input") or {}, audio.get("output") or {}
        self.input, self.output = _format(heard.get("format")), _format(said.get("format"))
        self.transcribes = heard.get("transcription") is not None
        self.detects = heard.get("turn_detection", {}) is not None
        self.text_only = config.get("output_modalities") == ["text"]
        self.instructions: str = config.get("instructions") or ""
        self.model: str = config.get("model") or ""
        self.voice = said.get("voice")
        self.function = _function(config.get("tools") or [], config.get("tool_choice"))

    def update(self, session: SessionConfig) -> "Settings":
        """The settings after a change.

        Raises:
          ProtocolError: It asks for what this server cannot do.
        """
        config = _merge(self.config, session.model_dump(exclude_unset=True))
        if (size := len(json.dumps(config))) > _LARGEST:
            text = f"session: got {size} characters, wanted at most {_LARGEST}"
            raise ProtocolError(text, "invalid_value", "session")
        return Settings(config)

    def describe(self, name: str, until: float, model: str) -> dict[str, Any]:
        """A session as the client is told of it.

        Args:
          name: Id of the session.
          until: When it expires, s since the epoch.
          model: Name of the model.
        """
        detection = {"type": "semantic_vad", "create_response": True, "interrupt_response": True}
        heard = {"noise_reduction": None, "transcription": None, "turn_detection": detection}
        audio = {"input": heard, "output": {"voice": model, "speed": 1.0}}
        defaults = {"output_modalities": ["audio"], "instructions": "", "tools": []}
        defaults |= {"tool_choice": "auto", "max_output_tokens": "inf", "audio": audio}
        told = _merge(defaults, self.config)
        for part, form in (("input", self.input), ("output", self.output)):
            told["audio"][part]["format"] = {"type": form.kind, "rate": form.rate}
        told |= {"object": "realtime.session", "type": "realtime", "id": name, "model": model}
        return told | {"expires_at": int(until)}


def _merge(old: dict[str, Any], new: dict[str, Any], deep: int = 2) -> dict[str, Any]:
    """The fields of both; those of `audio`, and of its two parts, are merged one by one."""
    merged = dict(old)
    for name, value in new.items():
        inner = deep and name in ("audio", "input", "output")
        merged[name] = _merge(old.get(name) or {}, value or {}, deep - 1) if inner else value
    return merged


def _format(given: dict[str, Any] | None) -> Format:
    if given is None or given["type"] == PCM:
        return Format(PCM, 24_000)
    return Format(given["type"], 8_000)


def _function(tools: list[dict[str, Any]], choice: Any) -> str:  # noqa: ANN401
    """The name of the function that takes what the model delegates; "" if there is none.

    Raises:
      ProtocolError: There are tools, but none or several that take words alone.
    """
    if not tools or choice == "none":
        return ""
    fitting = [str(tool["name"]) for tool in tools if _takes_words(tool)]
    if len(fitting) != 1:
        names = ", ".join(str(tool.get("name") or tool.get("type"))[:64] for tool in tools[:8])
        raise ProtocolError(
            f"session.tools: got {names}, wanted one function with the one required parameter "
            f"{REQUEST!r}, a string: the model here asks in words and chooses no function; let "
            "that function choose",
            "unsupported_parameter",
            "session.tools",
        )
    return fitting[0]


def _takes_words(tool: dict[str, Any]) -> bool:
    form = tool.get("parameters")
    if tool.get("type") != "function" or not tool.get("name") or not isinstance(form, dict):
        return False
    properties = form.get("properties")
    request = properties.get(REQUEST) if isinstance(properties, dict) else None
    wanted = form.get("required", [REQUEST])
    return isinstance(request, dict) and request.get("type") == "string" and wanted == [REQUEST]
