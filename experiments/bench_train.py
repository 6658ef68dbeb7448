r"""Times a training step, beside the same step in PyTorch if it is installed.

python -m experiments.bench_train --preset=demo --json=out/bench_train.json
python -m experiments.bench_train --preset=demo --policies --plot=out/bench_train.png

Both sides train backbone and flow head from the same parameters on the same sessions: features,
augmentation, forward pass, losses, backward pass, clipping, AdamW and averaged parameters. Their
steps alternate, so that other load of the machine affects both. On a CPU PyTorch runs on its
fastest number of threads; on a GPU it is compiled, with autocast if the preset computes in
bfloat16. `--policies` also times the library under each policy of `config.REMAT`. (On one CPU the
layers take a few sessions at a time and are recomputed under every policy.)
"""

import dataclasses
import importlib
import importlib.util
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh

from interaction.compiled.compilation_cache import use_compilation_cache
from interaction.compiled.device_memory import Memory, hbm
from interaction.config import REMAT, ModelConfig
from interaction.distributed import sharding
from interaction.distributed.xla_options import compiler_options
from interaction.presets import PRESETS
from interaction.training import run_log, state as train_state
from interaction.training.conversation_loss import joint_objective
from interaction.training.flops import train_flops
from interaction.training.optimizer import make_optimizer
from interaction.training.train_config import TrainConfig
from interaction.types import Params, Special

_OBJECTIVE = "interaction.training.conversation_loss:joint_objective"
_PARTS = ("backbone", "speech")  # the trained parts
_SPEAKING, _TRANSCRIPT = 0.35, 0.3  # shares of positions with words, about as in the data
_WARM_UP = 2  # steps
_PRODUCT = 2_048  # rows and columns of the matrices whose product gives a CPU's FLOP/s

Batch = dict[str, np.ndarray]
Step = Callable[[], float]  # returns the loss
Figures = dict[str, Any]


def settings(preset: str, batch: int | None) -> TrainConfig:
    """Training configuration of a preset on one device, from `experiments/configs` or defaults.

    Args:
      preset: One of `interaction.presets.PRESETS`.
      batch: Sessions per step; None takes the configuration's.
    """
    model, name = PRESETS[preset](), f"experiments.configs.{preset}"
    if importlib.util.find_spec(name):
        config = importlib.import_module(name).get_config()
    else:
        config = TrainConfig(name=preset, objective=_OBJECTIVE, data="")
    batch = batch or config.batch
    parts = math.gcd(batch, config.accumulate)
    return dataclasses.replace(config, model=model, batch=batch, accumulate=parts, mesh={})


def make_batch(model: ModelConfig, sessions: int, turns: int) -> Batch:
    """A batch with noise on both sides and random words; the content does not affect the time.

    Args:
      model: Model configuration.
      sessions: b.
      turns: Micro-turns n of a session.

    Returns:
      user and model int16[b, samples] (PCM), text int32[b, n], user_transcript
      int32[b, n, audio_positions].
    """
    rng = np.random.default_rng(0)
    samples = (sessions, turns * model.audio.turn_samples)

    def words(shape: tuple[int, ...], share: float, otherwise: int) -> np.ndarray:
        some = rng.integers(Special.COUNT, model.vocab, shape)
        return np.where(rng.random(shape) < share, some, otherwise).astype(np.int32)

    return {
        "user": rng.normal(0, 3_000, samples).astype(np.int16),
        "model": rng.normal(0, 3_000, samples).astype(np.int16),
        "text": words((sessions, turns), _SPEAKING, Special.SILENT),
        "user_transcript": words(
            (sessions, turns, model.audio_positions), _TRANSCRIPT, Special.NONE
        ),
    }


