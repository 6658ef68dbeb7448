r"""A session of the released pair, to be held against what it once was.

python -m tests.released            # rewrites tests/golden/released_*

The bundled recording is streamed through `demo`; whom it delegates to is scripted, so that words of
results arrive at fixed micro-turns. `demo_background` then reads the first micro-turns of that
session and works on a request, with the result of its tool given.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np

import interaction
from interaction.background import MicroTurn, Reasoner, ScriptedAgent, load_reasoner
from interaction.background.agent import DONE, TEXT
from interaction.background.scripted import Line
from interaction.data.audio_file import read_audio, write_audio
from interaction.data.bundled_user import ASSET
from interaction.types import Special

FOLDER = pathlib.Path(__file__).parent / "golden"
TOKENS, SPEECH = FOLDER / "released_session.json", FOLDER / "released_speech.flac"
TURN = 3_200  # samples of a micro-turn
SCRIPT = {
    "ring in eight seconds": [Line(40, TEXT, "eight seconds are over"), Line(0, DONE)],
    "the pepper": [Line(20, TEXT, "it is fifty eight dollars"), Line(0, DONE)],
}
REASONS_AFTER = 155  # micro-turns that the reasoner has read when it is asked
REQUEST, CORRECTION = "price of butter", "the pepper"
RESULT = '{"result": 58}'


def run_live() -> tuple[dict[str, Any], np.ndarray, list[MicroTurn]]:
    """Streams the recording through the live model.

    Returns:
      Text tokens, user transcript and delegations as JSON types; the model's PCM
      float32[samples] at 16 kHz; the micro-turns as a background agent observes them.
    """
    user = read_audio(ASSET)
    user = np.pad(user, (0, -len(user) % TURN)).reshape(-1, TURN)
    agent = ScriptedAgent(SCRIPT)
    talk = interaction.Conversation(interaction.load("demo"), agent, seed=0)
    replies = [talk.step(pcm) for pcm in user]
    talk.close()
    found = {
        "text": [int(reply.text) for reply in replies],
        "user_transcript": [np.asarray(reply.user_transcript).tolist() for reply in replies],
        "delegations": [list(told) for told in agent.told],
    }
    return found, np.concatenate([reply.audio for reply in replies]), agent.turns


def run_reasoner(turns: list[MicroTurn]) -> list[int]:
    """Tokens that the background model writes on a request, greedily, a given result in between.

    Args:
      turns: Of the session, from `run_live`.
    """
    model = load_reasoner("demo_background")
    state = model.start()
    for first in range(0, REASONS_AFTER, 5):
        state = model.prefill(state, turns[first : first + 5])
    state, token = _read(model, model.fork(state), Special.DELEGATE, REQUEST)
    state, token = _read(model, state, Special.UPDATE, CORRECTION)
    written: list[int] = []
    while token != Special.SILENT and len(written) < 60:
        written.append(token)
        state, last = model.read(state, [token])
        if token == Special.END_DELEGATE:
            state, last = _read(model, state, Special.UPDATE, RESULT)
        token = last
    return written


def _read(model: Reasoner, state: Any, opening: int, words: str) -> tuple[Any, int]:  # noqa: ANN401
    ids = [opening, *model.tokenizer.encode(words), Special.END_DELEGATE]
    return model.read(state, ids)


def main() -> None:
    """Rewrites the goldens."""
    found, pcm, turns = run_live()
    found["reasoner"] = run_reasoner(turns)
    TOKENS.write_text(json.dumps(found) + "\n")
    write_audio(SPEECH, pcm)
    words = interaction.load("demo").tokenizer
    print(words.decode(found["text"]))
    print(found["delegations"])
    print(words.decode(found["reasoner"]))
    print(jax.devices())


if __name__ == "__main__":
    main()
