"""Profiler traces of a run in progress: `touch <run_dir>/profile`.

Every host then traces the next steps into `<run_dir>/profiles`, for TensorBoard or Perfetto.
"""

import pathlib

import jax

_STEPS = 5  # steps of a trace


class Profiler:
    """Starts and stops traces between steps."""

    def __init__(self, run_dir: pathlib.Path) -> None:
        """Watches for the file "profile" in `run_dir`."""
        self._trigger, self._folder = run_dir / "profile", run_dir / "profiles"
        self._left = 0

    def requested(self) -> bool:
        """Whether the file exists and no trace is in progress."""
        return self._left == 0 and self._trigger.exists()

    def step(self, starts: bool, *results: object) -> None:
        """Starts a trace, or ends one that is long enough; call it after each step.

        Args:
          starts: Whether the processes agreed to start a trace.
          *results: Results of the step; a trace ends when they are computed.
        """
        if self._left == 1:
            self.close(*results)
        elif self._left:
            self._left -= 1
        elif starts:
            self._trigger.unlink(missing_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._left = _STEPS

    def close(self, *results: object) -> None:
        """Ends a trace in progress, when `results` are computed."""
        if self._left:
            jax.block_until_ready(results)
            jax.profiler.stop_trace()
            self._left = 0
