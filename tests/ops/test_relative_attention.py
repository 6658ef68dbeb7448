"""Relative attention over sequences and rings, against loops over single queries and keys."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.ops import ring_attention, sequence_attention
from interaction.ops.block_attention import FIRST, key_block
from interaction.ops.relative_bias import block_bias
from interaction.ops.ring_attention import Ring, attention_ring, capacity, write
from interaction.ops.sequence_attention import Sight, attention_sequence

T, HEADS, GROUPS, DIM, STATES = 300, 4, 2, 16, 5
CASES = {
    "sliding": (Sight(window=20, first=0, sharpen_from=0), 20),
    "long": (Sight(window=70, first=16, sharpen_from=0), 64),
    "sharpened": (Sight(window=70, first=16, sharpen_from=40), 100),
}


def numbers(extent: int) -> tuple[np.ndarray, ...]:
    """q, k, v, states and bank of one session."""
    rng = np.random.default_rng(3)
    shapes = (T, HEADS, DIM), (T, GROUPS, DIM), (T, GROUPS, DIM), (T, HEADS, STATES)
    found = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return *found, rng.standard_normal((STATES, extent)).astype(np.float32)


def expected(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, states: np.ndarray, bank: np.ndarray, sight: Sight
) -> np.ndarray:
    """Attention float64[t, h, k], one query and key after another."""
    out = np.zeros(q.shape)
    for i, h in np.ndindex(len(q), HEADS):
        g = h // (HEADS // GROUPS)
        profile = states[i, h].astype(float) @ bank
        seen = [j for j in range(i + 1) if i - j < sight.window or j < sight.first]
        scores = np.array([q[i, h].astype(float) @ k[j, g] / DIM for j in seen])
        scores += [profile[i - j] if i - j < bank.shape[1] else 0.0 for j in seen]
        if sight.sharpen_from:
            visible = min(i + 1, sight.window + sight.first)
            scores *= 1 + 0.1 * np.log(max(visible / sight.sharpen_from, 1.0))
        weights = np.exp(scores - scores.max())
        out[i, h] = weights / weights.sum() @ v[seen, g]
    return out


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[Sight, tuple[np.ndarray, ...], np.ndarray]:
    sight, extent = CASES[request.param]
    given = numbers(extent)
    return sight, given, expected(*given, sight)


@pytest.fixture(params=[384, 65], ids=["one-block", "five-blocks"])
def queries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All queries in one block, or in blocks that end beside borders of blocks of keys."""
    monkeypatch.setattr(sequence_attention, "QUERIES", request.param)


@pytest.mark.usefixtures("queries")
def test_a_sequence(case: tuple) -> None:
    sight, (q, k, v, states, bank), wanted = case
    run = jax.jit(partial(attention_sequence, sight=sight))
    got = run(q[None], k[None], v[None], states[None], bank, np.int32(0))
    np.testing.assert_allclose(got[0], wanted, atol=5e-6)  # measured: 1.7e-6
    late = run(q[None, 100:], k[None], v[None], states[None, 100:], bank, np.int32(100))
    np.testing.assert_allclose(late[0], wanted[100:], atol=5e-6)  # measured: 1.7e-6


@pytest.mark.usefixtures("queries")
def test_gradients_of_a_sequence(case: tuple) -> None:
    """Against differences of the loops' result along one random direction of each input."""
    sight, given, _ = case
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((T, HEADS, DIM))

    def loss(
        q: jax.Array, k: jax.Array, v: jax.Array, states: jax.Array, bank: jax.Array
    ) -> jax.Array:
        rows = (x[None] for x in (q, k, v, states))
        return jnp.sum(attention_sequence(*rows, bank, jnp.int32(0), sight)[0] * weight)

    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(*given)
    for place, gradient in enumerate(found):
        direction = rng.standard_normal(given[place].shape)
        ends = []
        for step in (1e-4, -1e-4):
            moved = [x.astype(float) for x in given]
            moved[place] += step * direction
            ends.append(np.sum(expected(*moved, sight) * weight))
        slope = (ends[0] - ends[1]) / 2e-4
        np.testing.assert_allclose(
            np.sum(gradient * direction), slope, rtol=2e-4, atol=2e-3
        )  # measured: 2e-6


def pieces(sizes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where pieces of a session begin, and how long they are."""
    at = turn = 0
    while at < T:
        size = min(sizes[turn % len(sizes)], T - at)
        yield at, size
        at, turn = at + size, turn + 1


@pytest.mark.parametrize(("sizes", "unrolled"), [((1,), 16), ((5, 7, 2), 16), ((16,), 1)])
def test_a_ring(
    case: tuple, sizes: tuple[int, ...], unrolled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Session 0 is given; session 1 has other numbers and stops after half of the time."""
    monkeypatch.setattr(ring_attention, "_UNROLLED", unrolled)  # more blocks are added in a loop
    sight, (q, k, v, states, bank), wanted = case
    span = max(sizes)
    slots = capacity(sight.window, span)
    assert slots < T  # it goes round
    ring = Ring(*[jnp.full((2, 1, slots, GROUPS, DIM), 7.0)] * 2, None, None)
    if sight.first:
        ring = ring._replace(
            **dict.fromkeys(("first_k", "first_v"), jnp.full((2, 1, FIRST, GROUPS, DIM), 7.0))
        )

    @jax.jit
    def step(
        ring: Ring, q: jax.Array, k: jax.Array, v: jax.Array, states: jax.Array, *place: jax.Array
    ) -> tuple:
        ring = write(ring, 0, k, v, *place)
        return ring, attention_ring(q, states, bank, ring, 0, *place, sight)

    outputs, written = [], np.zeros(2, np.int32)
    for at, size in pieces(sizes):
        rest = ((0, span - size), (0, 0), (0, 0))
        rows = [np.pad(x[at : at + size], rest, constant_values=9.0) for x in (q, k, v, states)]
        count = np.array([size, size if at < T // 2 else 0], np.int32)
        ring, out = step(ring, *(np.stack([x, 3 - x]) for x in rows), written, count)
        written = written + count
        outputs.append(out[0, :size])
    np.testing.assert_allclose(np.concatenate(outputs), wanted, atol=5e-6)  # measured: 1.7e-6


def test_bias_by_hand() -> None:
    bank = np.array([[1.0, 2.0, 4.0], [10.0, 20.0, 40.0]], np.float32)
    states = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], np.float32)  # two queries of one head
    # Query 0 stands one position after key 0; key 2 lies after it.
    got = block_bias(states, bank, 1, 3)
    np.testing.assert_array_equal(got, [[[2.0, 1.0, 0.0], [40.0, 20.0, 10.0]]])


@pytest.mark.parametrize(("window", "size"), [(20, 64), (192, 64), (512, 256), (32_768, 512)])
def test_blocks_of_keys(window: int, size: int) -> None:
    assert key_block(window) == size
    assert capacity(window, 10) % size == 0
    assert capacity(window, 10) >= window + 10 - 1 + size