class Trainer:
    """The library's step, compiled for some remat policies, which update one state in turn."""

    def __init__(
        self, config: TrainConfig, batch: Batch, policies: tuple[str, ...], mesh: Mesh
    ) -> None:
        """Makes the state and compiles."""
        self.config, self.batch = config, batch
        self._key = jax.device_put(jax.random.key(config.seed), sharding.replicated(mesh))
        self._place = sharding.session_sharding(mesh)
        self._steps: dict[str, jax.stages.Compiled] = {}
        optimizer = make_optimizer(config)
        for policy in policies:
            transformer = dataclasses.replace(config.model.transformer, remat=policy)
            model = dataclasses.replace(config.model, transformer=transformer)
            objective = joint_objective(model)
            if not self._steps:
                where = train_state.abstract_state(objective, optimizer, mesh)
                init = jax.jit(
                    partial(train_state.init_state, objective, optimizer),
                    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, where),
                )
                self.state: train_state.TrainState = init(self._key)
            step = train_state.make_train_step(objective, optimizer, config, mesh)
            lower = step.lower  # pyrefly: ignore[missing-attribute]
            self._steps[policy] = lower(self.state, self.put(), self._key).compile()

    @property
    def policies(self) -> tuple[str, ...]:
        """The remat policies of the compiled steps."""
        return tuple(self._steps)

    def put(self) -> dict[str, jax.Array]:
        """Puts the batch on the devices: int16[b, samples], int32[b, n, ...], see `make_batch`."""
        return jax.device_put(self.batch, self._place)

    def step(self, policy: str) -> float:
        """One update; returns the loss."""
        self.state, metrics = self._steps[policy](self.state, self.put(), self._key)
        return float(jax.block_until_ready((self.state, metrics["loss"]))[1])

    def memory(self, policy: str) -> Memory:
        """Memory that the compiler allocates for a step."""
        return hbm(self._steps[policy], {})


def torch_device() -> str | None:
    """The kind of device that PyTorch shares with JAX; None if PyTorch cannot run there."""
    if not importlib.util.find_spec("torch"):
        return None
    import torch

    backend = jax.default_backend()
    if backend == "gpu" and torch.cuda.is_available():
        return "cuda"
    return "cpu" if backend == "cpu" else None


def torch_step(trainer: Trainer, device: str) -> tuple[Step, str]:
    """The baseline's step, from the library's current parameters, and a label of how it runs."""
    import torch

    from experiments.baselines.torch_train import TorchTrainer

    params: Params = jax.tree.map(np.array, trainer.state.params)
    bias = np.array(trainer.state.buffers["router_bias"])
    baseline = TorchTrainer(trainer.config, params["backbone"], params["speech"], bias, device)
    tensors = {
        name: torch.tensor(leaf if leaf.dtype == np.int16 else leaf.astype(np.int64), device=device)
        for name, leaf in trainer.batch.items()
    }
    return lambda: baseline.step(tensors), baseline.label


def seconds(step: Step) -> float:
    """Duration of one step, s."""
    start = time.perf_counter()
    if not np.isfinite(step()):
        raise RuntimeError("the loss is not finite")
    return time.perf_counter() - start


def set_best_threads(step: Step, cores: int) -> int:
    """Sets the number of threads on which PyTorch's step is fastest; returns it."""
    import torch

    durations = {}
    for threads in range(1, cores + 1):
        torch.set_num_threads(threads)
        durations[threads] = min(seconds(step) for _ in range(_WARM_UP))
    best = min(durations, key=durations.__getitem__)
    torch.set_num_threads(best)
    return best


def product_rate(dtype: str) -> float:
    """FLOP/s of a large matrix product on this CPU, the fastest of five."""
    x = jnp.ones((_PRODUCT, _PRODUCT), dtype)
    multiply = jax.jit(jnp.matmul, compiler_options=compiler_options("cpu"))

    def once() -> float:
        multiply(x, x).block_until_ready()
        return 0.0

    seconds(once)
    return 2 * _PRODUCT**3 / min(seconds(once) for _ in range(5))


