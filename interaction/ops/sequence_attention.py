"""Attention with Inkling's relative bias over complete sessions, in blocks, for training.

Only one block of scores exists at a time, and the backward pass computes it again (FlashAttention,
arXiv 2205.14135 and 2307.08691). Time is proportional to t times the window, memory to t + s.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from interaction.ops import block_attention as blocks
from interaction.ops.dense import matmul
from interaction.ops.relative_bias import block_bias
from interaction.types import Array
from pallas_kernels.varying import vary, varying

QUERIES = 384  # most queries of a block


class Sight(NamedTuple):
    """What the queries of a layer see."""

    window: int  # newest keys, that of the query's position included
    first: int  # the session's first keys, seen for ever; at most those of a block
    sharpen_from: int  # number of keys from which scores grow; 0: never


def attention_sequence(
    q: Array, k: Array, v: Array, states: Array, bank: Array, start: Array, sight: Sight
) -> Array:
    """Attention of consecutive queries of sessions over all keys of these sessions.

    Scores are q·k / width, plus the relative bias. Positions that do not exist come after all
    others of their session: no query of a position that exists sees them.

    Args:
      q: float[b, t, h, k], positions `start` to `start` + t - 1.
      k: float[b, s, g, k], positions 0 to s - 1; g divides h.
      v: float[b, s, g, k].
      states: float[b, t, h, r], see `relative_bias`.
      bank: float[r, extent].
      start: int32[].
      sight: What the queries see.

    Returns:
      [b, t, h, k] in q's dtype, summed in float32.
    """
    t = q.shape[1]
    axes = varying(q, k, v, states, bank, start)  # see `ops.attention.attention_blockwise`
    q, k, v, states, bank = (vary(x, axes) for x in (q, k, v, states, bank))
    size = min(QUERIES, t)
    pad = ((0, 0), (0, -t % size), (0, 0), (0, 0))
    q, states = jnp.pad(q, pad), jnp.pad(states, pad)

    start = vary(jnp.asarray(start, jnp.int32), axes)

    def session(rows: tuple) -> Array:
        q, k, v, states = rows
        if sight.sharpen_from:
            visible, index = sight.window + sight.first, start + jnp.arange(len(q))
            q, states = (blocks.sharpen(x, index, visible, sight.sharpen_from) for x in (q, states))
        return _session(q, k, v, states, bank, start, sight, size)

    return jax.lax.map(session, (q, k, v, states))[:, :t]


class _Block(NamedTuple):
    """Consecutive queries of a session."""

    rows: Array  # float[g, rows, k], the heads that share a key head stack their queries
    states: Array  # float[size, h, r]
    index: Array  # int32[size], of the queries in the session

    def scores(self, bank: Array, keys: Array, at: Array, sight: Sight) -> Array:
        """Scores float32[g, rows, s] with block `at` of the keys, float[g, s, k]."""
        s, dim = keys.shape[1:]
        products = matmul(self.rows, keys.swapaxes(1, 2)) * (1.0 / dim)
        bias = block_bias(self.states, bank, self.index[0] - at * s, s)
        scores = products + bias.reshape(products.shape)
        key = at * s + jnp.arange(s, dtype=jnp.int32)
        distance = self.index[:, None] - key
        seen = (distance >= 0) & ((distance < sight.window) | (key < sight.first))
        heads = scores.shape[1] // len(self.index)
        return jnp.where(jnp.tile(seen, (heads, 1)), scores, -jnp.inf)

    def visits(self, sight: Sight, size: int, count: int) -> tuple[Array, Array]:
        """Range of visits; the first one is to block 0 if that lies before the window's blocks."""
        oldest = jnp.maximum(self.index[0] - (sight.window - 1), 0) // size
        begin = oldest - ((oldest > 0) & (sight.first > 0))
        return begin, jnp.minimum(self.index[-1] // size + 1, count)

    def place(self, visit: Array, sight: Sight, size: int) -> Array:
        """The block of keys of a visit."""
        oldest = jnp.maximum(self.index[0] - (sight.window - 1), 0) // size
        return jnp.where(visit < oldest, 0, visit)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _session(
    q: Array, k: Array, v: Array, states: Array, bank: Array, start: Array, sight: Sight, size: int
) -> Array:
    """`attention_sequence` of one session, t a multiple of `size`."""
    return _forward(q, k, v, states, bank, start, sight, size)[0]


def _forward(
    q: Array, k: Array, v: Array, states: Array, bank: Array, start: Array, sight: Sight, size: int
) -> tuple[Array, tuple]:
    groups = k.shape[1]
    keys, values = _key_blocks(k, sight), _key_blocks(v, sight)

    def block(xs: tuple) -> tuple[Array, Array]:
        q, states, index = xs
        mine = _Block(_to_rows(q, groups), states, index)

        def visit(turn: Array, part: blocks.Part) -> blocks.Part:
            at = mine.place(turn, sight, keys.shape[2])
            scores = mine.scores(bank, keys[at], at, sight)
            fraction, power = blocks.weigh(scores)
            found = blocks.visit(fraction, power, blocks.largest(power), values[at])
            return blocks.add(part, found)

        axes = varying(mine.rows)
        nothing = jax.tree.map(lambda x: vary(x, axes), blocks.no_part(mine.rows))
        bounds = mine.visits(sight, keys.shape[2], len(keys))
        part = jax.lax.fori_loop(*bounds, visit, nothing)
        out = _from_rows(blocks.finish(part), size).astype(q.dtype)
        return out, blocks.log_total(part)

    xs = _split(q, size), _split(states, size), _split(start + jnp.arange(len(q)), size)
    out, log_total = jax.lax.map(block, xs)
    return out.reshape(q.shape), (q, k, v, states, bank, start, out, log_total)


def _backward(sight: Sight, size: int, saved: tuple, d_out: Array) -> tuple:
    q, k, v, states, bank, start, out, log_total = saved
    groups, dim = k.shape[1:]
    keys, values = _key_blocks(k, sight), _key_blocks(v, sight)

    def block(sums: tuple, xs: tuple) -> tuple[tuple, tuple]:
        d_keys, d_values, d_bank = sums
        q, states, index, out, d_out, log_total = xs
        mine = _Block(_to_rows(q, groups), states, index)
        out, d_out = _to_rows(out, groups), _to_rows(d_out, groups)
        along = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)

        def visit(turn: Array, state: tuple) -> tuple:
            d_rows, d_states, d_keys, d_values, d_bank = state
            at = mine.place(turn, sight, keys.shape[2])
            scores = mine.scores(bank, keys[at], at, sight)
            weights = jnp.exp(scores - log_total[..., None])
            d_weights = matmul(d_out, values[at].swapaxes(1, 2))
            d_scores = weights * (d_weights - along[..., None])

            def bias(states: Array, bank: Array) -> Array:
                return block_bias(states, bank, index[0] - at * keys.shape[2], keys.shape[2])

            _, back = jax.vjp(bias, states, bank)
            more_states, more_bank = back(d_scores.reshape(-1, size, keys.shape[2]))
            d_products = (d_scores * (1.0 / dim)).astype(q.dtype)
            d_rows = d_rows + matmul(d_products, keys[at])
            d_keys = _add(d_keys, at, matmul(d_products.swapaxes(1, 2), mine.rows))
            weights = weights.astype(d_out.dtype).swapaxes(1, 2)
            d_values = _add(d_values, at, matmul(weights, d_out))
            d_states = d_states + more_states.astype(jnp.float32)
            return d_rows, d_states, d_keys, d_values, d_bank + more_bank.astype(jnp.float32)

        axes = varying(mine.rows)
        zeros = [vary(jnp.zeros(x.shape), axes) for x in (mine.rows, states)]
        bounds = mine.visits(sight, keys.shape[2], len(keys))
        found = jax.lax.fori_loop(*bounds, visit, (*zeros, d_keys, d_values, d_bank))
        d_rows, d_states, sums = found[0], found[1], found[2:]
        return sums, (_from_rows(d_rows, size).astype(q.dtype), d_states)

    shapes = keys.shape, values.shape, bank.shape
    sums = tuple(vary(jnp.zeros(shape), varying(q)) for shape in shapes)
    index = start + jnp.arange(len(q))
    xs = (*(_split(x, size) for x in (q, states, index)), out, _split(d_out, size), log_total)
    (d_keys, d_values, d_bank), (d_q, d_states) = jax.lax.scan(block, sums, xs)
    d_k, d_v = (_from_key_blocks(x, len(k)).astype(k.dtype) for x in (d_keys, d_values))
    d_states = d_states.reshape(states.shape).astype(states.dtype)
    return d_q.reshape(q.shape), d_k, d_v, d_states, d_bank.astype(bank.dtype), None


