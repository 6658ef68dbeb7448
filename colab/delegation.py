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
# The demo model answers small talk itself. What takes arithmetic, a clock, a timer or a table it
# hands over, in words of its own text stream, to a background model that thinks and calls tools
# while the talk goes on. Here both talk to a recorded user for a minute of real time; then we read
# the record, run it again bit for bit, and put an agent of our own in the background model's place.
# Everything runs on a CPU in a few minutes.
#
# Run it from a clone of the repository in which `pip install -e '.[demo]'` was run.

# %%
import json
import pathlib
import sys
import tempfile

import numpy as np
from IPython.display import Audio, Image, display

here = pathlib.Path.cwd()
root = next(place for place in (here, *here.parents) if (place / "experiments").is_dir())
sys.path.insert(0, str(root))

import interaction
from interaction.background.agent import CALL, DONE, RESULT, TEXT, Event
from interaction.background.reasoner_agent import ReasonerAgent, load_reasoner
from interaction.background.tool import tool
from interaction.background.toolbox import Toolbox
from interaction.data.audio_file import read_audio
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
# Both are small transformers of the same code. The tools are typed Python functions; the recording
# comes with a table for `lookup`, and says how long each tool takes, so that there is something to
# wait for.

# %%
live = interaction.load("demo")
reasoner = load_reasoner("demo_background")
user = read_audio(root / "experiments/assets/user.flac")
meta = json.loads((root / "experiments/assets/user.json").read_text())
toolbox = Toolbox(session_tools(meta))
for schema in toolbox.schemas():
    function = schema["function"]
    print(f"{function['name']}: {function['description']}")
    print(f"   {json.dumps(function['parameters']['properties'])}")

# %% [markdown]
# ## A minute of talk
#
# A `Conversation` takes 200 ms of the user at a time and never waits for anybody: the agent works
# on a thread of its own. `talk` plays the recording to one in real time, and writes a record.

# %%
folder = pathlib.Path(tempfile.mkdtemp())
record = folder / "talk.session"
done = talk(live, ReasonerAgent(reasoner, toolbox), user, seed=0, record=record, tail_s=3.0)
print(
    f"{len(done.text)} micro-turns, {done.missed} late; the model's step took "
    f"{1e3 * np.median(done.step_s):.1f} ms (median), all else {1e3 * np.median(done.own_s):.2f} ms"
)

# %%
padded = np.zeros(len(done.audio) + 3_200)
padded[: len(user)] = user
display(Audio(np.stack([padded, np.append(np.zeros(3_200), done.audio)]), rate=16_000))

# %% [markdown]
# ## What was handed over
#
# Words between `<delegate>` and `</delegate>` are not spoken. `<update>` corrects the request that
# runs, `<cancel>` drops it.

# %%
names = {interaction.Special.DELEGATE: "<delegate>", interaction.Special.UPDATE: "<update>"}
for span in read_spans(done.text):
    print(f"{0.2 * (span.first + 1):6.2f} s  {names[span.opening]} {live.decode(span.words)}")
for turn in np.flatnonzero(done.text == interaction.Special.CANCEL):
    print(f"{0.2 * (turn + 1):6.2f} s  <cancel>")

# %% [markdown]
# ## What came of it
#
# The record has every micro-turn: what came in, what arrived from the background model, what went
# out, and notes of what happened.

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
# The third lane is the background model: light while it thinks, dark while a tool works, pale while
# a result waits until nobody speaks.

# %%
picture = folder / "timeline.png"
timeline.save(conversation, picture, "The demo pair")
display(Image(picture))

# %% [markdown]
# ## Once more, bit for bit
#
# Results arrived when they did, on the clock of that minute. A replay takes them from the record,
# asks nobody, and gets the same bits.

# %%
again = replay.replay(record, live)
print(f"{again.turns} micro-turns, {'the same bits' if again.equal else again.difference}")
assert again.equal and again.complete

# %% [markdown]
# ## An agent of your own
#
# Whatever has these six methods can stand behind the model. This one never thinks: whatever is
# asked, it has a tool of ours count the letters. It needs no real time, so the clock runs free.


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


class LetterCounter:
    def __init__(self, toolbox):
        self.toolbox, self.calls, self.happened = toolbox, {}, []

    def observe(self, turn):
        pass  # it could look at turn.audio, turn.heard, turn.text

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

    def close(self):
        pass


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