def peak_rate(model_rate: float, mfu: float | None, dtype: str) -> tuple[float | None, str]:
    """Peak FLOP/s, the basis of MFU, and their source.

    Args:
      model_rate: FLOP/s of the step.
      mfu: Their share of the vendor's peak; None if the device is not known.
      dtype: Compute dtype of the model.

    Returns:
      Peak FLOP/s, None if unknown; and their source.
    """
    kind = jax.devices()[0].device_kind
    if mfu:
        return model_rate / mfu, f"{kind}: bfloat16, stated by the vendor"
    if jax.default_backend() == "cpu":
        size = f"{_PRODUCT} x {_PRODUCT}"
        return product_rate(dtype), f"{kind}: measured, {dtype} product of {size} matrices"
    return None, f"{kind}: not known"


def alternate(sides: dict[str, Step], steps: int) -> dict[str, float]:
    """Median duration of each side's steps, s; the sides alternate."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(steps):
        for name, step in sides.items():
            times[name].append(seconds(step))
    return {name: float(np.median(found)) for name, found in times.items()}


def measure(trainer: Trainer, steps: int, beside_torch: bool = True) -> Figures:
    """Times both sides.

    Args:
      trainer: Compiled for the preset's remat policy, and possibly others.
      steps: Steps timed on each side.
      beside_torch: Whether to time PyTorch, if it runs on the same device.

    Returns:
      The figures; None is unknown. audio_s_per_s is the audio of a batch (one side of the
      conversations) over the library's median step, torch_audio_s_per_s that of the baseline, and
      ratio_to_torch their quotient: above 1 the library is faster. FLOPs are those that the batch
      needs, see `training.flops.train_flops`. temp_bytes and argument_bytes are allocated by the
      compiler; peak_bytes is the most that the device has held.
    """
    config, policies = trainer.config, trainer.policies
    remat, audio = config.model.transformer.remat, config.model.audio
    turns = trainer.batch["text"].shape[1]
    sides: dict[str, Step] = {policy: partial(trainer.step, policy) for policy in policies}
    device, label, threads = torch_device() if beside_torch else None, None, None
    if device:
        sides["torch"], label = torch_step(trainer, device)
    for step in sides.values():
        for _ in range(_WARM_UP):
            seconds(step)
    cores = len(os.sched_getaffinity(0))
    if device == "cpu":
        threads = set_best_threads(sides["torch"], cores)
    times = alternate(sides, steps)
    audio_s = config.batch * turns * audio.turn_samples / audio.sample_rate
    counted = train_flops(config.model, turns)
    by_part = {part: config.batch * count for part, count in counted.items()}
    rate = sum(by_part.values()) / times[remat]
    speeds = run_log.speeds(config, trainer.put(), dict.fromkeys(_PARTS), times[remat])
    peak, source = peak_rate(rate, speeds.get("mfu"), config.model.transformer.dtype)
    memory = {policy: trainer.memory(policy) for policy in policies}
    return {
        "audio_s_per_s": audio_s / times[remat],
        "torch_audio_s_per_s": audio_s / times["torch"] if device else None,
        "ratio_to_torch": times["torch"] / times[remat] if device else None,
        "torch": label,
        "torch_threads": threads,
        "cores": cores,
        "batch": config.batch,
        "turns": turns,
        "steps": steps,
        "dtype": config.model.transformer.dtype,
        "step_s": times[remat],
        "flops_per_step": sum(by_part.values()),
        "flops_by_part": by_part,
        "model_flop_per_s": rate,
        "mfu": rate / peak if peak else None,
        "peak_flop_per_s": peak,
        "peak_source": source,
        "temp_bytes": memory[remat].temporaries,
        "argument_bytes": memory[remat].arguments,
        "peak_bytes": round(1e9 * speeds["memory_gb"]) if "memory_gb" in speeds else None,
        "remat": {
            policy: {"step_s": times[policy], "temp_bytes": memory[policy].temporaries}
            for policy in REMAT
            if policy in memory
        },
        "remat_of_preset": remat,
    }


def table(figures: Figures) -> str:
    """The figures as text."""
    lines = []
    for name, value in figures.items():
        if name == "flops_by_part":
            total = figures["flops_per_step"]
            shown = sorted(value.items(), key=lambda item: -item[1])
            lines += [f"  {part:<20}{n:>12.4g}{n / total:>7.1%}" for part, n in shown if n]
        elif name == "remat":
            lines.append("remat, ms a step and MB of temporaries")
            for policy, row in value.items():
                mb = row["temp_bytes"] / 1e6
                lines.append(f"  {policy:<20}{1e3 * row['step_s']:>12.1f}{mb:>10.1f}")
        elif value is not None:
            shown = value if isinstance(value, str) else f"{value:>12.5g}"
            lines.append(f"{name:<22}{shown}")
    return "\n".join(lines)


def draw(figures: Figures, title: str, path: pathlib.Path) -> None:
    """Draws bars: speed of both sides, FLOPs by part, and time and temporaries by remat policy."""
    import matplotlib.pyplot as plt

    names = {"interaction": "audio_s_per_s", "PyTorch": "torch_audio_s_per_s"}
    speeds = {name: figures[key] for name, key in names.items() if figures[key]}
    parts = {part: n / 1e9 for part, n in sorted(figures["flops_by_part"].items()) if n}
    remat = figures["remat"]
    bars = {
        "s of audio a second": speeds,
        "GFLOP a step": parts,
        "ms a step by remat policy": {name: 1e3 * row["step_s"] for name, row in remat.items()},
        "MB of temporaries": {name: row["temp_bytes"] / 1e6 for name, row in remat.items()},
    }
    figure, panels = plt.subplots(2, 2, figsize=(11, 6), layout="constrained")
    for (label, values), panel in zip(bars.items(), panels.flat, strict=True):
        drawn = panel.barh(list(values), list(values.values()))
        panel.bar_label(drawn, fmt="%.4g", padding=3)
        panel.margins(x=0.15)
        panel.set_title(label)
        panel.invert_yaxis()
    figure.suptitle(title)
    figure.savefig(path)
    plt.close(figure)


def main(argv: list[str]) -> None:
    """Prints the figures of `measure`; writes and draws them if the flags name files."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    # Without it JAX would allocate most of a GPU's memory and leave little for PyTorch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    use_compilation_cache()
    config = settings(given.preset, given.batch)
    batch = make_batch(config.model, config.batch, given.turns)
    remat = config.model.transformer.remat
    policies = (
        remat,
        *(policy for policy in REMAT if given.policies and policy != remat),
    )
    trainer = Trainer(config, batch, policies, sharding.make_mesh({}))
    figures = {"preset": given.preset, **measure(trainer, given.steps, given.torch)}
    print(table(figures))
    to_json, to_plot = (name and pathlib.Path(name) for name in (given.json, given.plot))
    for path in (to_json, to_plot):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    if to_json:
        to_json.write_text(json.dumps(figures, indent=2) + "\n")
    if to_plot:
        device = jax.devices()[0].device_kind
        draw(figures, f"Training, {given.preset}, {figures['dtype']}, {device}", to_plot)


if __name__ == "__main__":
    flags.DEFINE_enum("preset", "demo", list(PRESETS), "Model.")
    flags.DEFINE_string("json", None, "File for the figures.")
    flags.DEFINE_string("plot", None, "File for their plot, for example out/bench_train.png.")
    flags.DEFINE_integer("batch", None, "Sessions per step; default: as the preset is trained.")
    flags.DEFINE_integer("turns", 80, "Micro-turns of a session.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Steps timed on each side.", lower_bound=1)
    flags.DEFINE_boolean("policies", False, "Compiles and times every remat policy.")
    flags.DEFINE_boolean("torch", True, "Also times PyTorch, if it is installed.")
    app.run(main)
