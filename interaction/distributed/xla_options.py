"""Options of XLA's compiler for the machine."""

import functools

import jax
import jax.numpy as jnp

_CPU_OPTIONS = {
    # Off, since Eigen is faster: 128x192 by 192x384 ran at 153 GFLOP/s, with YNNPACK at 103, on one
    # AVX-512 core.
    # It is also needed for bits: YNNPACK multiplies few rows and many in different orders.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # Excess precision would leave out a rounding to bfloat16 where the number is used at once, in
    # some programs and not in others.
    "xla_allow_excess_precision": False,
}


def compiler_options(platform: str) -> dict[str, str | bool]:
    """Compiler options for `jax.jit` on a platform; {} where there are none.

    Training and the step have the same: others change the order of sums, and so bits.
    """
    return _accepted(tuple(_CPU_OPTIONS.items())) if platform == "cpu" else {}


@functools.cache
def _accepted(options: tuple[tuple[str, str | bool], ...]) -> dict[str, str | bool]:
    """The options if XLA accepts them, otherwise {}."""
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            jax.jit(jnp.negative, compiler_options=dict(options)).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(options)
