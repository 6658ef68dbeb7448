# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A model behind the model
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/interaction-models/interaction/blob/main/colab/delegation.ipynb)
#
# The demo model answers small talk itself. What takes arithmetic, a clock, a timer, a table or a
# conversion it delegates, with control tokens in its text stream, to a background model that
# reasons and calls tools while the conversation continues. Here the pair talks to a recorded user
# for a minute of real time. Then we read the session record, replay it bit for bit, and put an
# agent of our own in the place of the background model. Everything runs on a CPU in a few minutes.
#
# The first cell installs the library from `SOURCE`, a direct reference as pip takes it; the
# environment variable `INTERACTION_SOURCE` names another one, such as a wheel's `file://` address.

# %%
import os

SOURCE = os.environ.get(
    "INTERACTION_SOURCE", "git+https://github.com/interaction-models/interaction"
)
# %pip install --quiet "interaction[demo] @ {SOURCE}"

# %%
import json
import pathlib
import tempfile

import numpy as np
from IPython.display import Audio, Image, display

import interaction
from interaction.background.agent import CALL, DONE, RESULT, TEXT, BackgroundAgent, Event
from interaction.background.reasoner_agent import ReasonerAgent, load_reasoner
from interaction.background.tool import tool
from interaction.background.toolbox import Toolbox
from interaction.data.audio_file import read_audio
from interaction.data.bundled_user import ASSET
from interaction.engine import replay, session_record
from interaction.evaluation import parse_events, timeline
from interaction.evaluation.delegation_history import read_delegations
from interaction.evaluation.rollout import Rollout
from interaction.evaluation.spans import read_spans
from interaction.evaluation.talk import session_tools, talk
from interaction.evaluation.transcript import converse, transcript

# %% [markdown]
# ## The pair, and its tools
#
# Both models are small transformers made by the same code. The tools are typed Python functions.
# The recording comes with a table for `lookup`, and with the time that each tool takes, so that
# some results arrive late.

# %%
live = interaction.load("demo")
reasoner = load_reasoner("demo_background")
user = read_audio(ASSET)
meta = json.loads(ASSET.with_suffix(".json").read_text())
toolbox = Toolbox(session_tools(meta))
for schema in toolbox.schemas():
    function = schema["function"]
    print(f"{function['name']}: {function['description']}")
    print(f"   {json.dumps(function['parameters']['properties'])}")

# %% [markdown]
# ## A conversation of one minute
#
# An `interaction.Conversation` takes 200 ms of the user at a time. It never waits for the agent,
# which works on its own thread. `talk` plays the recording to a conversation in real time and
# writes a session record.

# %%
folder = pathlib.Path(tempfile.mkdtemp())
record = folder / "talk.session"
done = talk(live, ReasonerAgent(reasoner, toolbox), user, seed=0, record=record, tail_s=3.0)
step_ms, driver_ms = 1e3 * np.median(done.step_s), 1e3 * np.median(done.driver_s)
print(f"{len(done.text)} micro-turns, {done.missed} of their replies late")
print(f"median time: {step_ms:.1f} ms for the model's step, {driver_ms:.2f} ms for all else")

# %%
padded = np.zeros(len(done.audio) + 3_200)
padded[: len(user)] = user
display(Audio(np.stack([padded, np.append(np.zeros(3_200), done.audio)]), rate=16_000))

# %% [markdown]
# ## What was delegated
#
# Words between `<delegate>` and `</delegate>` are not spoken. `<update>` corrects the newest
# running request, `<cancel>` drops it.

# %%
names = {interaction.Special.DELEGATE: "<delegate>", interaction.Special.UPDATE: "<update>"}
for span in read_spans(done.text):
    print(f"{0.2 * (span.first + 1):6.2f} s  {names[span.opening]} {live.decode(span.words)}")
for turn in np.flatnonzero(done.text == interaction.Special.CANCEL):
    print(f"{0.2 * (turn + 1):6.2f} s  <cancel>")

# %% [markdown]
# ## What the background model did
#
# The record holds every micro-turn: the inputs, the text that arrived from the background model,
# the outputs, and notes of what happened to each delegation.

# %%
entries = session_record.read(record).entries
found = read_delegations(entries)
for one in found:
    print(f"{one.number}: {one.request}")
    for step in one.steps:
        print(f"   {0.2 * (step.turn + 1):6.2f} s  {step.kind:<10}{step.text}")

# %%
events = parse_events(json.dumps(meta))
replies = Rollout(done.audio, done.text, done.user_transcript, done.step_s)
conversation = converse(user, replies, live.decode, events, found)
print(transcript(conversation.rows))

# %% [markdown]
# The third lane is the background model: light while it reasons, dark while a tool runs, pale while
# a result waits until nobody speaks.

# %%
picture = folder / "timeline.png"
timeline.save(conversation, picture, "The demo pair")
display(Image(picture))

# %% [markdown]
# ## Replay, bit for bit
#
# The results arrived at some time on the clock of that minute. A replay takes them from the record.
# It asks no agent and calls no tool, and its outputs have the same bits.

# %%
again = replay.replay(record, live)
print(f"{again.turns} micro-turns, {'the same bits' if again.equal else again.difference}")
assert again.equal and again.complete

# %% [markdown]
# ## An agent of your own
#
# Any object with these six methods can be the agent of a conversation. This one does not reason:
# for any request it calls a tool that counts the letters. It needs no real time, so the
# conversation runs as fast as the CPU allows.


# %%
@tool
def count_letters(words: str) -> str:
    """Counts letters.

    Args:
      words: Whose letters to count.
    """
    count = sum(letter.isalpha() for letter in words)
    tens, ones = divmod(count, 10)
    digits = "zero one two three four five six seven eight nine".split()
    return "it is " + (f"{digits[tens]} " if tens else "") + digits[ones]


class LetterCounter(BackgroundAgent):
    def __init__(self, toolbox):
        self.toolbox, self.calls, self.happened = toolbox, {}, []

    def observe(self, turn):
        pass  # it could read turn.audio, turn.user_transcript and turn.text

    def ask(self, delegation, request):
        call = json.dumps({"tool": "count_letters", "words": request})
        self.happened.append(Event(delegation, CALL, call))
        self.calls[delegation] = self.toolbox.start(call)

    def update(self, delegation, request, updates):
        self.cancel(delegation)
        self.ask(delegation, updates[-1])

    def cancel(self, delegation):
        if delegation in self.calls:
            self.calls.pop(delegation).cancel()

    def events(self):
        for delegation in [number for number, call in self.calls.items() if call.done()]:
            result = self.calls.pop(delegation).result()
            self.happened.append(Event(delegation, RESULT, result))
            words = json.loads(result).get("result", "sorry that did not work")
            self.happened += [Event(delegation, TEXT, words), Event(delegation, DONE)]
        happened, self.happened = self.happened, []
        return happened


record = folder / "own.session"
letter_counter = LetterCounter(Toolbox([count_letters]))
done = talk(
    live, letter_counter, user, seed=0, record=record, tail_s=3.0, sleep=lambda seconds: None
)
found = read_delegations(session_record.read(record).entries)
replies = Rollout(done.audio, done.text, done.user_transcript, done.step_s)
conversation = converse(user, replies, live.decode, events, found)
print(transcript([row for row in conversation.rows if row.who == "behind"]))

# %%
timeline.save(conversation, picture, "The demo model and an agent that counts letters")
display(Image(picture))
