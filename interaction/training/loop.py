"""The training loop.

It is the same for one process and for several; each process calls it, and all of them see the
folder of the run. `touch <run_dir>/profile` traces the next steps, see `Profiler`.
"""

import contextlib
import pathlib
import threading
import time
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from interaction.config import ModelConfig
from interaction.distributed import sharding
from interaction.pretrained.lazy_array import LazyArray
from interaction.pretrained.store import config_text
from interaction.pretrained.tree_paths import differences, flatten
from interaction.training import hosts, run_lock
from interaction.training.adapters import adapt
from interaction.training.checkpoints import Checkpoints, load_part
from interaction.training.finite import (
    GRADIENTS,
    NotFiniteError,
    finite_leaves,
    first_non_finite,
    not_finite,
)
from interaction.training.frozen import freeze
from interaction.training.goodput import Goodput
from interaction.training.input_pipeline import InputPipeline, local_rows, make_input_pipeline
from interaction.training.objective import Batch, Metrics, Objective
from interaction.training.optimizer import learning_rate, make_optimizer
from interaction.training.profiler import Profiler
from interaction.training.run_log import Report, brief, speeds
from interaction.training.state import TrainState, abstract_state, init_state, make_train_step
from interaction.training.train_config import TrainConfig

__all__ = ["NotFiniteError", "train"]


def train(
    config: TrainConfig, objective: Objective, stop: threading.Event | None = None
) -> TrainState:
    """Trains until `config.steps`, `config.minutes` or `stop`; then saves and returns the state.

    A later call with the same folder continues from the newest undamaged checkpoint, bit for bit as
    if training had never stopped.

    Args:
      config: Configuration of the run.
      objective: The task.
      stop: Ends the training when it is set; None means never.

    Raises:
      ValueError: There are no data, the devices do not form the mesh, another run trains in the
        folder, or the checkpoints are damaged or belong to another run.
      NotFiniteError: Training diverged; the message names the first non-finite values.
    """
    run_dir = pathlib.Path(config.run_dir)
    trained = trained_part(objective, config)
    run_dir.mkdir(parents=True, exist_ok=True)
    with run_lock.hold(run_dir):
        return _train(config, trained, stop or threading.Event(), run_dir)


def trained_part(objective: Objective, config: TrainConfig) -> Objective:
    """The objective with what the config freezes frozen, and with its adapters."""
    frozen = freeze(objective, config.frozen, config.model.transformer.dtype)
    return adapt(frozen, config.lora_rank)


def _train(
    config: TrainConfig, objective: Objective, stop: threading.Event, run_dir: pathlib.Path
) -> TrainState:
    began = time.monotonic()
    mesh = sharding.make_mesh(config.mesh)
    hosts.check_mesh(mesh)
    where = sharding.session_sharding(mesh)
    optimizer = make_optimizer(config)
    train_step = make_train_step(objective, optimizer, config, mesh)
    pipeline = make_input_pipeline(
        config.data, config.batch, config.seed, local_rows(config.batch, where)
    )
    checkpoints = Checkpoints(config.run_dir, config.keep)
    step, state = begin(config, objective, optimizer, mesh, checkpoints, pipeline)
    key = seed_keys(config.seed, mesh)[1]
    schedule, first = jax.jit(learning_rate(config)), hosts.is_first()

    consensus, profiler = hosts.Consensus(mesh), Profiler(run_dir)
    report = Report(run_dir, step, writes=first)
    clock = Goodput(run_dir, report.last, writes=first)
    bar = tqdm(total=config.steps, initial=step, unit="step", dynamic_ncols=True, disable=not first)
    window: list[Metrics] = []  # metrics of the steps since the last log, on the device
    compiling, done, saved = "compile", step >= config.steps, time.monotonic()
    with contextlib.ExitStack() as closing:  # closes all of them even if one fails
        for close in (clock.close, checkpoints.close, report.close, profiler.close, bar.close):
            closing.callback(close)
        while not done:
            with clock.lost("data"):
                batch = pipeline.take(where)
            with clock.lost(compiling), jax.transfer_guard("disallow"):
                state, metrics = train_step(state, batch, key)
            step, compiling = step + 1, None
            window.append(metrics)
            jax.block_until_ready(window[-2:-1])  # at most one step is in flight
            now = time.monotonic()
            late, due, traced, stopped = consensus(
                first and 0 < 60 * config.minutes < now - began,
                first and now - saved > config.save_every_s,
                first and step % config.log_every == 0 and profiler.requested(),
                stop.is_set(),
            )
            done = late or stopped or step == config.steps
            profiler.step(traced, metrics)
            if done or due or step % config.log_every == 0:
                means = fetch(window, step, state)
                rate = {"learning_rate": float(np.asarray(schedule(step - 1)))}
                means |= rate | clock.figures(len(window))
                means |= speeds(config, batch, state.params, means["step_s"])
                report.write(step, time.monotonic() - began, means)
                bar.set_postfix(brief(means), refresh=False)
                window = []
            bar.update()
            if done or due:
                with clock.lost("save"):
                    checkpoints.save(step, state, pipeline.state())
                saved = time.monotonic()
            if objective.samples and config.sample_every and step % config.sample_every == 0:
                with clock.lost("samples"):
                    shown = samples(objective, state, batch, mesh)
                    report.samples(step, time.monotonic() - began, shown)
    return state


