"""Grouped-query attention with a learned sink over a window of positions."""

import jax
import jax.numpy as jnp

from interaction.ops.dense import exact
from interaction.types import Array
from pallas_kernels.varying import vary, varying

BLOCKWISE_FROM = 1024  # positions from which `attention_blockwise` is used
QUERIES, KEYS = 512, 512  # positions in a block of `attention_blockwise`


def window_mask(query_order: Array, key_order: Array, key_valid: Array, window: int) -> Array:
    """Which keys a query sees: the last `window` valid keys, that of its position included.

    Orders count a session's valid positions and may wrap: only differences are used.

    Args:
      query_order: uint32[b, t].
      key_order: uint32[b, s].
      key_valid: bool[b, s].
      window: Number of keys that a query sees.

    Returns:
      bool[b, t, s].
    """
    age = query_order[:, :, None] - key_order[:, None, :]
    return (age < jnp.uint32(window)) & key_valid[:, None, :]


def attention(q: Array, k: Array, v: Array, mask: Array, sink: Array) -> Array:
    """Softmax attention of one session whose denominator contains a learned logit of each head.

    The sink lets a head attend to nothing, so no early position has to be kept for that purpose
    (arXiv 2309.17453 shows the need, gpt-oss the learned form).

    Args:
      q: float[t, h, k].
      k: float[s, g, k]; g divides h.
      v: float[s, g, k].
      mask: bool[t, s]; a query may see no key.
      sink: float32[h].

    Returns:
      [t, h, k] in q's dtype; zero where a query sees no key.
    """
    t, h, dim = q.shape
    s, g = k.shape[:2]
    # One matrix product for each key head: the query heads that share it stack their rows.
    rows = (q * dim**-0.5).reshape(t, g, h // g, dim).transpose(1, 2, 0, 3).reshape(g, -1, dim)
    keys = k.transpose(1, 0, 2)
    if rows.shape[1] < s:  # the shorter side is transposed
        scores = _matmul(keys, rows.swapaxes(1, 2))
        scores = scores.swapaxes(1, 2)
    else:
        scores = _matmul(rows, keys.swapaxes(1, 2))
    scores = jnp.where(mask, scores.reshape(h, t, s), -jnp.inf)
    sink = sink[:, None, None].astype(jnp.float32)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sink))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True) + jnp.exp(sink - top)
    mixed = _matmul(weights.reshape(g, -1, s).astype(v.dtype), v.transpose(1, 0, 2))
    return (mixed.reshape(h, t, dim) / total).astype(q.dtype).transpose(1, 0, 2)


def attention_batch(q: Array, k: Array, v: Array, mask: Array, sink: Array) -> Array:
    """`attention` of a batch of sessions.

    Args:
      q: float[b, t, h, k].
      k: float[b, s, g, k]; g divides h.
      v: float[b, s, g, k].
      mask: bool[b, t, s]; a query may see no key.
      sink: float32[h].

    Returns:
      [b, t, h, k] in q's dtype; zero where a query sees no key.
    """
    return jax.vmap(attention, in_axes=(0, 0, 0, 0, None))(q, k, v, mask, sink)


@jax.named_scope("attention_blockwise")
def attention_blockwise(
    q: Array,
    k: Array,
    v: Array,
    query_order: Array,
    key_order: Array,
    key_valid: Array,
    window: int,
    sink: Array,
) -> Array:
    """`attention_batch` under `window_mask`, in blocks: no array of t times s elements exists.

    Valid keys are moved together first, so the keys of a query are contiguous. A block of queries
    then visits the blocks of keys that it can see, in ascending order, with a running maximum and
    sum that start at the sink. The backward pass computes the weights again (FlashAttention, arXiv
    2205.14135 and 2307.08691). Time is proportional to t times the window, or to t times the length
    of the session where that is shorter; memory to t + s. Sessions and blocks of queries run one
    after another, so only one block of scores exists at a time. Invalid positions may contain NaN:
    they change no result of a valid position, and no gradient if the gradient of every unused
    query is zero.

    Args:
      q: float[b, t, h, k], t consecutive positions from anywhere in the session.
      k: float[b, s, g, k], all positions of the session; g divides h.
      v: float[b, s, g, k].
      query_order: uint32[b, t]; orders count valid positions, and an invalid position has the
        order of the position before it.
      key_order: uint32[b, s].
      key_valid: bool[b, s].
      window: Number of keys that a query sees.
      sink: float32[h].

    Returns:
      [b, t, h, k] in q's dtype, summed in float32; zero where a query sees no key.
    """
    t = q.shape[1]
    # Inside `shard_map` all operands are marked as varying over the axes over which any of them
    # varies. JAX then adds the sums over replicas that gradients need.
    axes = varying(q, k, v, query_order, key_order, key_valid, sink)
    q, k, v, sink = (vary(x, axes) for x in (q, k, v, sink))
    query_order, key_order, valid = (vary(x, axes) for x in (query_order, key_order, key_valid))
    origin = key_order[:, :1] + 1 - valid[:, :1].astype(jnp.uint32)  # the first valid key's order
    place = (query_order - origin).astype(jnp.int32)  # index among valid keys; -1 before the first
    rest = (0, -t % QUERIES)
    place = jnp.pad(place, ((0, 0), rest), mode="edge")
    q = jnp.pad(q, ((0, 0), rest, (0, 0), (0, 0)))
    oldest = jnp.maximum(place - (window - 1), 0)
    newest = jnp.minimum(place, jnp.sum(valid, axis=1, keepdims=True, dtype=jnp.int32) - 1)

    def session(rows: tuple) -> Array:
        return _session(*rows, sink)

    return jax.lax.map(session, (q, k, v, oldest, newest, valid))[:, :t]


