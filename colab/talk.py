# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Talk to it
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/interaction-models/interaction/blob/main/colab/talk.ipynb)
#
# In Colab this notebook takes the microphone of your browser, and the demo pair answers while you
# talk: there are no turns, so you may interrupt it. Anywhere else, part of the bundled recording
# takes your place. Then we listen to both sides and read who said what, and when. Everything runs
# on a CPU.
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
import base64
import json
import pathlib
import tempfile

import numpy as np
from IPython.display import Audio, Image, display

import interaction
from interaction.background.demo_tools import Row, demo_tools
from interaction.background.reasoner_agent import ReasonerAgent, load_reasoner
from interaction.background.toolbox import Toolbox
from interaction.data.audio_file import read_audio
from interaction.data.bundled_user import ASSET
from interaction.engine import session_record
from interaction.evaluation import timeline
from interaction.evaluation.delegation_history import read_delegations
from interaction.evaluation.rollout import Rollout
from interaction.evaluation.transcript import converse, transcript

try:
    from google.colab import output
except ImportError:
    output = None
    print("This is not Colab: the bundled recording takes the place of the microphone.")

# %% [markdown]
# ## The pair
#
# The live model hears and speaks. What takes arithmetic, a clock, a timer, a table or a conversion
# it delegates to the background model, which calls tools.

# %%
live = interaction.load("demo")
prices = json.loads(ASSET.with_suffix(".json").read_text())["prices"]
table = [Row(item, price, place) for item, (price, place) in prices.items()]
agent = ReasonerAgent(load_reasoner("demo_background"), Toolbox(demo_tools(table)))
samples, rate = live.config.audio.turn_samples, live.config.audio.sample_rate
print(f"{len(table)} things have a price and a place:", ", ".join(list(prices)[:12]), "...")

# %% [markdown]
# ## The microphone of the browser
#
# The page cuts the microphone's sound into micro-turns of 200 ms. The notebook asks for all that
# have come since it asked last, and hands over the replies to them, which the page plays one after
# another.

# %%
PAGE = """
window.talk = (() => {
  const RATE = 16000, LEAD = 0.1;  // Hz; s of sound in hand after a gap
  const capture = `registerProcessor("capture", class extends AudioWorkletProcessor {
    turn = new Int16Array(3200);
    filled = 0;
    process([[pcm]]) {
      for (const x of pcm ?? []) {
        this.turn[this.filled++] = Math.max(-32768, Math.min(32767, 32768 * x));
        if (this.filled === this.turn.length) {
          this.port.postMessage(this.turn.slice());
          this.filled = 0;
        }
      }
      return true;
    }
  });`;
  let button, context, stream, stopped = false, heard = [], wake = () => {}, playsAt = 0;

  function toBase64(turns) {
    let text = "";
    for (const turn of turns) text += String.fromCharCode(...new Uint8Array(turn.buffer));
    return btoa(text);
  }

  function play(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const pcm = Float32Array.from(new Int16Array(bytes.buffer), (x) => x / 32768);
    const buffer = context.createBuffer(1, pcm.length, RATE);
    buffer.copyToChannel(pcm, 0);
    const player = new AudioBufferSourceNode(context, { buffer });
    player.connect(context.destination);
    if (playsAt < context.currentTime) playsAt = context.currentTime + LEAD;
    player.start(playsAt);
    playsAt += buffer.duration;
  }

  return {
    async start() {  // waits for the button, and for leave to use the microphone
      button = document.createElement("button");
      button.textContent = "Talk";
      document.body.append(button);
      await new Promise((pressed) => (button.onclick = pressed));
      stream = await navigator.mediaDevices.getUserMedia({
        audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
      });
      context = new AudioContext({ sampleRate: RATE });
      const code = new Blob([capture], { type: "text/javascript" });
      await context.audioWorklet.addModule(URL.createObjectURL(code));
      const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
      node.port.onmessage = ({ data }) => { heard.push(data); wake(); };
      context.createMediaStreamSource(stream).connect(node);
      await context.resume();
      button.textContent = "Stop";
      button.onclick = () => { stopped = true; wake(); };
    },
    async exchange(reply) {  // plays a reply; returns what was heard since, null after Stop
      if (reply) play(reply);
      while (!heard.length && !stopped) await new Promise((woken) => (wake = woken));
      return stopped ? null : toBase64(heard.splice(0));
    },
    stop() {
      button.remove();
      stream.getTracks().forEach((track) => track.stop());
      setTimeout(() => context.close(), 1000 * Math.max(0, playsAt - context.currentTime));
    },
  };
})();
null
"""


