"""`gather_gemv`: validation, choice of the implementation, differentiation and batching."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.gather_gemv import kernel_gpu, kernel_tpu
from pallas_kernels.gather_gemv.kernel_gpu import gather_gemv_gpu
from pallas_kernels.gather_gemv.kernel_tpu import gather_gemv_tpu
from pallas_kernels.gather_gemv.kernel_xla import gather_gemv_xla
from pallas_kernels.gather_gemv.reference import Scales, reference
from pallas_kernels.implementation import pick, platform
from pallas_kernels.varying import vary, varying

_FLOATS = ("bfloat16", "float32")
_EIGHT_BITS = ("int8", "float8_e4m3fn")


def gather_gemv(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    scales: Scales | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Applies the SwiGLU experts (arXiv:2002.05202) that each token chose, and sums them weighted.

    out[t] = sum over e ascending of weight[t, e] * down_e(silu(gate_e(x[t])) * up_e(x[t])).
    Products and the sum are in float32; the hidden values are rounded to x's dtype.
    Batch-invariant: a token's result does not depend, bit for bit, on the other tokens, their
    number or their order. Differentiable, except in 8-bit weights, whose gradient is zero.
    `jax.vmap` over sessions makes one call with the tokens of all sessions.

    Args:
      x: bfloat16 or float32 [t, d], the tokens; any t, optimised for 1 to 128.
      experts: int32[t, k], the experts that each token chose. An id outside 0 .. e - 1 chooses no
        expert; the weights of a repeated id are added.
      weights: float32[t, k], the router's weights.
      gate: [e, d, f] in x's dtype, int8 or float8_e4m3fn.
      up: [e, d, f] in gate's dtype.
      down: [e, f, d] in gate's dtype.
      scales: Scales of 8-bit weights, which require them; None for others.
      implementation: "tpu", "gpu", "xla", "reference", or None for the platform's best.
      interpret: Runs a Pallas kernel in interpret mode, on any platform.

    Returns:
      [t, d] in x's dtype.

    Raises:
      ValueError: Shapes or dtypes do not fit each other, or the implementation cannot run.
    """
    _check_tokens(x, experts, weights)
    _check_weights(x, gate, up, down, scales)
    name = pick("gather_gemv", implementation, _refusals(x, gate, interpret))
    if x.size == 0 or experts.size == 0 or gate.size == 0:
        return jnp.zeros_like(x)
    arguments = (x, experts, weights, gate, up, down, scales)
    # Inside `shard_map`, all operands are cast to vary over the axes that any of them varies over.
    # JAX then inserts the sums over replicas that the gradients need.
    axes = varying(*jax.tree.leaves(arguments))
    return _apply(name, interpret, *jax.tree.map(lambda a: vary(a, axes), arguments))


def _check_tokens(x: jax.Array, experts: jax.Array, weights: jax.Array) -> None:
    if x.ndim != 2 or x.dtype.name not in _FLOATS:
        raise ValueError(
            f"gather_gemv: x is {x.dtype.name}{list(x.shape)}, wanted bfloat16 or float32 [t, d]; "
            "cast it, or use jax.vmap over leading axes"
        )
    if experts.ndim != 2 or len(experts) != len(x) or experts.dtype != jnp.int32:
        raise ValueError(
            f"gather_gemv: experts is {experts.dtype.name}{list(experts.shape)}, wanted "
            f"int32[{len(x)}, k], the ids that each token of x chose"
        )
    if weights.shape != experts.shape or weights.dtype != jnp.float32:
        raise ValueError(
            f"gather_gemv: weights is {weights.dtype.name}{list(weights.shape)}, wanted "
            f"float32{list(experts.shape)}, one for each id of experts"
        )


