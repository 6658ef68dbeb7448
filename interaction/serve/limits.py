"""Who gets in, and how much of everything a client may have."""

import dataclasses
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

KEY_PROTOCOL = "openai-insecure-api-key."  # a browser's way to send a token with a WebSocket


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a client and its sessions."""

    message_bytes: int = 1 << 20
    messages_a_second: float = 200.0  # on average over some seconds
    start_s: float = 10.0  # from the connection to `session.start`
    silent_s: float = 60.0  # without any message; sound counts
    session_s: float = 7_200.0
    sessions_a_client: int = 64
    connections: int = 1_000  # of all clients, those without a session included
    audio_waiting: int = 25  # micro-turns of speech that wait for a slow reader
    events_waiting: int = 1_000  # more of a slow reader's events end its connection
    event_bytes: int = 4 << 20  # the same of their characters
    kept_a_client: int = 64  # sessions that can be gone on with; the oldest make room
    kept_s: float = 300.0  # a lost session can be gone on with
    stored_s: float = 86_400.0  # the same for one that asked for `store`


class RefusedError(Exception):
    """A request that does not get in: `status` of HTTP, and words for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Door:
    """Checks tokens and origins."""

    def __init__(self, tokens: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        """Makes a door.

        Args:
          tokens: Bearer tokens that are accepted; none: everybody on this machine gets in.
          origins: Origins of pages beside the server's own, such as "https://example.org".
        """
        self._tokens = [token.encode() for token in tokens]
        self._origins = {origin.rstrip("/").lower() for origin in origins}

    @property
    def open(self) -> bool:
        """Whether no token is needed."""
        return not self._tokens

    def check(self, headers: Mapping[str, str]) -> str:
        """Lets a request in.

        Args:
          headers: Its headers, with names in lower case.

        Returns:
          An identity of the client, which does not tell its token.

        Raises:
          RefusedError: The origin is foreign, or the token is missing or wrong.
        """
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin and origin.lower() not in self._origins and _netloc(origin) != host:
            raise RefusedError(403, "origin: got a page of another site; allow its origin")
        if self.open:
            # A page of another site may give its own name the address of this machine.
            if not is_loopback(_hostname(host)):
                raise RefusedError(403, "host: got another name than localhost; set tokens")
            return "local"
        given = _token(headers).encode()
        # All are compared, so that the time tells nothing.
        if not any([hmac.compare_digest(given, token) for token in self._tokens]):
            raise RefusedError(401, "authorization: got no valid bearer token; send one")
        return hashlib.sha256(given).hexdigest()[:16]


def _token(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    for name in headers.get("sec-websocket-protocol", "").split(","):
        if name.strip().startswith(KEY_PROTOCOL):
            return name.strip().removeprefix(KEY_PROTOCOL)
    return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is of this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Rate:
    """Counts messages against a rate, with some seconds of slack."""

    def __init__(self, a_second: float, slack_s: float = 5.0) -> None:
        self._rate, self._most = a_second, a_second * slack_s
        self._left, self._at = self._most, time.monotonic()

    def take(self) -> bool:
        """Takes one message; False if they come too fast."""
        now = time.monotonic()
        self._left = min(self._most, self._left + self._rate * (now - self._at))
        self._at = now
        self._left -= 1
        return self._left >= 0
