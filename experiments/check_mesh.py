r"""Compares every mesh of eight devices with one device, on the CPU.

python -m experiments.check_mesh --json=out/check_mesh.json

Compares losses and gradients of three training steps and the replies of 20 streaming steps of a
small float32 model, for all splits of eight devices over the axes of a mesh. It takes minutes: two
programs are compiled for every mesh. As with large batches, a device has room for an even share of
the experts' rows and takes the rest in further chunks of the all-to-all.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from interaction import presets
from interaction.config import ModelConfig
from interaction.distributed import experts, sharding
from interaction.distributed.collectives import AXES
from interaction.model import session_state, streaming
from interaction.model.parameters import init_model_params
from interaction.training import state as train_state
from interaction.training.conversation_loss import joint_objective
from interaction.training.train_config import TrainConfig
from interaction.types import Chunk, Params, Special

DEVICES = 8
SESSIONS_HELD, TURNS, TRAIN_STEPS, STREAM_STEPS = 8, 8, 3, 20
# Largest allowed differences: relative, relative, of PCM in [-1, 1], number of tokens.
TARGETS = {"loss": 1e-5, "gradients": 1e-4, "replies": 1e-5, "tokens": 0.0}


def small_model() -> ModelConfig:
    """`tiny` with a dense layer, and eight heads and experts, which every axis divides."""
    model = presets.tiny()
    heads = {"heads": 8, "kv_heads": 8, "sliding_kv_heads": 8}
    sizes = {"layers": 4, "dense_layers": 1, "dense_ffn": 32, "experts": 8, **heads}
    transformer = dataclasses.replace(model.decoder, **sizes)
    return dataclasses.replace(model, transformer=transformer)


def meshes() -> Iterator[dict[str, int]]:
    """All splits of eight devices over the axes of a mesh."""
    for sizes in itertools.product((1, 2, 4, 8), repeat=len(AXES)):
        if math.prod(sizes) == DEVICES:
            yield {axis: size for axis, size in zip(AXES, sizes, strict=True) if size > 1}


def name_of(mesh: dict[str, int]) -> str:
    """A mesh as text: "fsdp 2, expert 4"."""
    return ", ".join(f"{axis} {size}" for axis, size in mesh.items()) or "one device"


def make_batch(model: ModelConfig) -> dict[str, np.ndarray]:
    """A batch with noise on both sides and random words.

    Returns:
      user and model int16[b, samples] (PCM), text int32[b, n], user_transcript
      int32[b, n, audio_positions].
    """
    rng = np.random.default_rng(0)
    samples = (SESSIONS_HELD, TURNS * model.audio.turn_samples)
    shape = (SESSIONS_HELD, TURNS)
    words = rng.integers(Special.COUNT, model.vocab, (*shape, 1 + model.audio_positions))
    speaks = rng.random(shape) < 0.5
    user_transcript = np.where(rng.random(words[..., 1:].shape) < 0.3, words[..., 1:], Special.NONE)
    return {
        "user": rng.integers(-9_000, 9_000, samples).astype(np.int16),
        "model": rng.integers(-9_000, 9_000, samples).astype(np.int16),
        "text": np.where(speaks, words[..., 0], Special.SILENT).astype(np.int32),
        "user_transcript": user_transcript.astype(np.int32),
    }


def random_params(model: ModelConfig) -> Params:
    """Parameters of a whole model without zero leaves."""
    abstract = jax.eval_shape(functools.partial(init_model_params, model), jax.random.key(0))
    rng = np.random.default_rng(1)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if "norm" in jax.tree_util.keystr(path):
            return 1 + 0.1 * noise
        return noise * (leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.1)

    return jax.tree_util.tree_map_with_path(draw, abstract)


class Trained(NamedTuple):
    """Results of training steps."""

    losses: list[float]
    gradients: list[Any]  # trees of float32 arrays


def keep_gradients(rate: float) -> optax.GradientTransformation:
    """Gradient descent whose state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (
            jax.tree.map(lambda g: -rate * g, updates),
            updates,
        ),
    )


