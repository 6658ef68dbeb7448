"""Says the first request of the bundled recording to a server, and wants an answer in words.

python .ci/short_talk.py TOKEN < user.flac
"""

import asyncio
import base64
import io
import json
import sys
import time

import soundfile
import websockets

ADDRESS = "ws://127.0.0.1:8123/v1/live/sessions"
RATE, PIECE, TALK_S = 16_000, 640, 6.0  # samples a second, of a message; s of the recording


async def main() -> None:
    """Talks, closes the session, and prints what was heard and said."""
    user, _ = soundfile.read(io.BytesIO(sys.stdin.buffer.read()), dtype="int16")
    headers = {"Authorization": f"Bearer {sys.argv[1]}"}
    async with websockets.connect(ADDRESS, additional_headers=headers, max_size=None) as socket:
        audio = {"format": {"type": "audio/pcm", "rate": RATE}}
        session = {"model": "demo", "delegation": {"type": "responses"}, "audio": audio}
        await socket.send(json.dumps({"type": "session.start", "session": session}))
        reader = asyncio.create_task(read(socket))
        began = time.monotonic()
        for place in range(0, round(TALK_S * RATE), PIECE):
            data = base64.b64encode(user[place : place + PIECE].tobytes()).decode()
            await socket.send(json.dumps({"type": "session.input_audio.append", "audio": data}))
            await asyncio.sleep(max(began + place / RATE - time.monotonic(), 0))
        await socket.send(json.dumps({"type": "session.close"}))
        heard, said, speech = await asyncio.wait_for(reader, 10)
    print(f"the server heard {heard!r} and said {said!r} in {speech} pieces of speech")
    if not (heard.strip() and said.strip() and speech):
        sys.exit("got no answer, wanted one")


async def read(socket: websockets.ClientConnection) -> tuple[str, str, int]:
    """The words of both sides, and the number of pieces of speech, until the session is closed."""
    words, speech = {"input": "", "output": ""}, 0
    async for text in socket:
        event = json.loads(text)
        match event["type"].split("."):
            case ["session", ("input_transcript" | "output_transcript") as side, "delta"]:
                words[side.split("_")[0]] += event["delta"]
            case ["session", "output_audio", "delta"]:
                speech += 1
            case ["session", "closed"]:
                break
            case ["error"]:
                sys.exit(f"error: {event}")
    return words["input"], words["output"], speech


if __name__ == "__main__":
    asyncio.run(main())
