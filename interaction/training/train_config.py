"""`TrainConfig`: one training run; a file in `experiments/configs` builds it."""

import dataclasses
import os
import runpy
from collections.abc import Mapping, Sequence

from interaction.config import ModelConfig

SCHEDULES = ("cosine", "wsd", "constant")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    When a run is resumed, `steps`, the schedule and logging may differ; another model, other data,
    another batch or another seed is refused, and so are other frozen or adapted parameters.
    """

    name: str  # name of the run
    objective: str  # "module:function" that makes an Objective from `model`
    data: str  # ArrayRecord file, or a folder of them
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    workdir: str = ""  # "" means runs/<name>
    seed: int = 0  # seed of initialisation, order of the data, and noise
    batch: int = 16  # sessions per step, on all devices together
    accumulate: int = 1  # parts that a device splits its sessions into, for less memory
    # Devices on each axis of `collectives.AXES`, 1 where not named; {} trains on one device.
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    steps: int = 10_000
    minutes: float = 0.0  # wall-clock limit of one call, minutes; 0 means none
    learning_rate: float = 1e-3  # peak of the schedule
    warmup: int = 200  # steps
    schedule: str = "cosine"  # "cosine" to 0; "wsd": constant, then linear to 0; "constant"
    decay_fraction: float = 0.3  # share of `steps` in which "wsd" falls
    weight_decay: float = 0.05  # for matrices that have had a gradient
    beta1: float = 0.9
    beta2: float = 0.98
    grad_clip: float = 1.0  # largest global norm of a gradient, 0 means no clipping
    ema_decay: float = 0.999  # decay per step of the averaged parameters
    save_every_s: float = 180.0  # wall-clock seconds between checkpoints
    keep: int = 2  # newest checkpoints that are kept
    log_every: int = 20  # steps; logged values are means over them
    sample_every: int = 1_000  # steps, 0 means never
    # Path of parameters or buffers ("speech", "backbone/heads") -> folder of a run, of a released
    # model or of an imported backbone, from which the run starts.
    init_from: Mapping[str, str] = dataclasses.field(default_factory=dict)
    frozen: Sequence[str] = ()  # paths of parameters or buffers that are not trained
    lora_rank: int = 0  # of adapters of frozen attention and shared experts; 0 means none

    def __post_init__(self) -> None:
        """Checks ranges."""
        for field in ("batch", "accumulate", "steps", "log_every", "keep"):
            _check(getattr(self, field) >= 1, field, getattr(self, field), ">= 1")
        positive = ("warmup", "sample_every", "minutes", "save_every_s", "weight_decay")
        for field in (*positive, "lora_rank"):
            _check(getattr(self, field) >= 0, field, getattr(self, field), ">= 0")
        for field in ("beta1", "beta2", "ema_decay"):
            _check(0 <= getattr(self, field) < 1, field, getattr(self, field), "in [0, 1)")
        for field in ("data", "workdir"):
            value = getattr(self, field)
            _check("://" not in value, field, value, "a path; mount a bucket, see docs/tpu_pods.md")
        _check(self.learning_rate > 0, "learning_rate", self.learning_rate, "> 0")
        _check(self.grad_clip >= 0, "grad_clip", self.grad_clip, ">= 0")
        _check(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {SCHEDULES}")
        _check(0 < self.decay_fraction <= 1, "decay_fraction", self.decay_fraction, "in (0, 1]")

    @property
    def run_dir(self) -> str:
        """Folder of the run: checkpoints, metrics, TensorBoard."""
        return self.workdir or f"runs/{self.name}"


def _check(ok: bool, field: str, got: object, wanted: str) -> None:
    if not ok:
        raise ValueError(f"train.{field}: got {got!r}, wanted {wanted}; change the config file")


def load_config(path: str) -> TrainConfig:
    """Runs a config file and returns the result of its `get_config`.

    Raises:
      ValueError: There is no such file, or it has no `get_config`.
    """
    if not os.path.exists(path):
        raise ValueError(f"--config: got {path!r}, wanted a Python file; see experiments/configs")
    names = runpy.run_path(path)
    if "get_config" not in names:
        raise ValueError(f"--config: {path!r} has no get_config() -> TrainConfig; add it")
    return names["get_config"]()