_session.defvjp(_forward, _backward)


def _add(x: Array, at: Array, update: Array) -> Array:
    """`x` with `update` added to `x[at]`; XLA updates it in place in loops."""
    return jax.lax.dynamic_update_index_in_dim(x, x[at] + update, at, 0)


def _split(x: Array, size: int) -> Array:
    """[t, ...] as blocks of queries [blocks, size, ...]."""
    return x.reshape(-1, size, *x.shape[1:])


def _to_rows(x: Array, groups: int) -> Array:
    """[size, h, k] as [g, rows, k]: the heads that share a key head stack their queries."""
    dim = x.shape[-1]
    return x.reshape(len(x), groups, -1, dim).transpose(1, 2, 0, 3).reshape(groups, -1, dim)


def _from_rows(x: Array, size: int) -> Array:
    """[g, rows, k] as [size, h, k]."""
    return x.reshape(-1, size, x.shape[-1]).swapaxes(0, 1)


def _key_blocks(x: Array, sight: Sight) -> Array:
    """[s, g, k] as blocks of keys [blocks, g, size, k], with zeros after the last key."""
    size = blocks.key_block(sight.window)
    x = jnp.pad(x, ((0, math.ceil(len(x) / size) * size - len(x)), (0, 0), (0, 0)))
    return x.reshape(-1, size, *x.shape[1:]).swapaxes(1, 2)


def _from_key_blocks(x: Array, s: int) -> Array:
    """The inverse of `_key_blocks`."""
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])[:s]
