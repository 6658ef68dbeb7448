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
from collections.abc import Iterator

_FILE = "goodput.json"
CAUSES = ("compile", "data", "save", "samples")


class Goodput:
    """A clock of steps; `goodput.json` keeps its totals, in seconds."""

    def __init__(self, run_dir: pathlib.Path, good: float, spent: float, writes: bool) -> None:
        """Starts the clock.

        Args:
          run_dir: Folder of the run.
          good: Seconds of steps up to the checkpoint that the run goes on from.
          spent: Seconds that the run took up to it, used where the file is missing.
          writes: Whether this process keeps the file.
        """
        self._path, self._writes, self.good = run_dir / _FILE, writes, good
        try:
            kept = json.loads(self._path.read_text())
        except (OSError, ValueError):
            kept = {}
        self._began = float(kept.get("began", time.time() - spent))
        self._totals = {cause: float(kept.get(cause, 0.0)) for cause in CAUSES}
        self._window = dict.fromkeys(CAUSES, 0.0)
        self._mark = time.monotonic()

    @contextlib.contextmanager
    def lost(self, cause: str) -> Iterator[None]:
        """Time inside does not count as time of steps."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._window[cause] += time.monotonic() - start

    def figures(self, steps: int) -> dict[str, float]:
        """Closes a window of `steps` steps: seconds of a step, shares, seconds that count."""
        now = time.monotonic()
        elapsed = now - self._mark
        worked = max(elapsed - sum(self._window.values()), 0.0)
        waited = self._window["data"]
        self.good += worked
        for cause, seconds in self._window.items():
            self._totals[cause] += seconds
        self._window = dict.fromkeys(CAUSES, 0.0)
        self._mark = now
        wall = max(time.time() - self._began, 1e-6)
        self._keep(wall)
        return {
            "step_s": (worked + waited) / steps,
            "data_share": waited / max(worked + waited, 1e-9),
            "goodput": min(self.good / wall, 1.0),
            "good_s": self.good,
        }

    def _keep(self, wall: float) -> None:
        if not self._writes:
            return
        other = wall - self.good - sum(self._totals.values())
        figures = {"wall": wall, "good": self.good, **self._totals, "other": max(other, 0.0)}
        rounded = {name: round(value, 3) for name, value in figures.items()}
        fresh = self._path.with_suffix(".tmp")
        fresh.write_text(json.dumps({"began": self._began, **rounded}, indent=2) + "\n")
        os.replace(fresh, self._path)
