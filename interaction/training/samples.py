"""Samples of a run: free-running text of the backbone, and free-running mel of the flow head.

Teacher-forced accuracies become good long before the model can hold a conversation; free-running
ones show that. They are measured on the last training batch; `experiments.evaluate` measures on
held-out sessions.
"""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import ModelConfig
from interaction.data.tokenizer import load_tokenizer
from interaction.distributed.sharding import cast_params
from interaction.model import session_state, streaming
from interaction.model.turn_inputs import silent_mel
from interaction.training import features
from interaction.training.objective import Batch
from interaction.types import Array, Chunk, Params, Special

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = {Special.SILENT: "", Special.HOLD: "–", Special.NONE: ""}


@functools.partial(jax.jit, static_argnums=0)
def free_running_text(config: ModelConfig, backbone: Params, bias: Array, batch: Batch) -> Array:
    """Greedy text-out tokens of the backbone, from its own tokens and with silent self audio.

    Args:
      config: Model configuration.
      backbone: Parameters of the backbone.
      bias: float32[l, e], selection bias of the routers.
      batch: See `features`.

    Returns:
      int32[b, n], the likeliest token of each micro-turn.
    """
    b, n = batch["text"].shape
    params = {"backbone": backbone, "router_bias": bias}
    pcm = features.pcm(batch["user"]).reshape(b, n, -1)
    text = features.text_slots(batch, config)

    def turn(
        state: session_state.StreamState, now: tuple
    ) -> tuple[session_state.StreamState, Array]:
        state, out = streaming.listen(config, params, state, Chunk(*now))
        token = jnp.argmax(out.text_logits[:, 0], axis=-1).astype(jnp.int32)
        return state._replace(text=token), token

    start = session_state.init_state(config, session_state.session_keys(jnp.zeros(b, jnp.int32)))
    turns = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), (pcm, text))
    return jax.lax.scan(turn, start, turns)[1].T


def conversation_samples(
    config: ModelConfig, params: Params, bias: Array, batch: Batch
) -> dict[str, "float | np.ndarray | Figure"]:
    """Free-running accuracies over eight sessions, and the first session as audio and timeline.

    Args:
      config: Model configuration.
      params: Averaged parameters; `backbone` is read.
      bias: float32[l, e], selection bias of the routers.
      batch: See `features`.

    Returns:
      Two shares in [0, 1], the user's PCM float32[samples], and a figure.
    """
    batch = {name: leaf[:8] for name, leaf in batch.items()}
    said = np.asarray(free_running_text(config, params["backbone"], bias, batch))
    wanted = np.asarray(batch["text"])
    word = wanted >= Special.COUNT
    return {
        "free_running_word_accuracy": float((said == wanted)[word].sum() / max(word.sum(), 1)),
        "free_running_silence_accuracy": float(
            ((said == Special.SILENT) == (wanted == Special.SILENT)).mean()
        ),
        "user": np.asarray(features.pcm(batch["user"][0])),
        "timeline": timeline_figure(np.asarray(batch["user"][0]), wanted[0], said[0]),
    }


def timeline_figure(user: np.ndarray, wanted: np.ndarray, said: np.ndarray) -> "Figure":
    """Draws a session.

    Args:
      user: int16[samples], the user's PCM.
      wanted: int32[n], text-out tokens of the record.
      said: int32[n], text-out tokens of the model.

    Returns:
      The waveform above both rows of tokens.
    """
    from matplotlib.figure import Figure

    tokenizer = load_tokenizer()
    figure = Figure(figsize=(16, 3), layout="constrained")
    axes = figure.subplots()
    turns = len(wanted)
    axes.plot(np.linspace(0, turns, len(user))[::16], user[::16] / 32_768, lw=0.4, color="gray")
    for row, (name, tokens) in enumerate((("wanted", wanted), ("said", said))):
        for turn, token in enumerate(tokens.tolist()):
            text = _MARKS[token] if token in _MARKS else tokenizer.decode([token])
            axes.text(turn, -1.4 - row, text, fontsize=6, rotation=45, va="center")
        axes.text(-1, -1.4 - row, name, fontsize=7, ha="right")
    axes.set(xlim=(0, turns), ylim=(-3, 1), xlabel="micro-turn", yticks=[])
    return figure


@functools.partial(jax.jit, static_argnums=0)
def free_running_mel(config: ModelConfig, speech: Params, batch: Batch, key: Array) -> Array:
    """Mel that the flow head makes from the text of the record and its own previous frames.

    Args:
      config: Model configuration.
      speech: Parameters of the speech head.
      batch: See `features`.
      key: PRNG key [].

    Returns:
      float32[b, n, speech_frames, m], log10 magnitude.
    """
    b, n = batch["text"].shape
    hidden = jnp.zeros((b, config.transformer.dim))
    silence = silent_mel(config, b)
    head = cast_params({"speech": speech}, config.transformer.dtype)["speech"]
    keys = jax.random.split(key, (n, b))

    def turn(before: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        tokens, keys = now
        frames = streaming.speech_frames(config, head, before, tokens, hidden, keys)
        frames = session_state.select_rows(tokens[:, -1] == Special.SILENT, silence, frames)
        return frames, frames

    windows = features.token_windows(batch["text"], config.speech.token_window)
    frames = jax.lax.scan(turn, silence, (jnp.moveaxis(windows, 1, 0), keys))[1]
    return jnp.moveaxis(frames, 0, 1)


def speech_samples(
    config: ModelConfig, params: Params, batch: Batch
) -> dict[str, "float | np.ndarray | Figure"]:
    """Distance of free-running mel from that of the record, over two sessions, and images of both.

    Args:
      config: Model configuration.
      params: Averaged parameters; `speech` is read.
      batch: `model` int16[b, samples] and `text` int32[b, n], see `features`.

    Returns:
      The mean absolute difference in log10 magnitude over micro-turns with speech, and a figure
      of the first session.
    """
    from matplotlib.figure import Figure

    batch = {name: leaf[:2] for name, leaf in batch.items()}
    made = free_running_mel(config, params["speech"], batch, jax.random.key(0))
    wanted = features.speech_mel(batch, config)
    speaking = np.asarray(batch["text"] != Special.SILENT)
    figure = Figure(figsize=(16, 5), layout="constrained")
    for axes, frames in zip(figure.subplots(2), (wanted, made), strict=True):
        picture = np.asarray(frames[0])[speaking[0]].reshape(-1, config.audio.mels).T
        axes.imshow(picture, origin="lower", aspect="auto")
    return {
        "free_running_mel_error": float(np.abs(made - wanted)[speaking].mean()),
        "mel": figure,
    }
