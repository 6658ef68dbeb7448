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
# # Inside a session
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/interaction-models/interaction/blob/main/colab/inspect_session.ipynb)
#
# Load the demo model, let it hear a recorded user, listen to both, and look inside: what was said
# and when, how likely each kind of text token was, which experts were chosen, and how far back
# attention reaches. There is no background model here, so a delegation gets no result;
# `delegation.ipynb` shows one with results. Everything runs on a CPU in a few minutes.
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
import functools
import pathlib
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Audio, Image, display

import interaction
from interaction.data.audio_file import read_audio
from interaction.data.bundled_user import ASSET
from interaction.evaluation import parse_events, timeline
from interaction.evaluation.rollout import Rollout
from interaction.evaluation.transcript import converse, transcript
from interaction.model import streaming
from interaction.model.first.first_layers import run_layers, separate_layers
from interaction.model.positions import embed
from interaction.model.turn_inputs import TurnOutputs, assemble, silent_outputs
from interaction.modules.first import block
from interaction.modules.first.layer_attention import SequenceKeys, attend
from interaction.modules.memory import LONG, SLIDING
from interaction.ops import mel
from interaction.ops.attention import window_mask

# %%
model = interaction.load("demo")
config = model.config
user = read_audio(ASSET)
samples = config.audio.turn_samples
turns = len(user) // samples
user = user[: turns * samples]
count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
print(f"{count / 1e6:.2f}M parameters, {turns} micro-turns, {len(user) / 16_000:.1f} s of a user")

# %% [markdown]
# ## Stream it
#
# `step` runs one micro-turn. Beside it we call `listen`, the part of the step that runs the front
# end and the transformer, to see the text logits and the router's choices. Its new state is thrown
# away.

# %%
listen = jax.jit(functools.partial(streaming.listen, config))
state = model.init_state(sessions=1, seed=0)
replies, logits, loads, spoken_mel, times = [], [], [], [], []
for pcm in np.split(user[None], turns, axis=1):
    chunk = interaction.Chunk(audio=pcm)
    _, outputs = listen(model.params, state, chunk)
    logits.append(np.asarray(outputs.text_logits[0, 0]))
    loads.append(np.asarray(outputs.aux.load))
    start = time.perf_counter()
    state, reply = model.step(state, chunk)
    replies.append(jax.tree.map(np.asarray, reply))
    times.append(time.perf_counter() - start)
    spoken_mel.append(np.asarray(state.mel))
text = np.concatenate([reply.text for reply in replies])
user_transcript = np.concatenate([reply.user_transcript for reply in replies])
audio = np.concatenate([reply.audio[0] for reply in replies])
print(f"a step takes {1e3 * np.median(times):.1f} ms (median) of its 200")

# %% [markdown]
# ## Listen
#
# The user is on the left channel, the model on the right. Reply *n* starts to play when micro-turn
# *n* has been heard, at 0.2 (*n* + 1) s.

# %%
both = np.stack([np.append(user, np.zeros(samples)), np.append(np.zeros(samples), audio)])
display(Audio(both, rate=config.audio.sample_rate))

# %%
events = parse_events(ASSET.with_suffix(".json").read_text())
conversation = converse(
    user, Rollout(audio, text, user_transcript, np.array(times)), model.decode, events
)
print(transcript(conversation.rows))

# %%
picture = pathlib.Path(tempfile.mkdtemp()) / "timeline.png"
timeline.save(conversation, picture, "A recorded user and the demo model")
display(Image(picture))

# %% [markdown]
# ## The text stream decides between speech and silence
#
# Each micro-turn yields one token: `<silent>`, `<hold>` (continue to speak), or a piece of a word.
# This plot shows the probability of each kind.

# %%
chance = np.asarray(jax.nn.softmax(np.array(logits)))
special = interaction.Special
kinds = {
    "silent": chance[:, special.SILENT],
    "hold": chance[:, special.HOLD],
    "word": chance[:, special.COUNT :].sum(axis=1),
}
clock = 0.2 * (np.arange(turns) + 1)
figure, axes = plt.subplots(figsize=(14, 2.6))
colors = ["#e8e6e1", "#9ec5e8", "#1f6fb2"]
axes.stackplot(clock, kinds.values(), labels=kinds, colors=colors, step="pre")
for number, word in enumerate(conversation.model_words):
    axes.text(word.time_s, 1.03 + 0.16 * (number % 4), word.text, fontsize=7)
axes.set(xlim=(0, clock[-1]), ylim=(0, 1), xlabel="s", ylabel="probability")
axes.legend(loc="lower left", ncols=3, fontsize=8)
plt.show()

