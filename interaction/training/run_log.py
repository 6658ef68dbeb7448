"""Figures that a run writes while it trains: `metrics.jsonl` and TensorBoard."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from interaction.compiled.costs import turn_positions
from interaction.training.flops import train_flops
from interaction.training.train_config import TrainConfig
from pallas_kernels.chips import chip_of_kind

_RATE = 16_000  # Hz, of audio samples
_HIDDEN = ("learning_rate", "data_share", "good_s", "positions_per_s")  # on the progress bar


class Report:
    """Writer of a run's figures; a resumed run drops the lines after its checkpoint.

    Only the first process writes; on the others every method does nothing.
    """

    def __init__(self, run_dir: pathlib.Path, start: int, writes: bool = True) -> None:
        """Opens the files and keeps the lines up to step `start`.

        Args:
          run_dir: Folder of the run.
          start: Step that the run continues from.
          writes: Whether this process writes.
        """
        self.last: dict[str, Any] = {"seconds": 0.0}  # newest value of each figure up to `start`
        self._writes = writes
        if not writes:
            return
        from tensorboardX import SummaryWriter  # takes seconds: imports PyTorch if it is installed

        path = run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= start]
        for line in kept[-2:]:  # figures of the last step, and of its samples if there are any
            self.last |= json.loads(line)
        self._before = self.last["seconds"]
        self._file = path.open("w")
        self._file.writelines(f"{line}\n" for line in kept)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, seconds: float, values: dict[str, Any]) -> None:
        """Writes figures of a step; numbers also go to TensorBoard.

        Args:
          step: Updates done.
          seconds: Wall-clock seconds since this process began; those of earlier processes of the
            run are added.
          values: Figures by name.
        """
        if not self._writes:
            return
        line = {"step": step, "seconds": round(self._before + seconds, 2), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float | int):
                self._board.add_scalar(name, value, step)

    def samples(self, step: int, seconds: float, values: dict[str, Any]) -> None:
        """Writes samples to TensorBoard, and numbers among them as `write` does.

        Args:
          step: Updates done.
          seconds: See `write`.
          values: What `Objective.samples` returned: numbers, PCM, images, figures.
        """
        if not self._writes:
            return
        numbers = {}
        for name, value in values.items():
            if isinstance(value, float | int):
                numbers[name] = float(value)
            elif not isinstance(value, np.ndarray):
                self._board.add_figure(name, value, step)
            elif value.ndim == 1:
                self._board.add_audio(name, value[:, None], step, sample_rate=_RATE)
            else:
                self._board.add_image(name, value, step, dataformats="HWC")
        if numbers:
            self.write(step, seconds, numbers)
        self._board.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._writes:
            self._file.close()
            self._board.close()


def brief(values: Mapping[str, Any]) -> dict[str, str]:
    """Numbers for the progress bar, as text of three digits."""
    return {
        name: f"{value:.3g}"
        for name, value in values.items()
        if isinstance(value, float | int) and name not in _HIDDEN
    }


def speeds(
    config: TrainConfig, batch: Mapping[str, jax.Array], parts: Mapping[str, Any], step_s: float
) -> dict[str, float]:
    """Speed of training and memory in use.

    Args:
      config: Configuration of the run.
      batch: Arrays of a whole batch, such as text int32[b, n]; int16[b, samples] is audio.
      parts: Parts of the model that are trained, by name.
      step_s: Duration of a step, s.

    Returns:
      audio_s_per_s: Seconds of audio per second, counting one side of the conversations.
      positions_per_s: Positions of the transformer per second.
      mfu: Share of the devices' FLOP/s that the step's matrix products use; left out where the
        device is not known, the run freezes parts, or `training.flops.train_flops` does not count
        the trained parts.
      memory_gb: Largest memory that a device of this process has held, GB; left out where the
        device does not report it.
    """
    found = {}
    tracks = [leaf for leaf in batch.values() if leaf.dtype == np.int16]
    if tracks:
        found["audio_s_per_s"] = tracks[0].size / config.model.audio.sample_rate / step_s
    if "text" in batch and ("backbone" in parts or config.frozen):
        positions = batch["text"].size * turn_positions(config.model, text=False)
        beside = (batch[name].size for name in ("arrived", "reasoning") if name in batch)
        found["positions_per_s"] = (positions + sum(beside)) / step_s
    leaf = next(iter(batch.values()))
    peak = sum(map(_peak, leaf.sharding.device_set))
    flops = _step_flops(config, batch, parts)
    if peak and flops:
        found["mfu"] = flops / step_s / peak
    held = [device.memory_stats() or {} for device in jax.local_devices()]
    memory = max(stats.get("peak_bytes_in_use", 0) for stats in held)
    if memory:
        found["memory_gb"] = memory / 1e9
    return found


def _peak(device: jax.Device) -> float:
    """FLOP/s of a device, 0 where it is not known."""
    chip = chip_of_kind(device.device_kind)
    return chip.device_flops_per_s if chip else 0.0


def _step_flops(
    config: TrainConfig, batch: Mapping[str, jax.Array], parts: Mapping[str, Any]
) -> float:
    """FLOPs of a training step's matrix products, without those for arriving text; 0 if unknown."""
    if "text" not in batch or config.frozen:  # how much of the backward pass runs is not counted
        return 0.0
    sessions, turns = batch["text"].shape
    counted = train_flops(config.model, turns, text=False)
    mine = [
        count
        for name, count in counted.items()
        if ("speech" if name.startswith("speech") else "backbone") in parts
    ]
    return sessions * sum(mine)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut off when the run was killed
        return float("inf")