@jax.custom_vjp
def _session(
    q: Array, k: Array, v: Array, oldest: Array, newest: Array, valid: Array, sink: Array
) -> Array:
    """Attention of one session in which a query sees the valid keys from `oldest` to `newest`.

    Args:
      q: float[t, h, k], t a multiple of QUERIES.
      k: float[s, g, k].
      v: float[s, g, k].
      oldest: int32[t], index among the valid keys.
      newest: int32[t], smaller than `oldest` where a query sees no key.
      valid: bool[s].
      sink: float32[h].

    Returns:
      [t, h, k] in q's dtype.
    """
    return _session_forward(q, k, v, oldest, newest, valid, sink)[0]


def _session_forward(
    q: Array, k: Array, v: Array, oldest: Array, newest: Array, valid: Array, sink: Array
) -> tuple[Array, tuple]:
    keys, values = _compact(k, valid), _compact(v, valid)
    groups, dim = k.shape[1:]
    scale = dim**-0.5

    def block(xs: tuple) -> tuple[Array, Array]:
        q, oldest, newest = xs
        rows = _to_rows(q * scale, groups)

        def visit(j: Array, state: tuple) -> tuple[Array, Array, Array]:
            top, total, mixed = state
            scores = _scores(rows, keys[j], j, oldest, newest)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1))
            weights = jnp.exp(scores - higher[..., None])
            keep = jnp.exp(top - higher)
            total = total * keep + jnp.sum(weights, axis=-1)
            more = _matmul(weights.astype(v.dtype), values[j])
            return higher, total, mixed * keep[..., None] + more

        top = jnp.repeat(sink.astype(jnp.float32), QUERIES).reshape(groups, -1)
        axes = varying(rows)
        start = top, vary(jnp.ones(top.shape), axes), vary(jnp.zeros(rows.shape), axes)
        top, total, mixed = jax.lax.fori_loop(*_visited(oldest, newest), visit, start)
        return _from_rows((mixed / total[..., None]).astype(q.dtype)), top + jnp.log(total)

    out, log_total = jax.lax.map(block, jax.tree.map(_blocks, (q, oldest, newest)))
    out = out.reshape(q.shape)
    return out, (q, k, v, oldest, newest, valid, sink, out, log_total)


