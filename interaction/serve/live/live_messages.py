"""Messages of OpenAI's Live protocol: what a client may send, and what it is told.

The names of events and fields are those of `openai.types.live`. Unknown fields and events are
refused, as there.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from interaction.serve.audio_formats import PCM, Format
from interaction.serve.messages import ClientMessage, ProtocolError, Strict, new_id, read_message

LONGEST_TEXT = 4_000  # characters of an appended text


class _Pcm(Strict):
    type: Literal["audio/pcm"]
    rate: Literal[16_000, 24_000] = 24_000


class _G711(Strict):
    type: Literal["audio/pcmu", "audio/pcma"]
    rate: Literal[8_000] = 8_000


class _Voice(Strict):
    id: str


class _Output(Strict):
    voice: str | _Voice | None = None


class _Audio(Strict):
    format: Annotated[_Pcm | _G711, Field(discriminator="type")] | None = None
    output: _Output | None = None


class ClientDelegation(Strict):
    """The client answers what the model delegates."""

    type: Literal["client"]
    acknowledgement_delay_ms: int | None = None


class _Responses(BaseModel):
    """Settings of a Responses model; the server's agent has its own, and says so."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    instructions: str | None = None
    tools: list[Any] | None = None


class ServerDelegation(Strict):
    """The server's background agent answers what the model delegates."""

    type: Literal["responses"]
    responses: _Responses = Field(default_factory=_Responses)
    acknowledgement_delay_ms: int | None = None


class _Content(Strict):
    type: Literal["input_text", "output_text", "text"] | None = None
    text: str


class _Item(Strict):
    type: Literal["message"] | None = None
    id: str | None = None
    status: Literal["incomplete", "completed"] | None = None
    role: Literal["developer", "user", "assistant"]
    content: list[_Content] = Field(min_length=1, max_length=1)


class _Ours(Strict):
    """What is not of OpenAI's protocol."""

    video: bool = False


class SessionConfig(Strict):
    """What a client asks of a session."""

    model: str = ""
    audio: _Audio | None = None
    delegation: (
        Annotated[ClientDelegation | ServerDelegation, Field(discriminator="type")] | None
    ) = None
    input: list[_Item] | None = Field(None, max_length=128)
    instructions: str | None = Field(None, max_length=100_000)
    interaction: _Ours | None = None
    safety_identifier: str | None = None
    store: bool | None = None

    @property
    def video(self) -> bool:
        """Whether the client sends frames."""
        return self.interaction is not None and self.interaction.video

    @property
    def format(self) -> Format:
        """The format of audio in both directions."""
        form = self.audio.format if self.audio else None
        return Format(form.type, form.rate) if form else Format(PCM, 24_000)


class SessionStart(ClientMessage):
    """Begins the session; the first message."""

    type: Literal["session.start"]
    session: SessionConfig


class SessionUpdate(ClientMessage):
    """Changes how delegations are answered; nothing else can change."""

    type: Literal["session.update"]
    session: dict[str, Any]


class AudioAppend(ClientMessage):
    """Sound of the user."""

    type: Literal["session.input_audio.append"]
    audio: str


class AudioMute(ClientMessage):
    """The user is silent from here on, or is heard again."""

    type: Literal["session.input_audio.mute", "session.input_audio.unmute"]


class TextAppend(ClientMessage):
    """Text for the session or for one delegation."""

    type: Literal[
        "session.instructions.append", "session.thinking.append", "session.commentary.append"
    ]
    content: str = Field(min_length=1, max_length=LONGEST_TEXT)
    delegation_id: str | None = None  # some clients leave out null

    @field_validator("content")
    @classmethod
    def _has_words(cls, content: str) -> str:
        if not content.strip():
            raise ValueError("wanted words")
        return content


class FrameAppend(ClientMessage):
    """A video frame, which the model sees in its next step; not of OpenAI's protocol."""

    type: Literal["interaction.input_frame.append"]
    frame: str  # base64 of uint8[size, size, 3], RGB


class SessionClose(ClientMessage):
    """Ends the session."""

    type: Literal["session.close"]


ClientEvent = (
    SessionStart | SessionUpdate | AudioAppend | AudioMute | TextAppend | FrameAppend | SessionClose
)
_EVENTS: dict[str, type[ClientMessage]] = {
    "session.start": SessionStart,
    "session.update": SessionUpdate,
    "session.input_audio.append": AudioAppend,
    "session.input_audio.mute": AudioMute,
    "session.input_audio.unmute": AudioMute,
    "session.instructions.append": TextAppend,
    "session.thinking.append": TextAppend,
    "session.commentary.append": TextAppend,
    "interaction.input_frame.append": FrameAppend,
    "session.close": SessionClose,
}


def read_event(text: str | bytes) -> Any:  # noqa: ANN401
    """Reads a message of a client: one of `ClientEvent`.

    Raises:
      ProtocolError: It is no JSON object, of an unknown type, or has a wrong field.
    """
    return read_message(text, _EVENTS)


def event(kind: str, client_event_id: str | None = None, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    """An event of the server."""
    made = {"type": kind, "event_id": new_id("event"), **fields}
    return made | ({"client_event_id": client_event_id} if client_event_id else {})


def error_event(error: ProtocolError, kind: str = "invalid_request_error") -> dict[str, Any]:
    """The event that tells a client what was refused."""
    fields: dict[str, Any] = {"type": kind, "code": error.code, "message": error.message}
    fields |= {"param": error.param} if error.param else {}
    fields |= {"client_event_id": error.event_id} if error.event_id else {}
    return event("error", error=fields)