def begin(
    config: TrainConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: Checkpoints,
    pipeline: InputPipeline,
) -> tuple[int, TrainState]:
    """The step and state that the run starts or continues from; moves `pipeline` there.

    Args:
      config: Configuration of the run.
      objective: The task.
      optimizer: The optimizer.
      mesh: Devices of the run.
      checkpoints: Checkpoints of the run.
      pipeline: The input pipeline, at its start.
    """
    abstract = abstract_state(objective, optimizer, mesh)
    found = checkpoints.restore(abstract, pipeline)
    keep_config(pathlib.Path(config.run_dir) / "config.json", config.model, found is not None)
    if found is not None:
        return found
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    init = jax.jit(partial(init_state, objective, optimizer), out_shardings=where)
    return 0, load_parts(init(seed_keys(config.seed, mesh)[0]), dict(config.init_from))


def seed_keys(seed: int, mesh: Mesh) -> jax.Array:
    """PRNG keys of the initialisation and of the steps' noise.

    Args:
      seed: Seed of the run.
      mesh: Devices of the run; all of them hold the keys.

    Returns:
      Typed PRNG keys [2], with uint32 key data.
    """
    split = jax.jit(
        lambda: jax.random.split(jax.random.key(seed)), out_shardings=sharding.replicated(mesh)
    )
    return split()


def keep_config(path: pathlib.Path, model: ModelConfig, resumed: bool) -> None:
    """Writes the model configuration of a new run, or checks that of a resumed run.

    Args:
      path: File of the configuration.
      model: Model configuration.
      resumed: Whether the run continues from a checkpoint.

    Raises:
      ValueError: The resumed run has another configuration, or none.
    """
    wanted = config_text(model)
    if not resumed:
        if hosts.is_first():
            path.write_text(wanted)
    elif not path.is_file() or path.read_text() != wanted:
        raise ValueError(
            f"model: {path} does not describe the model of this config, wanted the same model; use "
            "the config that the run began with, or start a new --workdir"
        )


def fetch(window: list[Metrics], step: int, state: TrainState) -> dict[str, Any]:
    """Means of the metrics over the steps of a window: floats, or lists for arrays.

    Args:
      window: Metrics of each step, on the device.
      step: Last step of the window.
      state: State after that step.

    Raises:
      NotFiniteError: A metric of some step is NaN or Inf; the message names the first ones.
    """
    values = jax.device_get(window)
    names = list(flatten(state.params))
    non_finite = first_non_finite(values, names)
    if non_finite is not None:
        at, found = non_finite
        mesh = jax.tree.leaves(state.params)[0].sharding.mesh
        check = jax.jit(finite_leaves, out_shardings=sharding.replicated(mesh))
        good = np.asarray(check(state.params))
        parameters = [name for name, fine in zip(names, good, strict=True) if not fine]
        raise NotFiniteError(
            not_finite(step - len(values) + 1 + at, **found, parameters=parameters)
        )
    return {
        name: np.mean([metrics[name] for metrics in values], axis=0, dtype=np.float64).tolist()
        for name in values[0]
        if name != GRADIENTS
    }


def samples(objective: Objective, state: TrainState, batch: Batch, mesh: Mesh) -> dict[str, Any]:
    """Samples of the objective, made by the first process on one device.

    The averaged parameters have to fit on one device; where they do not, set `sample_every` to 0.

    Args:
      objective: The task.
      state: State of the run.
      batch: A batch on the mesh.
      mesh: Devices of the run.

    Returns:
      What `Objective.samples` returns; {} on the other processes.
    """
    if objective.samples is None:
        return {}
    whole = jax.jit(lambda *trees: trees, out_shardings=sharding.replicated(mesh))
    trees = whole(state.ema, state.buffers, batch)
    here = jax.tree.map(lambda leaf: leaf.addressable_data(0), trees)
    return objective.samples(*here) if hosts.is_first() else {}


def load_parts(state: TrainState, sources: dict[str, str]) -> TrainState:
    """Replaces parts of a new state's parameters, averages and buffers by trained ones.

    Args:
      state: State before the first step.
      sources: Path of a part ("speech") -> folder, as in `TrainConfig.init_from`.

    Returns:
      The state with those parts.

    Raises:
      ValueError: A source has no such part, or its shapes differ.
    """
    for part, source in sources.items():
        loaded, place = load_part(source, part)
        current = {
            name: leaf
            for name, leaf in (flatten(state.params) | flatten(state.buffers)).items()
            if f"{name}/".startswith(f"{part}/")
        }
        loaded = {  # a source has a dtype of its own
            name: leaf.astype(current[name].dtype) if name in current else leaf
            for name, leaf in loaded.items()
        }
        wrong = differences(loaded, current)
        if wrong:
            raise ValueError(
                f"init_from[{part!r}]: {place} does not fit: {'; '.join(wrong)}; "
                "use a checkpoint of the same config"
            )
        params, buffers, ema = (
            _replaced(tree, loaded) for tree in (state.params, state.buffers, state.ema)
        )
        state = state._replace(params=params, buffers=buffers, ema=ema)
    return state


def _replaced(tree: dict, loaded: dict[str, LazyArray]) -> dict:
    leaves = [
        sharding.put(loaded[name], leaf.sharding) if name in loaded else leaf
        for name, leaf in flatten(tree).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
