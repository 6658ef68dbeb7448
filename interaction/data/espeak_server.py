"""A process that speaks with espeak-ng, and forks a child for each sentence.

The library carries the state of flutter and noise from one sentence to the next, so that the same
words sound different each time. Here every sentence is spoken by a new child process with the
initial state, and therefore depends only on its arguments. The module imports only the standard
library, so that starting and forking take a few hundredths of a second.

Protocol: the caller writes a line of JSON `[text, voice, speed, pitch]` to standard input. The
reply on standard output is a line of JSON and the samples as little-endian int16. The line is
`{"rate", "samples", "words": [[character, sample], ...]}`, or `{"error"}` without samples.
"""

import ctypes
import json
import os
import sys
from ctypes import POINTER, c_char_p, c_int, c_short, c_uint, c_void_p
from typing import Any

_SYNCHRONOUS, _EVENT_END, _EVENT_WORD, _RATE, _PITCH, _UTF8 = 2, 0, 1, 1, 3, 1
_NO_MORE = 3  # exit status of a child at the end of standard input


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", c_int),
        ("identifier", c_uint),
        ("text_position", c_int),
        ("length", c_int),
        ("audio_position", c_int),
        ("sample", c_int),
        ("user_data", c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(c_int, POINTER(c_short), c_int, POINTER(_Event))


def speak(
    library: ctypes.CDLL, text: str, voice: str, speed: int, pitch: int
) -> tuple[list[tuple[int, int]], bytes]:
    """Speaks one sentence.

    Returns:
      (character, sample) at which each word starts, and the samples as int16 bytes.

    Raises:
      ValueError: There is no such voice.
    """
    pieces: list[bytes] = []
    words: list[tuple[int, int]] = []

    def receive(pcm: Any, count: int, events: Any) -> int:  # noqa: ANN401
        if count > 0:
            pieces.append(ctypes.string_at(pcm, 2 * count))
        index = 0
        while events[index].type != _EVENT_END:
            if events[index].type == _EVENT_WORD:
                words.append((events[index].text_position - 1, events[index].sample))
            index += 1
        return 0

    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(
            f"voice: got {voice!r}, wanted one that espeak-ng knows; see `espeak-ng --voices`"
        )
    library.espeak_SetParameter(_RATE, speed, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
    return words, b"".join(pieces)


def _reply(library: ctypes.CDLL, rate: int, line: bytes) -> bytes:
    try:
        words, pcm = speak(library, *json.loads(line))
    except ValueError as error:
        return json.dumps({"error": str(error)}).encode() + b"\n"
    return (
        json.dumps({"rate": rate, "samples": len(pcm) // 2, "words": words}).encode() + b"\n" + pcm
    )


def serve(name: str) -> None:
    """Serves until standard input ends; first writes the rate, -1 if there is no library."""
    out = sys.stdout.buffer
    try:
        library = ctypes.CDLL(name)
    except OSError:
        library = None
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0) if library else -1
    out.write(json.dumps({"rate": rate}).encode() + b"\n")
    out.flush()
    if library is None or rate <= 0:
        return
    library.espeak_Synth.argtypes = (
        c_char_p, ctypes.c_size_t, c_uint, c_int, c_uint, c_uint, c_void_p, c_void_p,
    )  # fmt: skip
    while True:
        child = os.fork()
        if child == 0:  # forked before its sentence comes, so that the caller does not wait for it
            line = os.read(sys.stdin.fileno(), 65_536)
            reply = _reply(library, rate, line) if line else b""
            while reply:
                reply = reply[os.write(out.fileno(), reply) :]
            os._exit(0 if line else _NO_MORE)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == _NO_MORE:
            return
        if status != 0:
            out.write(json.dumps({"error": f"espeak-ng crashed with {status}"}).encode() + b"\n")
            out.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