def _session_backward(saved: tuple, d_out: Array) -> tuple:
    q, k, v, oldest, newest, valid, sink, out, log_total = saved
    keys, values = _compact(k, valid), _compact(v, valid)
    groups, dim = k.shape[1:]
    scale = dim**-0.5

    def block(sums: tuple, xs: tuple) -> tuple[tuple, Array]:
        d_keys, d_values, d_sink = sums
        q, out, d_out, oldest, newest, log_total = xs
        rows, out, d_out = (_to_rows(x, groups) for x in (q * scale, out, d_out))
        # An unused query has a gradient of zero, even if it contains NaN.
        used = jnp.any(d_out != 0, axis=-1)
        rows = jnp.where(used[..., None], rows, 0)
        log_total = jnp.where(used, log_total, jnp.inf)
        along = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
        along = jnp.where(used, along, 0)

        def visit(j: Array, state: tuple) -> tuple[Array, Array, Array]:
            d_rows, d_keys, d_values = state
            scores = _scores(rows, keys[j], j, oldest, newest)
            weights = jnp.exp(scores - log_total[..., None])
            d_weights = _matmul(d_out, values[j].swapaxes(1, 2))
            d_scores = (weights * (d_weights - along[..., None])).astype(q.dtype)
            d_rows = d_rows + _matmul(d_scores, keys[j])
            d_keys = _add(d_keys, j, _matmul(d_scores.swapaxes(1, 2), rows))
            weights = weights.astype(d_out.dtype).swapaxes(1, 2)
            return d_rows, d_keys, _add(d_values, j, _matmul(weights, d_out))

        start = vary(jnp.zeros(rows.shape), varying(rows)), d_keys, d_values
        bounds = _visited(oldest, newest)
        d_rows, d_keys, d_values = jax.lax.fori_loop(*bounds, visit, start)
        unseen = jnp.exp(jnp.repeat(sink, QUERIES).reshape(groups, -1) - log_total)
        d_sink -= jnp.sum((unseen * along).reshape(-1, QUERIES), axis=-1)
        return (d_keys, d_values, d_sink), (_from_rows(d_rows) * scale).astype(q.dtype)

    shapes = keys.shape, values.shape, sink.shape
    start = tuple(vary(jnp.zeros(shape), varying(q)) for shape in shapes)
    xs = (*jax.tree.map(_blocks, (q, out, d_out, oldest, newest)), log_total)
    (d_keys, d_values, d_sink), d_q = jax.lax.scan(block, start, xs)
    d_k, d_v = (_spread(x, valid).astype(k.dtype) for x in (d_keys, d_values))
    return d_q.reshape(q.shape), d_k, d_v, None, None, None, d_sink.astype(sink.dtype)


_session.defvjp(_session_forward, _session_backward)


def _scores(rows: Array, keys: Array, j: Array, oldest: Array, newest: Array) -> Array:
    """Scores of a block of queries and of block j of the keys, float32[g, rows, KEYS]."""
    scores = _matmul(rows, keys.swapaxes(1, 2))
    place = j * KEYS + jnp.arange(KEYS, dtype=jnp.int32)
    heads = scores.shape[1] // QUERIES
    oldest, newest = (jnp.tile(x, heads)[:, None] for x in (oldest, newest))
    return jnp.where((oldest <= place) & (place <= newest), scores, -jnp.inf)


def _visited(oldest: Array, newest: Array) -> tuple[Array, Array]:
    """The first block of keys that a block of queries sees, and the block after the last one."""
    return jnp.min(oldest) // KEYS, jnp.max(newest) // KEYS + 1


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=exact(a, b), preferred_element_type=jnp.float32)


def _add(x: Array, j: Array, update: Array) -> Array:
    """`x` with `update` added to `x[j]`; XLA updates it in place in loops."""
    return jax.lax.dynamic_update_index_in_dim(x, x[j] + update, j, 0)


def _blocks(x: Array) -> Array:
    """[t, ...] as blocks of queries [blocks, QUERIES, ...]."""
    return x.reshape(-1, QUERIES, *x.shape[1:])


def _to_rows(x: Array, groups: int) -> Array:
    """[QUERIES, h, k] as [g, rows, k]: the heads that share a key head stack their queries."""
    dim = x.shape[-1]
    x = x.reshape(QUERIES, groups, -1, dim).transpose(1, 2, 0, 3)
    return x.reshape(groups, -1, dim)


def _from_rows(x: Array) -> Array:
    """[g, rows, k] as [QUERIES, h, k]."""
    return x.reshape(-1, QUERIES, x.shape[-1]).swapaxes(0, 1)


def _compact(x: Array, valid: Array) -> Array:
    """[s, g, k] as [blocks, g, KEYS, k]: the valid positions in order, then zeros."""
    source = jnp.argsort(~valid, stable=True)
    filled = jnp.arange(len(source)) < jnp.sum(valid)
    x = jnp.where(filled[:, None, None], x[source], 0)
    x = jnp.pad(x, ((0, -len(x) % KEYS), (0, 0), (0, 0)))
    return x.reshape(-1, KEYS, *x.shape[1:]).swapaxes(1, 2)


def _spread(x: Array, valid: Array) -> Array:
    """The inverse of `_compact`, with zeros at invalid positions."""
    x = x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])
    place = jnp.cumsum(valid, dtype=jnp.int32) - 1
    return jnp.where(valid[:, None, None], x[place], 0)
