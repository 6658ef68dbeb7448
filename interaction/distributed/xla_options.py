"""Options of XLA's compiler that suit the machine."""

import functools

import jax
import jax.numpy as jnp

# Off: Eigen multiplied 128x192 by 192x384 at 153 GFLOP/s, YNNPACK at 103 (one AVX-512 core).
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
# Off: sums in two passes. The step's are over a few hundred numbers; it takes 2% less without.
_CPU_STEP_OPTIONS = {**_CPU_OPTIONS, "xla_disable_hlo_passes": "tree_reduction_rewriter"}


def compiler_options(platform: str) -> dict[str, str]:
    """For `jax.jit` of training on a platform; {} where there is nothing to choose."""
    return _accepted(tuple(_CPU_OPTIONS.items())) if platform == "cpu" else {}


def step_compiler_options(platform: str) -> dict[str, str]:
    """For `jax.jit` of the step on a platform; {} where there is nothing to choose."""
    return _accepted(tuple(_CPU_STEP_OPTIONS.items())) if platform == "cpu" else {}


@functools.cache
def _accepted(options: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The options if XLA knows them, otherwise none."""
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            jax.jit(jnp.negative, compiler_options=dict(options)).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(options)
