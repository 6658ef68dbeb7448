"""Options of XLA's compiler for the machine."""

import functools

import jax
import jax.numpy as jnp

# Off, since Eigen is faster: 128x192 by 192x384 ran at 153 GFLOP/s, with YNNPACK at 103, on one
# AVX-512 core.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
# Off: sums in two passes. The step sums a few hundred numbers at a time; it is 2% faster without.
_CPU_STEP_OPTIONS = {**_CPU_OPTIONS, "xla_disable_hlo_passes": "tree_reduction_rewriter"}


def compiler_options(platform: str) -> dict[str, str]:
    """Compiler options of training for `jax.jit` on a platform; {} where there are none."""
    return _accepted(tuple(_CPU_OPTIONS.items())) if platform == "cpu" else {}


def step_compiler_options(platform: str) -> dict[str, str]:
    """Compiler options of the step for `jax.jit` on a platform; {} where there are none."""
    return _accepted(tuple(_CPU_STEP_OPTIONS.items())) if platform == "cpu" else {}


@functools.cache
def _accepted(options: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The options if XLA accepts them, otherwise {}."""
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            jax.jit(jnp.negative, compiler_options=dict(options)).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(options)
