"""Attention in blocks equals attention at once with any padding, in linear memory."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from interaction.ops.attention import (
    KEYS,
    QUERIES,
    attention_batch,
    attention_blockwise,
    window_mask,
)

Inputs = tuple[tuple, tuple]  # (q, k, v, sink), (query order, key order, key valid)


def make(
    valid: np.ndarray, heads: tuple[int, int], dim: int, part: slice = slice(None), first: int = 0
) -> Inputs:
    """Sessions whose first valid position has order `first`, with the queries of `part`."""
    rng = np.random.default_rng(0)
    b, s = valid.shape
    h, g = heads
    draw = partial(rng.standard_normal, dtype=np.float32)
    q, k, v = draw((b, s, h, dim)), draw((b, s, g, dim)), draw((b, s, g, dim))
    order = (np.cumsum(valid, axis=1) - 1 + first).astype(np.uint32)
    return (q[:, part], k, v, draw(h)), (order[:, part], order, valid)


def random_valid(b: int, s: int, share: float, prefix: int = 0) -> np.ndarray:
    """Random valid positions; those in a prefix of the first session are invalid."""
    valid = np.random.default_rng(1).random((b, s)) < share
    valid[0, :prefix] = False
    return valid


def at_once(window: int, places: tuple, q: jax.Array, k: jax.Array, v: jax.Array, sink: jax.Array):  # noqa: ANN201
    return attention_batch(q, k, v, window_mask(*places, window), sink)


def in_blocks(  # noqa: ANN201
    window: int, places: tuple, q: jax.Array, k: jax.Array, v: jax.Array, sink: jax.Array
):
    return attention_blockwise(q, k, v, *places, window, sink)


@partial(jax.jit, static_argnums=(0, 1))
def outcome(function: Callable, window: int, inputs: Inputs, weights: np.ndarray) -> tuple:
    """The result, and gradients of its weighted sum by q, k, v and sink."""
    arrays, places = inputs
    out, pull = jax.vjp(partial(function, window, places), *arrays)
    return out, *pull(jnp.asarray(weights, out.dtype))


def weigh(q: np.ndarray) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(q.shape).astype(np.float32)


S = 2 * KEYS + 300
CASES = {
    "dense": (random_valid(1, S, 1.0), (4, 2), 16, slice(None), 0, 700),
    "padding": (random_valid(2, S, 0.4, prefix=600), (4, 2), 16, slice(None), 0, 300),
    "itself": (random_valid(1, S, 0.7), (2, 1), 8, slice(None), 0, 1),
    "all": (random_valid(2, S, 0.7), (6, 2), 8, slice(None), 0, 5 * S),
    "part": (random_valid(2, S, 0.7, prefix=100), (4, 4), 8, slice(450, 450 + QUERIES), 0, 250),
    "wrapped": (random_valid(1, S, 0.8, prefix=9), (2, 2), 8, slice(300, None), -400, 350),
    "short": (random_valid(2, 40, 0.8), (2, 1), 8, slice(None), 0, 16),
    "nobody": (random_valid(1, S, 0.0), (2, 1), 8, slice(None), 0, 64),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_equal_attention_at_once(case: str) -> None:
    *shape, window = CASES[case]
    inputs = make(*shape)
    weights = weigh(inputs[0][0])
    wanted = outcome(at_once, window, inputs, weights)
    found = outcome(in_blocks, window, inputs, weights)
    # Largest difference seen: 4.8e-7 of values up to 2.9, 3.2e-6 of gradients up to 6.4, 1.9e-6 of
    # the sink's up to 19.
    np.testing.assert_allclose(found[0], wanted[0], atol=2e-6, rtol=0)
    for got, want in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=0)
    blind = ~np.any(window_mask(*inputs[1], window), axis=-1)
    assert not np.any(found[0][blind]) and not np.any(found[1][blind])


def test_bfloat16() -> None:
    *shape, window = CASES["padding"]
    (*arrays, sink), places = make(*shape)
    weights = weigh(arrays[0])
    exact = outcome(in_blocks, window, ((*arrays, sink), places), weights)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    found = outcome(in_blocks, window, ((*arrays, sink), places), weights)
    assert [x.dtype for x in found] == [jnp.bfloat16] * 4 + [jnp.float32]
    for got, want in zip(found, exact, strict=True):
        # Largest difference seen: 0.0048 of the norm.
        error = np.linalg.norm(got.astype(jnp.float32) - want) / np.linalg.norm(want)
        assert error < 0.02, error


def test_padding_may_be_nan() -> None:
    *shape, window = CASES["padding"]
    (q, k, v, sink), places = make(*shape)
    valid = places[2]
    weights = weigh(q) * valid[..., None, None]
    clean = outcome(in_blocks, window, ((q, k, v, sink), places), weights)
    q, k, v = (np.where(valid[..., None, None], x, np.nan) for x in (q, k, v))
    dirty = outcome(in_blocks, window, ((q, k, v, sink), places), weights)
    np.testing.assert_array_equal(dirty[0][valid], clean[0][valid])
    for got, want in zip(dirty[1:], clean[1:], strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.optimised
def test_same_bits_in_any_part_of_the_session() -> None:
    valid = random_valid(1, 2 * S, 0.8)
    (q, k, v, sink), (_, order, _) = make(valid, (4, 2), 16)
    run = jax.jit(attention_blockwise, static_argnames="window")
    full = run(q, k, v, order, order, valid, 700, sink)
    for start in (0, 333, 1024):
        part = slice(start, start + S)
        found = run(q[:, part], k, v, order[:, part], order, valid, 700, sink)
        np.testing.assert_array_equal(found, full[:, part])


@pytest.mark.parametrize("check_vma", [True, False])
def test_parts_on_devices_in_a_scan_over_layers(check_vma: bool) -> None:
    """Devices have parts of the queries and all keys; each layer runs under `jax.checkpoint`."""
    valid = random_valid(2, 2 * S, 0.7)
    (q, k, v, _), (_, order, _) = make(valid, (4, 2), 8)
    sinks = np.random.default_rng(3).standard_normal((2, 4)).astype(np.float32)

    def layers(attend: Callable, q, query_order, k, v, sinks, order, valid):  # noqa: ANN001, ANN202
        @jax.checkpoint
        def layer(q: jax.Array, sink: jax.Array) -> tuple[jax.Array, None]:
            return q + attend(300, (query_order, order, valid), q, k, v, sink), None

        return jax.lax.scan(layer, q, sinks)[0]

    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("sequence",), axis_types, devices=jax.devices()[:2])
    part = P(None, "sequence")
    together = jax.shard_map(
        partial(layers, in_blocks),
        mesh=mesh,
        in_specs=(part, part, *(P(),) * 5),
        out_specs=part,
        check_vma=check_vma,
    )

    def gradients(run: Callable) -> tuple:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array) -> jax.Array:
            return jnp.sum(run(q, order, k, v, sinks, order, valid) ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, k, v, sinks)

    for got, want in zip(gradients(together), gradients(partial(layers, at_once)), strict=True):
        # Largest difference seen: 4.9e-7 of the largest gradient.
        np.testing.assert_allclose(got, want, atol=5e-6 * np.max(np.abs(want)), rtol=0)


def test_memory_grows_with_the_sequence_not_with_its_square() -> None:
    h, g, dim, window = 8, 2, 16, 1000

    def temporary(t: int) -> int:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array, order: jax.Array) -> jax.Array:
            valid, sink = jnp.ones((1, t), bool), jnp.zeros(h)
            return jnp.sum(attention_blockwise(q, k, v, order, order, valid, window, sink) ** 2)

        shapes = [jax.ShapeDtypeStruct((1, t, n, dim), jnp.float32) for n in (h, g, g)]
        order = jax.ShapeDtypeStruct((1, t), jnp.uint32)
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes, order)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(4096), temporary(8192)
    # Seen: 23.3 and 28.7 MB; scores of all pairs would be 2.1 GB.
    assert large < 2.5 * small
    assert large < h * 8192 * 8192 * 4 / 50
