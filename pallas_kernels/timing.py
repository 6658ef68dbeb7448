"""Times alternating candidates, and the rows of their results."""

import dataclasses
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Candidate = Callable[[], object]  # runs one or several calls and waits until they end


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement."""

    op: str
    implementation: str
    platform: str
    preset: str
    tokens: int
    dtype: str
    time_us: float  # of one call
    bytes: int | None  # weights of the distinct chosen experts
    share: float | None  # share of the copy bandwidth, or of the FLOP/s of a large product
    ratio: float  # time / time of this package's implementation in the same run
    label: str  # where it was measured


@dataclasses.dataclass(frozen=True)
class Case:
    """Common properties of candidates that alternate."""

    op: str
    ours: str  # the candidate whose time is the denominator of `Row.ratio`
    preset: str
    tokens: int
    dtype: str
    calls: int  # in one run of a candidate
    floor: float | None = None  # seconds of a call at the full bandwidth or FLOP/s
    bytes: int | None = None  # weights of the distinct chosen experts

    def rows(self, candidates: Mapping[str, Candidate], repetitions: int) -> list[Row]:
        """Times the candidates.

        Args:
          candidates: Candidates by name.
          repetitions: Runs of each candidate.

        Returns:
          One row for each candidate.
        """
        times = {n: t / self.calls for n, t in median_times(candidates, repetitions).items()}
        return [
            Row(
                self.op,
                name,
                jax.default_backend(),
                self.preset,
                self.tokens,
                self.dtype,
                round(seconds * 1e6, 3),
                self.bytes,
                round(self.floor / seconds, 4) if self.floor else None,
                round(seconds / times[self.ours], 4),
                f"measured on {jax.default_backend().upper()} ({_device()})",
            )
            for name, seconds in times.items()
        ]


def _device() -> str:
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def median_times(candidates: Mapping[str, Candidate], repetitions: int) -> dict[str, float]:
    """Times candidates that run in turn.

    Args:
      candidates: Candidates by name; each first runs once without being timed.
      repetitions: Timed runs of each candidate.

    Returns:
      Median seconds of one run, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(repetitions):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(each)) for name, each in times.items()}


def in_one_program(call: Callable[..., Any], calls: int, *arguments: jax.Array) -> Candidate:
    """Calls `call(i, *arguments)` for i = 0 .. calls - 1 in one compiled program.

    The time to start a program is then small relative to the time of the calls.

    Args:
      call: A function of the index int32[] and the arguments to a tree of arrays.
      calls: Number of calls.
      *arguments: Of any shapes [...] and dtypes, such as bfloat16 or int32.

    Returns:
      The candidate.
    """
    shapes = jax.eval_shape(call, jnp.int32(0), *arguments)

    @jax.jit
    def run(*arguments: jax.Array) -> jax.Array:
        zeros = jax.tree.map(lambda out: jnp.zeros(out.shape, out.dtype), shapes)

        def body(i: jax.Array, _: object) -> jax.Array:
            # The barrier keeps XLA from moving loop-invariant operations out of the loop.
            return call(*jax.lax.optimization_barrier((i, *arguments)))

        return jax.lax.fori_loop(0, calls, body, zeros)

    return lambda: jax.block_until_ready(run(*arguments))