# %% [markdown]
# ## Router loads
#
# How often each expert of each layer was chosen: while the model speaks, while the user's words
# arrive, and otherwise. An even load is 1 / experts.

# %%
load = np.array(loads)  # [turn, layer, expert]
speaking = text != special.SILENT
hearing = (user_transcript >= special.COUNT).any(axis=1) & ~speaking
phases = {"model speaks": speaking, "user's words arrive": hearing, "neither": ~speaking & ~hearing}
figure, panels = plt.subplots(1, len(phases), figsize=(14, 2.8), sharey=True)
for panel, (name, chosen) in zip(panels, phases.items(), strict=True):
    total = load[chosen].sum(axis=0)
    shown = panel.imshow(total / np.maximum(total.sum(axis=1, keepdims=True), 1), vmin=0, vmax=0.4)
    panel.set(title=f"{name} ({chosen.sum()} micro-turns)", xlabel="expert")
panels[0].set_ylabel("layer")
figure.colorbar(shown, ax=panels, label="share of choices")
plt.show()

# %% [markdown]
# ## How far back attention reaches
#
# Most layers see a sliding window. The last layer of each group sees a longer one. We run the whole
# session at once through the same layers and keep the attention weights of the text-out positions.
#
# `assemble` makes the inputs of all micro-turns, `embed` turns them into positions, and
# `run_layers` runs the layers. `separate_layers` unstacks the parameters, so that the layers run
# in a Python loop. The block's attention function is replaced by one that also keeps its weights.

# %%
tail = mel.init_tail(1, config.audio.user)
_, frames = mel.log_mel_stream(tail, jnp.asarray(user[None]), config.audio.user, config.audio)
inputs = assemble(
    config,
    frames.reshape(1, turns, config.audio.user_frames, config.audio.mels),
    silent_outputs(config, 1),
    TurnOutputs(user_transcript[None], text[None], np.stack(spoken_mel, axis=1)),
    self_audio_gain=jnp.full((1, turns), float(config.self_audio)),
)
positions = embed(config, model.params["backbone"], inputs, jnp.zeros(1, jnp.uint32))
per_turn = positions.x.shape[1] // turns
cfg = config.transformer


@jax.jit
def attention_weights(params, positions):
    """Attention weights of text-out positions on micro-turns, [layer, n, n] for each kind."""
    order = jnp.cumsum(positions.valid, axis=1, dtype=jnp.uint32) - jnp.uint32(1)
    keys = dict.fromkeys((SLIDING, LONG), SequenceKeys(order, positions.valid))
    kept = {SLIDING: [], LONG: []}

    def attend_and_keep(q, k, v, sink, context):
        mask = window_mask(order, order, positions.valid, context.window)
        asking = q[0, per_turn - 1 :: per_turn].reshape(turns, cfg.kv_heads, -1, cfg.head_dim)
        scores = jnp.einsum("tgik,sgk->gits", asking, k[0]) * cfg.head_dim**-0.5
        scores = jnp.where(mask[0, per_turn - 1 :: per_turn], scores, -jnp.inf)
        total = jnp.logaddexp(jax.nn.logsumexp(scores, axis=-1), sink.reshape(cfg.kv_heads, -1, 1))
        weights = jnp.exp(scores - total[..., None]).mean((0, 1))
        kind = SLIDING if context.window == cfg.window else LONG
        kept[kind].append(weights.reshape(turns, turns, per_turn).sum(-1))
        return attend(q, k, v, sink, context)

    # Without inner jits each layer is traced by itself, so each one's weights can be kept.
    with jax.disable_jit(), mock.patch.object(block, "attend", attend_and_keep):
        backbone = separate_layers(params["backbone"])
        run_layers(cfg, backbone, params["router_bias"], positions, keys, {})
    return {kind: jnp.stack(weights) for kind, weights in kept.items()}


kept = attention_weights(model.params, positions)

# %%
figure, panels = plt.subplots(1, 2, figsize=(14, 6), sharey=True)
reach = {SLIDING: cfg.window, LONG: cfg.long_window}
for panel, kind in zip(panels, reach, strict=True):
    seen = np.asarray(kept[kind].mean(0))
    shown = panel.imshow(
        np.log10(np.maximum(seen, 1e-4)), extent=(0, clock[-1], clock[-1], 0), cmap="magma"
    )
    panel.set(
        title=f"{kind} layers: {reach[kind]} keys, {0.2 * reach[kind] / per_turn:.1f} s",
        xlabel="looking at (s)",
    )
panels[0].set_ylabel("at (s)")
figure.colorbar(shown, ax=panels, label="log10 of attention weight")
plt.show()
