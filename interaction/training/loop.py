"""The training loop, to be read from top to bottom."""

import pathlib
import threading
import time
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from interaction import sharding
from interaction.checkpoint import config_to_json, differences, flatten
from interaction.config import ModelConfig
from interaction.training.checkpoints import Checkpoints, load_part
from interaction.training.config import TrainConfig
from interaction.training.feed import make_feed
from interaction.training.objective import Metrics, Objective
from interaction.training.optimizer import learning_rate, make_optimizer
from interaction.training.report import Report
from interaction.training.state import TrainState, abstract_state, init_state, make_train_step


class NotFiniteError(RuntimeError):
    """A loss or gradient is NaN or Inf; the newest checkpoint is from before it."""


def train(
    config: TrainConfig, objective: Objective, stop: threading.Event | None = None
) -> TrainState:
    """Trains until `config.steps`, `config.minutes` or `stop`; then saves and returns the state.

    Called again with the same folder, it goes on from the newest checkpoint, bit for bit as if it
    had never stopped.

    Raises:
      ValueError: no data, or a checkpoint that does not fit.
      NotFiniteError: training diverged; says where it was seen first.
    """
    began = time.monotonic()
    stop = stop or threading.Event()
    run_dir = pathlib.Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    feed = make_feed(config.data, config.batch, config.seed)
    optimizer = make_optimizer(config)
    mesh = sharding.make_mesh(config.mesh)
    train_step = make_train_step(objective, optimizer, config, mesh)
    init_key, noise_key = jax.random.split(jax.random.key(config.seed))

    abstract = abstract_state(objective, optimizer, mesh)
    noise_key = jax.device_put(noise_key, sharding.replicated(mesh))
    checkpoints = Checkpoints(config.run_dir, config.keep)
    start = checkpoints.latest()
    if start is None:
        start = 0
        where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        init = jax.jit(partial(init_state, objective, optimizer), out_shardings=where)
        state = load_parts(init(init_key), dict(config.init_from))
    else:
        state = checkpoints.restore(start, abstract, feed)
    _keep_config(run_dir / "config.json", config.model, resumed=start > 0)
    report = Report(run_dir, start)
    schedule = learning_rate(config)

    window: list[Metrics] = []  # of the steps since the last log, on the device
    logged = saved = time.monotonic()
    bar = tqdm(total=config.steps, initial=start, unit="step", dynamic_ncols=True)
    step, done = start, start >= config.steps
    try:
        while not done:
            batch = jax.device_put(next(feed.batches), sharding.session_sharding(mesh))
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, batch, noise_key)
            position = feed.state()
            step += 1
            window.append(metrics)
            if len(window) > 1:
                jax.block_until_ready(window[-2])  # at most one step is in flight
            now = time.monotonic()
            late = 0 < 60 * config.minutes < now - began
            done = late or step == config.steps or stop.is_set()
            saves = done or now - saved > config.save_every_s
            if step % config.log_every == 0 or saves:
                means = fetch(window, step, state)
                now = time.monotonic()
                means["learning_rate"] = float(np.asarray(schedule(step - 1)))
                means["audio_s_per_s"] = (
                    seconds_of_audio(batch, config) * len(window) / (now - logged)
                )
                report.write(step, now - began, means)
                bar.set_postfix(report.brief(means), refresh=False)
                window, logged = [], now
            bar.update()
            if saves:
                checkpoints.save(step, state, position)
                saved = time.monotonic()
            if objective.samples and config.sample_every and step % config.sample_every == 0:
                shown = objective.samples(state.ema, state.buffers, batch)
                report.samples(step, time.monotonic() - began, shown)
                logged = time.monotonic()  # samples do not count as training time
    finally:
        bar.close()
        checkpoints.close()
        report.close()
    return state


def _keep_config(path: pathlib.Path, model: ModelConfig, resumed: bool) -> None:
    """Writes the model's config into the run, or checks that a resumed run has the same."""
    wanted = config_to_json(model)
    if not resumed:
        path.write_text(wanted)
    elif not path.is_file() or path.read_text() != wanted:
        raise ValueError(
            f"model: {path} does not describe the model of this config, wanted the same; use the "
            "config that the run began with, or start a new --workdir"
        )


def seconds_of_audio(batch: dict[str, jax.Array], config: TrainConfig) -> float:
    """Seconds of conversation in a batch, from its int16 PCM."""
    tracks = [leaf for leaf in batch.values() if leaf.dtype == np.int16]
    return tracks[0].size / config.model.audio.sample_rate if tracks else 0.0


def fetch(window: list[Metrics], step: int, state: TrainState) -> dict[str, Any]:
    """Means over the steps of a window that ends at `step`: floats, or lists for arrays.

    Raises:
      NotFiniteError: a metric of some step is NaN or Inf.
    """
    values = jax.device_get(window)
    for offset, metrics in enumerate(values):
        bad = [name for name, value in metrics.items() if not np.all(np.isfinite(value))]
        if bad:
            leaves = flatten(jax.device_get(state.params))
            sick = [name for name, leaf in leaves.items() if not np.all(np.isfinite(leaf))]
            raise NotFiniteError(
                f"step {step - len(values) + 1 + offset}: {', '.join(bad)} not finite; parameters "
                f"not finite by step {step}: {sick[:4] or 'none'}; the newest checkpoint is from "
                "before: resume with a lower learning rate"
            )
    return {
        name: np.mean([metrics[name] for metrics in values], axis=0, dtype=np.float64).tolist()
        for name in values[0]
    }


def load_parts(state: TrainState, sources: dict[str, str]) -> TrainState:
    """Replaces parts of a fresh state's parameters, averages and buffers by trained ones.

    Args:
      state: before the first step.
      sources: path of a part ("speech") -> folder of a run or of a released model.

    Raises:
      ValueError: a source has no such part, or one of other shapes.
    """
    for part, source in sources.items():
        loaded, place = load_part(source, part)
        current = {
            name: leaf
            for name, leaf in flatten({**state.params, **state.buffers}).items()
            if f"{name}/".startswith(f"{part}/")
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


def _replaced(tree: dict, loaded: dict[str, np.ndarray]) -> dict:
    names = flatten(tree)
    leaves = [
        jax.device_put(loaded[name], leaf.sharding) if name in loaded else leaf
        for name, leaf in names.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
