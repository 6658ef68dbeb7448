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
# Load the demo model, let it hear a recorded user, listen to both, and look inside: what was said
# and when, what the text stream was about to do, which experts worked, and how far back attention
# reaches. Nobody stands behind it here, so what it hands over gets no result; `delegation.ipynb`
# has that. Everything runs on a CPU in a few minutes.
#
# Run it from a clone of the repository in which `pip install -e '.[demo]'` was run.

# %%
import functools
import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Audio, Image, display

here = pathlib.Path.cwd()
root = next(place for place in (here, *here.parents) if (place / "experiments").is_dir())
sys.path.insert(0, str(root))

import interaction
from interaction.data.audio_file import read_audio
from interaction.evaluation import parse_events, timeline
from interaction.evaluation.rollout import Rollout
from interaction.evaluation.transcript import converse, transcript
from interaction.model import streaming
from interaction.model.backbone import LONG, SLIDING, run_layers
from interaction.model.positions import embed
from interaction.model.turn_inputs import TurnInputs
from interaction.ops import dmel, mel
from interaction.ops.attention import attention_batch, window_mask

# %%
model = interaction.load("demo")
config = model.config
user = read_audio(root / "experiments/assets/user.flac")
samples = config.audio.turn_samples
turns = len(user) // samples
user = user[: turns * samples]
count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
print(f"{count / 1e6:.2f}M parameters, {turns} micro-turns, {len(user) / 16_000:.1f} s of a user")

# %% [markdown]
# ## Stream it
#
# `step` is all there is. Beside it we call `listen`, the half of the step that hears, to see the
# text logits and the router's choices; it leaves the state alone.

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
# The user on the left, the model on the right. Reply *n* starts to play when micro-turn *n* has
# been heard, at 0.2 (*n* + 1) s.

# %%
both = np.stack([np.append(user, np.zeros(samples)), np.append(np.zeros(samples), audio)])
display(Audio(both, rate=config.audio.sample_rate))

# %%
events = parse_events((root / "experiments/assets/user.json").read_text())
conversation = converse(
    user, Rollout(audio, text, user_transcript, np.array(times)), model.decode, events
)
print(transcript(conversation.rows))

# %%
picture = pathlib.Path(tempfile.mkdtemp()) / "timeline.png"
timeline.save(conversation, picture, "A recorded user and the demo model")
display(Image(picture))

# %% [markdown]
# ## The text stream is the only switch
#
# Each micro-turn yields one token: `<silent>`, `<hold>` (go on speaking), or a piece of a word.
# Here is how likely each kind was.

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
# How often each expert of each layer was chosen, while the user's words arrive, while the model
# speaks, and otherwise. An even load is 1 / experts.

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
# Most layers see a sliding window, one in each group a longer one. We run the whole session at once
# through the same layers, as training does, and keep the attention weights of its text positions.
# (That both ways give the same tokens is one of the model's contracts.)

# %%
tail = mel.init_tail(1, config.audio.user_hop, config.audio)
_, frames = mel.log_mel_stream(tail, jnp.asarray(user[None]), config.audio.user_hop, config.audio)
user_bins = dmel.dmel_bins(frames, config.audio).reshape(1, turns, -1, config.audio.mels)
stride = config.audio.user_hop // config.audio.speech_hop
before = np.concatenate([np.full_like(spoken_mel[0], config.speech.mel_floor), *spoken_mel[:-1]])
inputs = TurnInputs(
    user=user_bins,
    self_audio=dmel.dmel_bins(before[None, :, stride - 1 :: stride], config.audio),
    self_audio_gain=jnp.ones((1, turns)),
    user_transcript=jnp.concatenate(
        [jnp.full_like(user_transcript[:1], special.NONE), user_transcript[:-1]]
    )[None],
    last=jnp.append(special.SILENT, text[:-1])[None],
)
positions = embed(config, model.params["backbone"], inputs, jnp.zeros(1, jnp.uint32))
per_turn = positions.x.shape[1] // turns
order = jnp.arange(positions.x.shape[1], dtype=jnp.uint32)[None]
cfg = config.transformer
masks = {
    SLIDING: window_mask(order, order, positions.valid, cfg.window),
    LONG: window_mask(order, order, positions.valid, cfg.long_window),
}


def attend(kind, layer, kept, q, k, v, sink):
    """Attention that keeps the mean weights of text positions on micro-turns."""
    mixed = attention_batch(q, k, v, masks[kind], sink)
    grouped = q[0, per_turn - 1 :: per_turn].reshape(turns, cfg.kv_heads, -1, cfg.head_dim)
    scores = jnp.einsum("tgik,sgk->gits", grouped, k[0]) * cfg.head_dim**-0.5
    scores = jnp.where(masks[kind][0, per_turn - 1 :: per_turn], scores, -jnp.inf)
    top = sink.reshape(cfg.kv_heads, -1, 1)
    total = jnp.logaddexp(jax.nn.logsumexp(scores, axis=-1), top)
    weights = jnp.exp(scores - total[..., None]).mean((0, 1))
    weights = weights.reshape(turns, turns, per_turn).sum(-1)
    return mixed, {**kept, kind: kept[kind].at[layer].set(weights)}


groups = cfg.layers // cfg.long_every
kept = {
    SLIDING: jnp.zeros((cfg.layers - groups, turns, turns)),
    LONG: jnp.zeros((groups, turns, turns)),
}
run = jax.jit(functools.partial(run_layers, cfg, attend=attend))
_, kept, _ = run(model.params["backbone"], model.params["router_bias"], positions, carry=kept)

# %%
figure, panels = plt.subplots(1, 2, figsize=(14, 6), sharey=True)
reach = {SLIDING: cfg.window, LONG: cfg.long_window}
for panel, (kind, weights) in zip(panels, kept.items(), strict=True):
    seen = np.asarray(weights.mean(0))
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
