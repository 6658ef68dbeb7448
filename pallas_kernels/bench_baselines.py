"""Other implementations of the ops, with which `bench` compares the kernels.

None of them is guaranteed to be batch-invariant: a token's result may depend on other tokens.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.gather_gemv.active import active_experts
from pallas_kernels.gather_gemv.reference import swiglu_expert


def gather_gemv_all_rows(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """`gather_gemv` as a loop over the chosen experts, with products of all tokens at once.

    Args:
      x: bfloat16 or float32 [t, d], the tokens.
      experts: int32[t, k], the experts that each token chose, all in 0 .. e - 1.
      weights: float32[t, k], the router's weights.
      gate: [e, d, f] in x's dtype.
      up: [e, d, f] in x's dtype.
      down: [e, f, d] in x's dtype.

    Returns:
      [t, d] in x's dtype.
    """
    active, count = active_experts(experts, len(gate))

    def add(place: jax.Array, total: jax.Array) -> jax.Array:
        expert = active[place]
        share = jnp.sum(jnp.where(experts == expert, weights, 0.0), axis=1)
        return total + swiglu_expert(x, share, gate[expert], up[expert], down[expert], None)

    total = jax.lax.fori_loop(0, count, add, jnp.zeros(x.shape, jnp.float32))
    return total.astype(x.dtype)


def gather_gemv_ragged_dot(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """`gather_gemv` as a sort and three calls of `jax.lax.ragged_dot`.

    Args:
      x: bfloat16 or float32 [t, d], the tokens.
      experts: int32[t, k], the experts that each token chose, all in 0 .. e - 1.
      weights: float32[t, k], the router's weights.
      gate: [e, d, f] in x's dtype.
      up: [e, d, f] in x's dtype.
      down: [e, f, d] in x's dtype.

    Returns:
      [t, d] in x's dtype.
    """
    order = jnp.argsort(experts.reshape(-1))
    token = order // experts.shape[1]
    sizes = jnp.bincount(experts.reshape(-1), length=len(gate)).astype(jnp.int32)
    rows = x[token]

    def product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(lhs, rhs, sizes, preferred_element_type=jnp.float32)

    hidden = jax.nn.silu(product(rows, gate)) * product(rows, up)
    hidden = (hidden * weights.reshape(-1)[order][:, None]).astype(x.dtype)
    total = jnp.zeros(x.shape, jnp.float32).at[token].add(product(hidden, down))
    return total.astype(x.dtype)


def grouped_matmul_known_sizes(
    lhs: jax.Array, rhs: jax.Array, group_sizes: np.ndarray
) -> jax.Array:
    """`grouped_matmul` for group sizes that are known at compile time: a product for each group.

    Args:
      lhs: bfloat16 or float32 [m, k], rows sorted by group.
      rhs: [e, k, n] in lhs' dtype, the groups' weights.
      group_sizes: int32[e], rows of each group, with the sum m.

    Returns:
      [m, n] in lhs' dtype.
    """
    rows = jnp.split(lhs, np.cumsum(group_sizes)[:-1])
    return jnp.concatenate([a @ b for a, b in zip(rows, rhs, strict=True)])


def torch_gather_gemv(
    x: jax.Array,
    experts: Sequence[jax.Array],
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    compiled: bool = True,
) -> dict[str, Callable[[], object]]:
    """Candidates that compute `gather_gemv` in PyTorch, eager and compiled.

    Args:
      x: bfloat16 or float32 [t, d], the tokens.
      experts: int32[t, k] for each call of a run.
      weights: float32[t, k], the router's weights.
      gate: [e, d, f] in x's dtype.
      up: [e, d, f] in x's dtype.
      down: [e, f, d] in x's dtype.
      compiled: Whether to include the compiled form of each candidate.

    Returns:
      Candidates by name, which return the result of the last call; empty without PyTorch.
    """
    if not _torch_is_here():
        print("PyTorch for this platform is not installed: its figures are left out")
        return {}
    import torch

    arguments = [torch.from_dlpack(a) for a in (x, weights, gate, up, down)]
    ids = [torch.from_dlpack(a).long() for a in experts]
    torch.compiler.reset()
    modes = {"torch eager": lambda function: function}
    if compiled:
        modes["torch.compile"] = functools.partial(torch.compile, mode="reduce-overhead")
    return {
        f"{mode}, {name}": _torch_calls(wrap(function), ids, arguments)
        for name, function in _torch_forms().items()
        for mode, wrap in modes.items()
    }


def _torch_is_here() -> bool:
    """Whether PyTorch is installed and runs on the platform of JAX."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return jax.default_backend() == "cpu" or torch.cuda.is_available()


