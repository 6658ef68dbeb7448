"""The JAX settings under which the models' programs are traced and called.

A program of the caller may have set others: 64-bit numbers, strict promotion, or a guard against
transfers. They keep them; the methods of a model hold the settings below while they run, in their
own thread.
"""

import contextlib
from collections.abc import Generator

import jax


@contextlib.contextmanager
def model_settings() -> Generator[None]:
    """JAX's own defaults, for a `with` block or as a decorator of a function."""
    with (
        jax.enable_x64(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.default_prng_impl("threefry2x32"),
        jax.default_matmul_precision(None),
        jax.transfer_guard("allow"),
    ):
        yield


def mixes_up_collectives(platform: str, devices: int) -> bool:
    """Whether a program that was read from JAX's compilation cache may run its collectives wrongly.

    Of a program for several CPU devices that jaxlib 0.10.2 read from the cache, a collective may
    overtake another one: the result is NaN, or the process waits and ends.
    """
    return platform == "cpu" and devices > 1


def refuse_mixed_collectives(platform: str, devices: int) -> None:
    """Refuses a compilation cache of the caller for programs that `mixes_up_collectives` names.

    Raises:
      RuntimeError: JAX would keep the programs, or read them.
    """
    folder = jax.config.jax_compilation_cache_dir  # pyrefly: ignore[missing-attribute]
    kept = folder and jax.config.jax_enable_compilation_cache  # pyrefly: ignore[missing-attribute]
    if kept and mixes_up_collectives(platform, devices):
        raise RuntimeError(
            f"jax_compilation_cache_dir: got {folder!r}, wanted None for a mesh of {devices} CPU "
            "devices, since XLA mixes up the collectives of programs that it reads from a cache; "
            "set JAX_ENABLE_COMPILATION_CACHE=false"
        )
