r"""Times a training step beside the same step in PyTorch.

python -m experiments.bench_train --preset=demo --json=out/bench_train.json

Both sides train trunk and flow head from the same parameters on the same sessions: features,
augmentation, forward, losses, backward, clipping, AdamW and averaged parameters. Their steps
alternate, so that what else the machine does hits both; PyTorch runs on the number of threads that
suits it best.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from absl import app, flags

from experiments.baselines.torch_train import TorchTrainer
from experiments.compilation import use_compilation_cache
from interaction import sharding
from interaction.config import ModelConfig
from interaction.training import state as train_state
from interaction.training.config import TrainConfig
from interaction.training.conversation import joint_objective
from interaction.training.optimizer import make_optimizer
from interaction.types import Special

_PRESET = flags.DEFINE_string("preset", "demo", "Name of a file in experiments/configs.")
_JSON = flags.DEFINE_string("json", None, "Where to write the figures.")
_BATCH = flags.DEFINE_integer("batch", None, "Sessions a step; default as the preset trains.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps timed on each side.", lower_bound=1)

_TURNS = 80  # micro-turns of a session, as in the data
_SPEAKING, _HEARD = 0.35, 0.3  # shares of micro-turns with words, about as in the data
_WARM_UP = 2  # steps

Batch = dict[str, np.ndarray]
Step = Callable[[], float]  # returns the loss


def make_batch(model: ModelConfig, sessions: int) -> Batch:
    """Noise on both sides and random words; times do not depend on what is in them."""
    rng = np.random.default_rng(0)
    samples = (sessions, _TURNS * model.audio.turn_samples)

    def words(shape: tuple[int, ...], share: float, otherwise: int) -> np.ndarray:
        some = rng.integers(Special.COUNT, model.vocab, shape)
        return np.where(rng.random(shape) < share, some, otherwise).astype(np.int32)

    return {
        "user": rng.normal(0, 3_000, samples).astype(np.int16),
        "model": rng.normal(0, 3_000, samples).astype(np.int16),
        "text": words((sessions, _TURNS), _SPEAKING, Special.SILENT),
        "heard": words((sessions, _TURNS, model.audio_positions), _HEARD, Special.NONE),
    }


def both_sides(config: TrainConfig, batch: Batch) -> dict[str, Step]:
    """The library's step and the baseline's, from the same parameters."""
    objective, optimizer = joint_objective(config.model), make_optimizer(config)
    key = jax.random.key(config.seed)
    state = jax.jit(lambda key: train_state.init_state(objective, optimizer, key))(key)
    params = jax.tree.map(np.array, state.params)
    bias = np.array(state.buffers["router_bias"])
    trainer = TorchTrainer(config, params["trunk"], params["speech"], bias)
    tensors = {
        name: torch.tensor(leaf if leaf.dtype == np.int16 else leaf.astype(np.int64))
        for name, leaf in batch.items()
    }
    mesh = sharding.make_mesh({})
    train_step = train_state.make_train_step(objective, optimizer, config, mesh)

    def ours() -> float:
        nonlocal state
        state, metrics = train_step(state, jax.device_put(batch), key)
        return float(jax.block_until_ready((state, metrics["loss"]))[1])

    return {"ours": ours, "torch": lambda: trainer.step(tensors)}


def seconds(step: Step) -> float:
    """Duration of one step."""
    start = time.perf_counter()
    if not np.isfinite(step()):
        raise RuntimeError("the loss is not finite")
    return time.perf_counter() - start


def best_threads(step: Step, cores: int) -> int:
    """The number of threads on which PyTorch's step is shortest."""
    durations = {}
    for threads in range(1, cores + 1):
        torch.set_num_threads(threads)
        durations[threads] = min(seconds(step) for _ in range(_WARM_UP))
    return min(durations, key=durations.__getitem__)


def main(argv: list[str]) -> None:
    """Prints and writes the figures.

    audio_s_per_s is the audio of a batch (one side) over the median step of the library,
    torch_audio_s_per_s the baseline's, ratio_to_torch their quotient: above 1 the library is
    faster.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    use_compilation_cache()
    config = importlib.import_module(f"experiments.configs.{_PRESET.value}").get_config()
    config = dataclasses.replace(config, batch=_BATCH.value or config.batch)
    audio = config.model.audio
    sides = both_sides(config, make_batch(config.model, config.batch))
    for step in sides.values():
        for _ in range(_WARM_UP):
            seconds(step)
    cores = len(os.sched_getaffinity(0))
    threads = best_threads(sides["torch"], cores)
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_STEPS.value):
        for name, step in sides.items():
            times[name].append(seconds(step))
    heard = config.batch * _TURNS * audio.turn_samples / audio.sample_rate
    ours, theirs = (heard / float(np.median(times[name])) for name in ("ours", "torch"))
    figures = {
        "audio_s_per_s": ours,
        "torch_audio_s_per_s": theirs,
        "ratio_to_torch": ours / theirs,
        "torch_threads": threads,
        "cores": cores,
        "batch": config.batch,
        "steps": _STEPS.value,
    }
    figures = {name: round(float(value), 3) for name, value in figures.items()}
    for name, value in figures.items():
        print(f"{name:<22}{value:>10g}")
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
