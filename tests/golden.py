r"""Text goldens whose diffs are read: parameters of every preset, collectives of `small`.

python -m tests.golden            # rewrites tests/golden/*.txt
"""

import collections
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec

from interaction.config import ModelConfig
from interaction.distributed import sharding
from interaction.distributed.collectives import AXES
from interaction.model import session_state, streaming
from interaction.model.parameters import init_model_params
from interaction.presets import PRESETS
from interaction.pretrained.tree_paths import flatten
from interaction.training import state as train_state
from interaction.training.conversation_loss import joint_objective
from interaction.training.optimizer import make_optimizer
from interaction.training.train_config import TrainConfig
from interaction.types import Chunk, Params

FOLDER = pathlib.Path(__file__).parent / "golden"
# Programs are traced for TPUs without a TPU.
_TPU = AbstractDevice(device_kind="TPU v5p", platform="tpu", num_cores=2)
STEP_MESH, TRAIN_MESH = {"expert": 16, "tensor": 2}, {"fsdp": 16, "expert": 8, "sequence": 2}
TURNS = 100  # micro-turns of a training session: so many that the all-to-all is chunked
_MOVES = ("all_gather", "all_to_all", "ragged_all_to_all", "reduce_scatter", "psum", "pmax")


def abstract_params(model: ModelConfig) -> Params:
    """Shapes and dtypes of a fresh model."""
    return jax.eval_shape(functools.partial(init_model_params, model), jax.random.key(0))


def parameters(preset: str) -> str:
    """Path, dtype in serving, shape and mesh axes of each parameter, and counts by part."""
    config = PRESETS[preset]()
    cast = functools.partial(sharding.cast_params, dtype=config.transformer.dtype)
    params = jax.eval_shape(cast, abstract_params(config))
    leaves, specs = flatten(params), sharding.param_specs(params)
    flat = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    axes = {name: _axes(spec) for name, spec in zip(leaves, flat, strict=True)}
    lines = [
        f"{name} {leaf.dtype}{list(leaf.shape)} {axes[name]}".rstrip()
        for name, leaf in sorted(leaves.items())
    ]
    parts: dict[str, int] = {}
    for name, leaf in leaves.items():
        part = name.partition("/")[0]
        parts[part] = parts.get(part, 0) + leaf.size
    lines += [f"# {part}: {count:,}" for part, count in sorted(parts.items())]
    return "\n".join([*lines, f"# total: {sum(parts.values()):,}"]) + "\n"


def _axes(spec: PartitionSpec) -> str:
    named = ["+".join((axes,) if isinstance(axes, str) else axes or ("-",)) for axes in spec]
    return f"({', '.join(named)})" if set(named) - {"-"} else ""


def tpu_mesh(axes: dict[str, int]) -> AbstractMesh:
    """A mesh of abstract TPUs."""
    return AbstractMesh(sharding.mesh_shape(axes), AXES, abstract_device=_TPU)


def trace_step(model: ModelConfig, axes: dict[str, int], sessions: int) -> Any:  # noqa: ANN401
    """The jaxpr of a streaming step with audio alone."""
    cast = functools.partial(sharding.cast_params, dtype=model.transformer.dtype)
    params = jax.eval_shape(cast, abstract_params(model))
    keys = jax.ShapeDtypeStruct((sessions, 2), jnp.uint32)
    state = jax.eval_shape(functools.partial(session_state.init_state, model), keys)
    audio = jax.ShapeDtypeStruct((sessions, model.audio.turn_samples), jnp.float32)
    step = streaming.make_step(model, tpu_mesh(axes), sharding.param_specs(params))
    return jax.make_jaxpr(step)(params, state, Chunk(audio))


def trace_train(model: ModelConfig, axes: dict[str, int], batch: int) -> Any:  # noqa: ANN401
    """The jaxpr of a training step of backbone and flow head."""
    config = TrainConfig("golden", "", "", model, batch=batch, mesh=axes)
    objective, optimizer, mesh = joint_objective(model), make_optimizer(config), tpu_mesh(axes)
    step = train_state.make_train_step(objective, optimizer, config, mesh)
    state = train_state.abstract_state(objective, optimizer, mesh)
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    pcm = jax.ShapeDtypeStruct((batch, TURNS * model.audio.turn_samples), np.int16)
    text = jax.ShapeDtypeStruct((batch, TURNS), np.int32)
    user_transcript = jax.ShapeDtypeStruct((batch, TURNS, model.audio_positions), np.int32)
    sessions = {"user": pcm, "model": pcm, "text": text, "user_transcript": user_transcript}
    return jax.make_jaxpr(step)(state, sessions, jax.eval_shape(lambda: jax.random.key(0)))


def moves(jaxpr: Any) -> collections.Counter:  # noqa: ANN401
    """Collectives and kernels of a jaxpr: (enclosing loops, name, axes, operand) -> number."""
    found: collections.Counter = collections.Counter()

    def visit(jaxpr: Any, loops: str) -> None:  # noqa: ANN401
        for eqn in jaxpr.eqns:
            name, params = eqn.primitive.name, eqn.params
            if name == "pallas_call":
                kernel = str(params["name"])
                found[loops, "kernel", kernel, ""] += 1
                continue
            if name in _MOVES:
                axes = params.get("axes", params.get("axis_name"))
                axes = (axes,) if isinstance(axes, str) else axes
                for operand in eqn.invars if name in ("psum", "pmax") else eqn.invars[:1]:
                    found[loops, name, "+".join(axes), operand.aval.str_short()] += 1
            trips = params["length"] if name == "scan" else "chunks"
            inside = f"{loops}{trips} x " if name in ("scan", "while") else loops
            for value in jax.tree.leaves(params, is_leaf=lambda x: hasattr(x, "jaxpr")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    visit(inner, inside)

    visit(jaxpr.jaxpr, "")
    return found


def collectives(trace: Callable[[], Any]) -> str:
    """The moves of a traced program, one per line; those in nested loops first."""
    lines = [
        f"{loops}{name} {axes} {operand}".rstrip() + (f"  ({count})" if count > 1 else "")
        for (loops, name, axes, operand), count in sorted(moves(trace()).items())
    ]
    return "\n".join(sorted(lines, key=lambda line: -line.count(" x "))) + "\n"


PROGRAMS = {
    "small_step": lambda: trace_step(PRESETS["small"](), STEP_MESH, 16),
    "small_train": lambda: trace_train(PRESETS["small"](), TRAIN_MESH, 128),
}


def main() -> None:
    """Rewrites all goldens."""
    FOLDER.mkdir(exist_ok=True)
    for name in PRESETS:
        (FOLDER / f"{name}_parameters.txt").write_text(parameters(name))
    for name, trace in PROGRAMS.items():
        (FOLDER / f"{name}_collectives.txt").write_text(collectives(trace))


if __name__ == "__main__":
    main()
