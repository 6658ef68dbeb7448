r"""Times the dispatch of one streaming step on the host, with all layers of a preset.

python -m experiments.bench_dispatch --preset=small --json=out/bench_dispatch.json

The model has the preset's tree of parameters with small widths, on fake CPU devices. The time of
the call until it returns does not depend on the widths. Unlike an accelerator, fake devices run on
the cores of the caller. So the audio of the step is delayed until the call has returned, and the
work of the step starts after it. The command also times calls whose audio is ready, where that work
competes with the call.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import NamedSharding
from tqdm import tqdm

from experiments.figures_file import write_figures
from interaction.config import ModelConfig
from interaction.distributed import sharding
from interaction.distributed.packing import LIMITS, Packing
from interaction.model import session_state, streaming
from interaction.model.parameters import init_model_params
from interaction.presets import PRESETS
from interaction.types import Chunk, Params

_PRESET = flags.DEFINE_enum("preset", "small", sorted(PRESETS), "Model.")
_DEVICES = flags.DEFINE_integer(
    "devices", 8, "Fake devices, all on the axis `expert`.", lower_bound=1
)
_STEPS = flags.DEFINE_integer("steps", 100, "Steps that are timed.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File for the figures.")

_WARM_UP = 5  # steps


def narrow(model: ModelConfig) -> ModelConfig:
    """A configuration with the same layers, parts and dtypes, and the smallest widths."""
    transformer = dataclasses.replace(
        model.decoder,
        dim=32,
        heads=2,
        kv_heads=1,
        sliding_kv_heads=1,
        head_dim=16,
        experts=max(8, _DEVICES.value),
        experts_per_token=1,
        expert_ffn=8,
        dense_ffn=16,
        window=20,
        long_window=40,
        relative_states=2,
        relative_extent=40,
    )
    speech = dataclasses.replace(
        model.speech, dim=16, condition_dim=32, feature_dim=8, token_dim=8, token_window=4
    )
    vocoder = dataclasses.replace(model.vocoder, dim=16)
    return dataclasses.replace(
        model,
        transformer=transformer,
        speech=speech,
        vocoder=vocoder,
        vocab=64,
        text_slots=2,
        patches=1,
        vision_widths=(16, 16, 32),
    )


def abstract_params(model: ModelConfig) -> Params:
    """Shapes and dtypes of a model's parameters in serving."""
    init = functools.partial(init_model_params, model)
    params = jax.eval_shape(init, jax.random.key(0))
    cast = functools.partial(sharding.cast_params, dtype=model.transformer.dtype)
    return jax.eval_shape(cast, params)


def step_leaves(model: ModelConfig) -> int:
    """Number of arrays that a call of the step takes on a TPU: packed parameters, state, audio."""
    params = abstract_params(model)
    packing = Packing(params, sharding.param_specs(params), LIMITS["tpu"])
    keys = jax.ShapeDtypeStruct((1, 2), jnp.uint32)
    state = jax.eval_shape(functools.partial(session_state.init_state, model), keys)
    return len(jax.tree.leaves((packing.specs, state))) + 1


@jax.jit
def _late(audio: jax.Array) -> jax.Array:
    """Returns `audio`, silence, after about 20 ms of work on one core."""
    zero = jax.lax.fori_loop(0, 3_000_000, lambda _, x: jnp.sin(x), audio.sum())
    return audio + zero


def dispatch_times(model: ModelConfig) -> dict[str, list[float]]:
    """Times each call of the step, s.

    Returns:
      held: Wall-clock time of a call whose audio is delayed.
      processor: Processor time of the calling thread in the same call.
      working: Wall-clock time of a call whose audio is ready.
    """
    mesh = sharding.make_mesh({"expert": _DEVICES.value})
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return (0.1 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    def place(specs: Any) -> Any:  # noqa: ANN401
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    params = jax.tree.map(draw, abstract_params(model))
    params = jax.device_put(params, sharding.shardings(mesh, params))
    packing = Packing(params, sharding.param_specs(params), LIMITS["tpu"])
    packed = packing.join(params, mesh)
    step = streaming.make_step(model, mesh, packing.specs, packing.take_apart)
    sessions = max(_DEVICES.value, 8)
    state = session_state.init_state(model, session_state.session_keys(jnp.arange(sessions)))
    state = jax.device_put(state, place(session_state.state_specs(model)))
    silence = jnp.zeros((sessions, model.audio.turn_samples))
    place_audio = functools.partial(jax.device_put, device=sharding.session_sharding(mesh))
    ready = place_audio(silence)
    times: dict[str, list[float]] = {"held": [], "processor": [], "working": []}
    for _ in tqdm(range(_WARM_UP + _STEPS.value), unit="step"):
        jax.block_until_ready(state)
        delayed = place_audio(_late(silence))
        began = time.perf_counter(), time.thread_time()
        state, _ = step(packed, state, Chunk(delayed))
        times["held"].append(time.perf_counter() - began[0])
        times["processor"].append(time.thread_time() - began[1])
        jax.block_until_ready(state)
        began_ready = time.perf_counter()
        state, _ = step(packed, state, Chunk(ready))
        times["working"].append(time.perf_counter() - began_ready)
    return {name: seconds[_WARM_UP:] for name, seconds in times.items()}


def main(argv: list[str]) -> None:
    """Prints and writes the figures, measured on CPU."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    preset = PRESETS[_PRESET.value]()
    times = dispatch_times(narrow(preset))
    figures = {
        "preset": _PRESET.value,
        "layers": preset.transformer.layers,
        "devices": _DEVICES.value,
        "leaves": step_leaves(preset),
        "dispatch_p50_ms": 1e3 * float(np.median(times["held"])),
        "dispatch_p90_ms": 1e3 * float(np.quantile(times["held"], 0.9)),
        "dispatch_processor_p50_ms": 1e3 * float(np.median(times["processor"])),
        "dispatch_working_p50_ms": 1e3 * float(np.median(times["working"])),
    }
    for name, value in figures.items():
        print(f"{name:<28}{value if isinstance(value, int | str) else round(value, 3):>10}")
    write_figures(figures, _JSON.value)


if __name__ == "__main__":
    app.run(main)
