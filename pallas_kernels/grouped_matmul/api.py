"""`grouped_matmul`: validation, choice of the implementation, differentiation and batching."""

import functools
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import implementation as choice
from pallas_kernels.grouped_matmul import kernel_gpu, kernel_tpu, kernel_xla, reference, visits
from pallas_kernels.varying import vary, varying

_KERNELS: dict[str, ModuleType] = {"tpu": kernel_tpu, "gpu": kernel_gpu, "xla": kernel_xla}
_DTYPES = (jnp.bfloat16, jnp.float32)


def grouped_matmul(
    lhs: jax.Array,
    rhs: jax.Array,
    group_sizes: jax.Array,
    *,
    implementation: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Multiplies each row by the weights of its group.

    The first group_sizes[0] rows belong to group 0, the next group_sizes[1] rows to group 1, and so
    on. Rows past the sum belong to no group: their results and gradients are zero, even if they are
    NaN. Invalid sizes in a traced array are clipped: a negative size counts as 0, and groups end at
    the last row. Batch-invariant: a row's result does not depend, bit for bit, on the other rows,
    on their number or on its position. Differentiable in lhs and rhs; `vmap` runs the batch in
    sequence.

    Args:
      lhs: bfloat16 or float32 [m, k], rows sorted by group; any m.
      rhs: [e, k, n] in lhs' dtype, the groups' weights.
      group_sizes: int32[e], rows of each group.
      implementation: "tpu", "gpu", "xla", "reference", or None for the platform's best.
      interpret: Runs a Pallas kernel in interpret mode, on any platform.

    Returns:
      [m, n] in lhs' dtype, summed in float32.

    Raises:
      ValueError: Shapes or dtypes do not fit each other, concrete group sizes are negative or have
        a sum greater than m, or the implementation cannot run.
    """
    _check(lhs, rhs, group_sizes)
    sizes = jnp.asarray(group_sizes)
    name = choice.pick("grouped_matmul", implementation, _refusals(lhs, rhs, interpret))
    # Inside `shard_map`, all operands are cast to vary over the axes that any of them varies over.
    # JAX then inserts the sums over replicas that the gradients need.
    axes = varying(lhs, rhs, sizes)
    lhs, rhs, sizes = (vary(x, axes) for x in (lhs, rhs, sizes))
    starts, ends = visits.group_bounds(sizes, lhs.shape[0])
    if name == "reference":
        return reference.grouped_matmul(lhs, rhs, starts, ends)
    return _grouped(name, interpret, lhs, rhs, starts, ends)


def _check(lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array) -> None:
    if lhs.ndim != 2:
        raise ValueError(f"lhs has shape {lhs.shape}, wanted [m, k]; flatten it to rows")
    if rhs.ndim != 3 or rhs.shape[1] != lhs.shape[1]:
        raise ValueError(
            f"rhs has shape {rhs.shape}, wanted [e, k, n] with k {lhs.shape[1]} as lhs has"
        )
    if lhs.dtype not in _DTYPES or rhs.dtype != lhs.dtype:
        raise ValueError(
            f"lhs is {lhs.dtype} and rhs {rhs.dtype}, wanted both bfloat16 or both float32; cast"
        )
    if group_sizes.shape != rhs.shape[:1] or group_sizes.dtype != jnp.int32:
        raise ValueError(
            f"group_sizes is {group_sizes.dtype}{list(group_sizes.shape)}, wanted "
            f"int32[{rhs.shape[0]}], a size for each group of rhs"
        )
    if isinstance(group_sizes, jax.core.Tracer):
        return
    known = np.asarray(jax.device_get(group_sizes)).astype(np.int64)
    if (known < 0).any() or known.sum() > lhs.shape[0]:
        raise ValueError(
            f"group_sizes has least {known.min()} and sum {known.sum()}, wanted none negative and "
            f"at most the {lhs.shape[0]} rows of lhs; count the rows of each group"
        )


def _refusals(lhs: jax.Array, rhs: jax.Array, interpret: bool) -> dict[str, str | None]:
    _, k, n = rhs.shape
    platform = choice.platform()
    refusals: dict[str, str | None] = {}
    for name in ("tpu", "gpu"):
        if interpret or platform == name:
            refusals[name] = _KERNELS[name].refusal(k, n, lhs.dtype.itemsize, interpret)
        else:
            refusals[name] = f"the platform is {platform}; interpret=True runs it on any"
    return {**refusals, "xla": None, "reference": None}


def _matmul(
    name: str,
    interpret: bool,
    transpose_rhs: bool,
    lhs: jax.Array,
    rhs: jax.Array,
    starts: jax.Array,
    ends: jax.Array,
) -> jax.Array:
    n = rhs.shape[1] if transpose_rhs else rhs.shape[2]
    if 0 in lhs.shape or 0 in rhs.shape:
        return vary(jnp.zeros((lhs.shape[0], n), lhs.dtype), varying(lhs))
    kernel = functools.partial(
        _KERNELS[name].matmul, transpose_rhs=transpose_rhs, interpret=interpret
    )
    return jax.custom_batching.sequential_vmap(kernel)(lhs, rhs, starts, ends)


def _outer(
    name: str,
    interpret: bool,
    lhs: jax.Array,
    grad: jax.Array,
    starts: jax.Array,
    ends: jax.Array,
) -> jax.Array:
    shape = (starts.shape[0], lhs.shape[1], grad.shape[1])
    if 0 in shape or lhs.shape[0] == 0:
        return vary(jnp.zeros(shape, lhs.dtype), varying(lhs))
    kernel = functools.partial(_KERNELS[name].outer, interpret=interpret)
    return jax.custom_batching.sequential_vmap(kernel)(lhs, grad, starts, ends)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _grouped(
    name: str,
    interpret: bool,
    lhs: jax.Array,
    rhs: jax.Array,
    starts: jax.Array,
    ends: jax.Array,
) -> jax.Array:
    with jax.named_scope("grouped_matmul"):
        return _matmul(name, interpret, False, lhs, rhs, starts, ends)


def _forward(
    name: str,
    interpret: bool,
    lhs: jax.Array,
    rhs: jax.Array,
    starts: jax.Array,
    ends: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _grouped(name, interpret, lhs, rhs, starts, ends), (lhs, rhs, starts, ends)


def _backward(
    name: str, interpret: bool, saved: tuple[jax.Array, ...], grad: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    lhs, rhs, starts, ends = saved
    with jax.named_scope("grouped_matmul_backward"):
        to_lhs = _matmul(name, interpret, True, grad, rhs, starts, ends)
        to_rhs = _outer(name, interpret, lhs, grad, starts, ends)
    return to_lhs, to_rhs, None, None


_grouped.defvjp(_forward, _backward)
