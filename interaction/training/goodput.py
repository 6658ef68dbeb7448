"""Wall-clock time of a run by cause, over all of its restarts.

Goodput is the share of the time since the run first began that was spent on steps that count. The
other time was spent on starting and compiling, waiting for data, saving, making samples, repeating
steps after a kill, and while no process ran.
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
    """Measures the time of steps and of other causes; stores the totals in `goodput.json`, s."""

    def __init__(self, run_dir: pathlib.Path, last: Mapping[str, Any], writes: bool) -> None:
        """Starts the clock.

        Args:
          run_dir: Folder of the run.
          last: Figures that were logged with the checkpoint that the run continues from.
          writes: Whether this process writes the file.
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
        """Counts the time inside under `cause`, not as time of steps; None counts it as steps."""
        start = time.monotonic()
        try:
            yield
        finally:
            if cause:
                self._window[cause] += time.monotonic() - start

    def figures(self, steps: int) -> dict[str, float]:
        """Ends a window of `steps` steps.

        Returns:
          step_s: Duration of a step including its wait for data, s.
          data_share: Share of that duration spent waiting for data.
          goodput: Share of the time since the run began that was spent on steps that count.
          good_s: Time of steps that count, s.
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
        """Ends the last window and stores the totals."""
        self._close_window()

    def _close_window(self) -> tuple[float, float]:
        """Adds a window to the totals; returns its time of steps and of waiting for data, s."""
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
