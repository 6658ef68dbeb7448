"""Options of XLA's compiler that suit the machine."""

import functools

import jax
import jax.numpy as jnp

# Off: Eigen multiplied 128x192 by 192x384 at 153 GFLOP/s, YNNPACK at 103 (one AVX-512 core).
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


@functools.cache
def compiler_options() -> dict[str, str]:
    """For `jax.jit`; {} where there is nothing to choose, as in an XLA without these options."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(jnp.negative, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return _CPU_OPTIONS