def _torch_forms() -> dict[str, Callable[..., Any]]:
    """Functions that compute `gather_gemv` in PyTorch; their first argument is `experts`."""
    import torch
    from torch.nn import functional

    def gathered(experts, x, weights, gate, up, down):  # noqa: ANN001, ANN202
        flat = experts.flatten()
        rows = x.repeat_interleave(experts.shape[1], 0)[:, None]
        hidden = functional.silu(rows @ gate[flat]) * (rows @ up[flat])
        hidden = (hidden * weights.flatten()[:, None, None]).to(x.dtype)
        parts = (hidden @ down[flat]).view(*experts.shape, -1)
        return parts.float().sum(1).to(x.dtype)

    def dense(experts, x, weights, gate, up, down):  # noqa: ANN001, ANN202
        share = weights.new_zeros(len(x), len(gate)).scatter_add(1, experts, weights)
        hidden = functional.silu(x @ gate) * (x @ up) * share.T[:, :, None]
        return (hidden.to(x.dtype) @ down).float().sum(0).to(x.dtype)

    def grouped(product, experts, x, weights, gate, up, down):  # noqa: ANN001, ANN202
        order = experts.flatten().argsort()
        token = order // experts.shape[1]
        ids = torch.arange(len(gate), device=x.device)
        ends = (experts.flatten()[:, None] == ids).sum(0).cumsum(0).int()
        rows = x[token]
        hidden = functional.silu(product(rows, gate, ends)) * product(rows, up, ends)
        hidden = (hidden * weights.flatten()[order][:, None]).to(x.dtype)
        total = torch.zeros_like(x, dtype=torch.float32)
        return total.index_add(0, token, product(hidden, down, ends).float()).to(x.dtype)

    forms: dict[str, Callable[..., Any]] = {"gathered": gathered, "dense": dense}
    if (product := _torch_grouped_mm()) is not None:
        forms["grouped_mm"] = functools.partial(grouped, product)
    return forms


def torch_grouped_matmul(
    lhs: jax.Array, rhs: jax.Array, ends: Sequence[jax.Array]
) -> dict[str, Callable[[], object]]:
    """Candidates that compute `grouped_matmul` in PyTorch.

    Args:
      lhs: bfloat16 or float32 [m, k], rows sorted by group.
      rhs: [e, k, n] in lhs' dtype, the groups' weights.
      ends: int32[e] for each call of a run, the end of each group.

    Returns:
      Candidates by name, which return the result of the last call; empty without PyTorch or if
      PyTorch has no grouped product.
    """
    product = _torch_grouped_mm()
    if product is None:
        print("PyTorch has no grouped product: its figures are left out")
        return {}
    import torch

    rows, weights = torch.from_dlpack(lhs), torch.from_dlpack(rhs)
    # Both memory layouts of the weights, because kernels differ in the one that is faster.
    turned = weights.transpose(1, 2).contiguous().transpose(1, 2)

    def call(ends, rows, weights):  # noqa: ANN001, ANN202
        return product(rows, weights, ends)

    each = [torch.from_dlpack(a) for a in ends]
    return {
        "torch grouped_mm": _torch_calls(call, each, [rows, weights]),
        "torch grouped_mm, weights transposed": _torch_calls(call, each, [rows, turned]),
    }


def _torch_grouped_mm() -> Callable[..., Any] | None:
    """PyTorch's grouped product of rows, weights and the groups' ends; None if there is none."""
    if not _torch_is_here():
        return None
    import torch

    product = getattr(torch.nn.functional, "grouped_mm", getattr(torch, "_grouped_mm", None))
    return product and (lambda rows, weights, ends: product(rows, weights, offs=ends))


def _torch_calls(
    function: Callable[..., Any], first: Sequence[Any], others: Sequence[Any]
) -> Callable[[], object]:
    import torch

    def run() -> object:
        out = None
        with torch.no_grad():
            for argument in first:
                out = function(argument, *others)
        if others[0].is_cuda:
            torch.cuda.synchronize()
        return out

    return run
