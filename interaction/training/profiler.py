"""Traces of a running run: `touch <run_dir>/profile`.

The next steps are traced, on every host, into `<run_dir>/profiles`, which TensorBoard and Perfetto
show.
"""

import pathlib

import jax

_STEPS = 5  # that a trace holds


class Profiler:
    """Starts and stops traces between steps."""

    def __init__(self, run_dir: pathlib.Path) -> None:
        """Looks for the file "profile" in `run_dir`."""
        self._asks, self._folder = run_dir / "profile", run_dir / "profiles"
        self._left = 0

    def asked(self) -> bool:
        """Whether somebody made the file."""
        return self._left == 0 and self._asks.exists()

    def step(self, starts: bool, *results: object) -> None:
        """To be called after each step: starts a trace, or stops one that is long enough.

        Args:
          starts: Whether the processes agreed to start one.
          results: Of the step, which are waited for before a trace ends.
        """
        if self._left == 1:
            self.close(*results)
        elif self._left:
            self._left -= 1
        elif starts:
            self._asks.unlink(missing_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._left = _STEPS

    def close(self, *results: object) -> None:
        """Ends a trace that is being made."""
        if self._left:
            jax.block_until_ready(results)
            jax.profiler.stop_trace()
            self._left = 0
