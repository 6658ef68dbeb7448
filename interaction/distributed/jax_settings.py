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