def _check_weights(
    x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, scales: Scales | None
) -> None:
    if gate.ndim != 3 or gate.shape[1] != x.shape[1]:
        raise ValueError(
            f"gather_gemv: gate has shape {list(gate.shape)}, wanted [e, d={x.shape[1]}, f]"
        )
    allowed = (x.dtype.name, *_EIGHT_BITS)
    if gate.dtype.name not in allowed:
        raise ValueError(
            f"gather_gemv: gate is {gate.dtype.name}, wanted x's {x.dtype.name} or one of "
            f"{', '.join(_EIGHT_BITS)}; cast the weights or x"
        )
    e, d, f = gate.shape
    for field, weight, shape in (("up", up, (e, d, f)), ("down", down, (e, f, d))):
        if weight.shape != shape or weight.dtype != gate.dtype:
            raise ValueError(
                f"gather_gemv: {field} is {weight.dtype.name}{list(weight.shape)}, wanted "
                f"{gate.dtype.name}{list(shape)} beside gate's {list(gate.shape)}"
            )
    if (scales is not None) != (gate.dtype.name in _EIGHT_BITS):
        raise ValueError(
            f"gather_gemv: scales={'None' if scales is None else 'given'} with {gate.dtype.name} "
            "weights; 8-bit weights need scales, others take none"
        )
    if scales is None:
        return
    for field, scale, shape in zip(Scales._fields, scales, ((e, f), (e, f), (e, d)), strict=True):
        if scale.shape != shape or scale.dtype != jnp.float32:
            raise ValueError(
                f"gather_gemv: scales.{field} is {scale.dtype.name}{list(scale.shape)}, wanted "
                f"float32{list(shape)}, one for each output channel"
            )


def _refusals(x: jax.Array, gate: jax.Array, interpret: bool) -> dict[str, str | None]:
    here = platform()

    def pallas(wanted: str, refusal: str | None) -> str | None:
        if not interpret and here != wanted:
            return f"it runs on {wanted}, this is {here} (interpret=True runs it anywhere)"
        return refusal

    return {
        "tpu": pallas("tpu", kernel_tpu.refusal(x, gate)),
        "gpu": pallas("gpu", kernel_gpu.refusal(x, gate)),
        "xla": None,
        "reference": None,
    }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _apply(name: str, interpret: bool, *arguments) -> jax.Array:  # noqa: ANN002
    @jax.custom_batching.custom_vmap
    def run(*arguments):  # noqa: ANN002, ANN202
        if name == "tpu":
            return gather_gemv_tpu(*arguments, interpret=interpret)
        if name == "gpu":
            return gather_gemv_gpu(*arguments, interpret=interpret)
        return (gather_gemv_xla if name == "xla" else reference)(*arguments)

    @run.def_vmap
    def over_sessions(axis_size, batched, *arguments):  # noqa: ANN001, ANN002, ANN202
        if any(jax.tree.leaves(batched[3:])):  # batched weights: no call for all tokens

            def one(row: jax.Array) -> jax.Array:
                own = jax.tree.map(lambda a, b: a[row] if b else a, arguments, tuple(batched))
                return run(*own)

            return jax.lax.map(one, jnp.arange(axis_size)), True
        per_token = [
            (a if b else jnp.broadcast_to(a, (axis_size, *a.shape))).reshape(-1, a.shape[-1])
            for a, b in zip(arguments[:3], batched[:3], strict=True)
        ]
        out = run(*per_token, *arguments[3:])
        return out.reshape(axis_size, -1, out.shape[-1]), True

    return run(*arguments)


def _forward(name: str, interpret: bool, *arguments):  # noqa: ANN002, ANN202
    return _apply(name, interpret, *arguments), arguments


def _backward(name: str, interpret: bool, arguments, cotangent):  # noqa: ANN001, ANN202
    """The gradient of the reference, in float32 and rounded once.

    It is meant for small sizes; training uses `grouped_matmul`.
    """
    x, experts, weights, *matrices, scales = arguments
    fixed = matrices if scales is not None else ()

    def wide(tree):  # noqa: ANN001, ANN202
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

    def values(x, weights, scales, matrices):  # noqa: ANN001, ANN202
        gate, up, down = fixed or matrices
        return reference(x, experts, weights, gate, up, down, scales)

    learnt = None if fixed else matrices
    _, pull = jax.vjp(values, wide(x), weights, scales, wide(learnt))
    d_x, d_weights, d_scales, d_matrices = pull(wide(cotangent))
    d_x, d_matrices = jax.tree.map(
        lambda d, own: d.astype(own.dtype), (d_x, d_matrices), (x, learnt)
    )
    return d_x, None, d_weights, *(d_matrices or (None, None, None)), d_scales


_apply.defvjp(_forward, _backward)