def talk_in_browser(step, seconds):
    """Talks until Stop is pressed or the time is over.

    `step` takes PCM float32[3200] of the user and returns that of the model. Returns how many
    micro-turns each exchange with the page took: more than one where the page was slow to answer.
    """
    output.eval_js(PAGE)
    output.eval_js("talk.start()")
    reply, counts = "", []
    while sum(counts) < seconds * rate / samples:
        heard = output.eval_js(f"talk.exchange('{reply}')")
        if heard is None:
            break
        pcm = np.frombuffer(base64.b64decode(heard), "<i2") / np.float32(32_768)
        said = [step(turn) for turn in pcm.reshape(-1, samples)] or [pcm]
        reply = base64.b64encode((32_767 * np.concatenate(said)).astype("<i2")).decode()
        counts.append(len(pcm) // samples)
    output.eval_js("talk.stop()")
    return counts


# %% [markdown]
# ## Talk
#
# In Colab press **Talk** below, and **Stop** when you have said enough. Wear headphones, or the
# model may hear itself. It was trained on synthetic voices, so it often misunderstands a natural
# one. These are sentences that it knows:
#
# - *what is the capital of japan*, *count to ten*, *tell me a story about a dragon*,
# - *repeat after me purple tiger window*, *what is two plus three*, *okay stop*,
# - *ring a bell in eight seconds*, *what is seven times eight*, *never mind*,
# - *what is the price of the butter*, and at once after it *no wait the pepper*.

# %%
SECONDS = 60 if output else 16  # of talk

record = pathlib.Path(tempfile.mkdtemp()) / "talk.session"
step_s = []
with interaction.Conversation(live, agent, seed=0, record=record) as conversation:

    def take(reply):
        step_s.append(conversation.stats.step_s)
        return reply.audio

    if output:
        counts = talk_in_browser(lambda pcm: take(conversation.step(pcm)), SECONDS)
        print(f"at most {max(counts, default=0)} micro-turns came at once")
    else:
        user = read_audio(ASSET)[: SECONDS * rate]
        conversation.play(iter(user.reshape(-1, samples)), take)
print(f"{len(step_s)} micro-turns of 200 ms; median step {1e3 * np.median(step_s):.1f} ms")

# %% [markdown]
# ## Listen
#
# The record of the session holds all that either side said. You are on the left channel, the model
# on the right. Reply *n* starts to play when micro-turn *n* has been heard, at 0.2 (*n* + 1) s.

# %%
entries = session_record.read(record).entries
user, said = (
    np.concatenate([getattr(one, side) for one in entries]) for side in ("audio", "speech")
)
both = np.stack([np.append(user, np.zeros(samples)), np.append(np.zeros(samples), said)])
display(Audio(both, rate=rate, normalize=False))

# %% [markdown]
# ## Who said what, and when
#
# Each micro-turn has two tokens of what the model understood and one of what it says. Words between
# `<delegate>` and `</delegate>` go to the background model and are not spoken; `<update>` corrects
# the newest request, `<cancel>` drops it.

# %%
special = interaction.Special
control = {
    special.DELEGATE: "<delegate>",
    special.UPDATE: "<update>",
    special.END_DELEGATE: "</delegate>",
    special.CANCEL: "<cancel>",
}
for entry in entries:
    understood = live.decode(entry.user_transcript)
    text = control.get(entry.text) or live.decode([entry.text])
    if understood or text:
        print(f"{0.2 * (entry.turn + 1):6.1f} s  {understood:<16}{text}")

# %%
text, user_transcript = (
    np.array([getattr(one, name) for one in entries]) for name in ("text", "user_transcript")
)
replies = Rollout(said, text, user_transcript, np.array(step_s))
talked = converse(user, replies, live.decode, delegations=read_delegations(entries))
print(transcript(talked.rows))

# %%
picture = record.with_suffix(".png")
timeline.save(talked, picture, "You and the demo pair" if output else "A recorded user")
display(Image(picture))