def train_on(mesh: Mesh, model: ModelConfig, params: Params, accumulate: int = 1) -> Trained:
    """Runs training steps on a mesh."""
    objective, optimizer = joint_objective(model), keep_gradients(1e-3)
    config = TrainConfig("check", "", "", model, batch=SESSIONS_HELD, accumulate=accumulate)
    train_step = train_state.make_train_step(objective, optimizer, config, mesh)
    trained = {name: params[name] for name in ("backbone", "speech")}
    buffers = {"router_bias": params["router_bias"]}
    zeros = jax.tree.map(np.zeros_like, trained)
    state = train_state.TrainState(jnp.int32(0), trained, buffers, zeros, trained)
    state = jax.device_put(state, sharding.shardings(mesh, state))
    batch = jax.device_put(make_batch(model), sharding.session_sharding(mesh))
    key = jax.device_put(jax.random.key(2), sharding.replicated(mesh))
    losses, gradients = [], []
    # Read when the step is compiled.
    with mock.patch.object(experts, "chunk_rows_for", lambda pairs, *_: pairs):
        for _ in range(TRAIN_STEPS):
            state, metrics = train_step(state, batch, key)
            losses.append(float(metrics["loss"]))
            gradients.append(jax.device_get(state.opt_state))
    return Trained(losses, gradients)


def prepare_stream(
    mesh: Mesh, model: ModelConfig, params: Params, sessions: int
) -> tuple[Callable, Params, session_state.StreamState]:
    """The step on a mesh, with parameters and new sessions on its devices."""
    step = streaming.make_step(model, mesh, sharding.param_specs(params))
    placed = jax.device_put(params, sharding.shardings(mesh, params))
    state = session_state.init_state(model, session_state.session_keys(jnp.arange(sessions)))
    specs = jax.tree.map(lambda spec: NamedSharding(mesh, spec), session_state.state_specs(model))
    return step, placed, jax.device_put(state, specs)


def stream_on(mesh: Mesh, model: ModelConfig, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """Runs streaming steps on a mesh.

    Args:
      mesh: Devices.
      model: Model configuration.
      params: Parameters of the model.

    Returns:
      PCM float32[n, b, turn_samples], and tokens int32[n, b, 1 + audio_positions]: text out, then
      the user transcript.
    """
    step, placed, state = prepare_stream(mesh, model, params, SESSIONS_HELD)
    rng = np.random.default_rng(3)
    pcm, tokens = [], []
    for _ in range(STREAM_STEPS):
        audio = rng.normal(0, 0.1, (SESSIONS_HELD, model.audio.turn_samples))
        state, reply = step(placed, state, Chunk(jnp.asarray(audio, jnp.float32)))
        pcm.append(np.asarray(reply.audio))
        tokens.append(np.concatenate([reply.text[:, None], reply.user_transcript], axis=1))
    return np.stack(pcm), np.stack(tokens)


def largest(got: Any, wanted: Any) -> float:  # noqa: ANN401
    """Largest difference in any leaf, relative to the largest magnitude of the wanted leaf."""
    shares = [
        np.max(np.abs(a - b)) / max(np.max(np.abs(b)), np.finfo(np.float32).tiny)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
        if np.any(a != b)
    ]
    return float(np.max(shares, initial=0.0))


class Reference:
    """Results of one device, to compare those of a mesh with."""

    def __init__(self, model: ModelConfig) -> None:
        """Runs one device."""
        self.model = model
        self.params = random_params(self.model)
        alone = sharding.make_mesh({})
        self.trained = train_on(alone, self.model, self.params)
        self.streamed = stream_on(alone, self.model, self.params)

    def differences(self, axes: dict[str, int], accumulate: int = 1) -> dict[str, float]:
        """Runs a mesh; returns its differences, named as in TARGETS."""
        mesh = sharding.make_mesh(axes)
        trained = train_on(mesh, self.model, self.params, accumulate)
        pcm, tokens = stream_on(mesh, self.model, self.params)
        losses = zip(trained.losses, self.trained.losses, strict=True)
        return {
            "loss": float(np.max([abs(a - b) / abs(b) for a, b in losses])),
            "gradients": largest(trained.gradients, self.trained.gradients),
            "replies": float(np.max(np.abs(pcm - self.streamed[0]))),
            "tokens": float(np.sum(tokens != self.streamed[1])),
        }


def main(argv: list[str]) -> None:
    """Prints the differences of each mesh; exits with 1 if one is larger than its target."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    reference = Reference(small_model())
    rows = {}
    for axes in tqdm(list(meshes()), unit="mesh"):
        found = rows[name_of(axes)] = reference.differences(axes)
        columns = "  ".join(f"{name} {value:.1e}" for name, value in found.items())
        tqdm.write(f"{name_of(axes):<44}{columns}")
        if flags.FLAGS.json:
            path = pathlib.Path(flags.FLAGS.json)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows, indent=2) + "\n")
    bad = [
        f"{mesh}: {name}: measured {found[name]:.1e}, target {most:.1e}"
        for mesh, found in rows.items()
        for name, most in TARGETS.items()
        if not found[name] <= most
    ]
    print(f"{len(rows)} meshes equal one device within {TARGETS}" if not bad else "\n".join(bad))
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    flags.DEFINE_string("json", None, "File for the differences.")
    app.run(main)
