"""What a run writes while it trains: `metrics.jsonl` and TensorBoard."""

import json
import pathlib
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

_RATE = 16_000  # Hz, of audio samples


class Report:
    """Writer of a run's figures; a resumed run drops what came after its checkpoint."""

    def __init__(self, run_dir: pathlib.Path, start: int) -> None:
        """Opens the files in `run_dir` and keeps the lines up to step `start`."""
        path = run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= start]
        self._before = json.loads(kept[-1])["seconds"] if kept else 0.0
        self._file = path.open("w")
        self._file.writelines(f"{line}\n" for line in kept)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, seconds: float, values: dict[str, Any]) -> None:
        """Writes figures of a step; those that are numbers go to TensorBoard as well.

        `seconds` is wall-clock time of this call; what earlier calls took is added.
        """
        line = {"step": step, "seconds": round(self._before + seconds, 2), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float | int):
                self._board.add_scalar(name, value, step)

    def samples(self, step: int, seconds: float, values: dict[str, Any]) -> None:
        """Writes what `Objective.samples` returned: numbers, PCM, images, figures."""
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

    def brief(self, values: dict[str, Any]) -> dict[str, str]:
        """The figures that fit a progress bar."""
        skipped = ("learning_rate",)
        return {
            name: f"{value:.3g}"
            for name, value in values.items()
            if isinstance(value, float | int) and name not in skipped
        }

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut off when the run was killed
        return float("inf")
