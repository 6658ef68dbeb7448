"""Where a run's wall-clock goes, over all of its restarts.

Goodput is the share of the time since the run first began that was spent on steps that count. The
rest went on starting and compiling, waiting for data, saving, showing samples, on steps that were
done again because the run was killed after its last checkpoint, and on standing still.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

_FILE = "goodput.json"
CAUSES = ("compile", "data", "save", "samples")


class Goodput:
    """A clock of steps; `goodput.json` keeps its totals, in seconds."""

    def __init__(self, run_dir: pathlib.Path, last: Mapping[str, Any], writes: bool) -> None:
        """Starts the clock.

        Args:
          run_dir: Folder of the run.
          last: Figures that were logged with the checkpoint that the run goes on from.
          writes: Whether this process keeps the file.
        """
        self._path, self._writes = run_dir / _FILE, writes
        self.good = float(last.get("good_s", 0.0))
        try:
            kept = json.loads(self._path.read_text())
        except (OSError, ValueError):
            kept = {}
        self._began = float(kept.get("began", time.time() - last.get("seconds", 0.0)))
        self._totals = {cause: float(kept.get(cause, 0.0)) for cause in CAUSES}
        self._window = dict.fromkeys(CAUSES, 0.0)
        self._mark = time.monotonic()

    @contextlib.contextmanager
    def lost(self, cause: str | None) -> Iterator[None]:
        """Time inside does not count as time of steps, unless there is no cause."""
        start = time.monotonic()
        try:
            yield
        finally:
            if cause:
                self._window[cause] += time.monotonic() - start

    def figures(self, steps: int) -> dict[str, float]:
        """Closes a window of `steps` steps.

        Returns:
          step_s: Seconds of a step, those that it waited for data among them.
          data_share: Of these, the share that it waited.
          goodput: Share of the time since the run began.
          good_s: Seconds of steps that count.
        """
        worked, waited = self._close_window()
        wall = max(time.time() - self._began, 1e-9)
        return {
            "step_s": (worked + waited) / steps,
            "data_share": waited / max(worked + waited, 1e-9),
            "goodput": min(self.good / wall, 1.0),
            "good_s": self.good,
        }

    def close(self) -> None:
        """Keeps the totals."""
        self._close_window()

    def _close_window(self) -> tuple[float, float]:
        """Adds a window to the totals; returns its seconds of steps and of waiting for data."""
        now = time.monotonic()
        worked = max(now - self._mark - sum(self._window.values()), 0.0)
        waited = self._window["data"]
        self.good += worked
        for cause, seconds in self._window.items():
            self._totals[cause] += seconds
        self._window, self._mark = dict.fromkeys(CAUSES, 0.0), now
        if self._writes:
            self._keep()
        return worked, waited

    def _keep(self) -> None:
        wall = time.time() - self._began
        other = max(wall - self.good - sum(self._totals.values()), 0.0)
        seconds = {"wall": wall, "good": self.good, **self._totals, "other": other}
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        fresh = self._path.with_suffix(".tmp")
        fresh.write_text(json.dumps({"began": self._began, **rounded}, indent=2) + "\n")
        os.replace(fresh, self._path)
