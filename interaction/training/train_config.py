"""One training run, described by a frozen dataclass; a file in `experiments/configs` builds it."""

import dataclasses
from collections.abc import Mapping

from interaction.config import ModelConfig

SCHEDULES = ("cosine", "wsd", "constant")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Between resumes `steps`, the schedule and what is logged may change; the model, the data, the
    batch and the seed may not, which is checked.
    """

    name: str  # of the run
    objective: str  # "module:function", called with `model`, returns an Objective
    data: str  # ArrayRecord file, or a folder of them
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    workdir: str = ""  # "" means runs/<name>
    seed: int = 0  # of initialisation, order of the data, and noise
    batch: int = 16  # sessions a step, on all devices together
    accumulate: int = 1  # parts of a batch that a device takes one after another
    # Devices on each axis of `sharding.AXES`, 1 where not named; {} trains on one device.
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    steps: int = 10_000
    minutes: float = 0.0  # wall-clock limit of one call, 0 means none
    learning_rate: float = 1e-3  # at its peak
    warmup: int = 200  # steps
    schedule: str = "cosine"  # to 0; "wsd": flat, then linear to 0; "constant"
    decay_fraction: float = 0.3  # of `steps`, the falling part of "wsd"
    weight_decay: float = 0.05  # of matrices that have had a gradient
    beta1: float = 0.9
    beta2: float = 0.98
    grad_clip: float = 1.0  # largest global norm, 0 means no clipping
    ema_decay: float = 0.999  # a step, of the averaged parameters
    save_every_s: float = 180.0  # wall clock
    keep: int = 2  # checkpoints
    log_every: int = 20  # steps; logged values are means over them
    sample_every: int = 1_000  # steps, 0 means never
    # Part of the parameters or buffers ("speech", "backbone/embed") -> run or released folder.
    init_from: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks ranges."""
        for field in ("batch", "accumulate", "steps", "log_every", "keep"):
            _check(getattr(self, field) >= 1, field, getattr(self, field), ">= 1")
        for field in ("warmup", "sample_every", "minutes", "save_every_s", "weight_decay"):
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
