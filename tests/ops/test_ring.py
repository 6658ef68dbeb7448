"""Ring caches against a deque, and windows against a list of what came before."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.ops import ring
from interaction.ops.attention import window_mask

LATE = 2**32 - 21  # a counter that wraps after 21 positions


def test_capacity_is_the_smallest_power_of_two() -> None:
    """A query keeps its window although `span` positions are written before it looks."""
    for window in range(1, 70):
        for span in range(1, 20):
            capacity = 1
            while capacity < window + span - 1:
                capacity *= 2
            assert ring.ring_capacity(window, span) == capacity


@pytest.mark.parametrize("written", [0, LATE])
@pytest.mark.parametrize(("window", "span", "capacity"), [(5, 4, 8), (1, 3, 4), (13, 4, 16)])
def test_a_ring_is_a_deque(window: int, span: int, capacity: int, written: int) -> None:
    """Names of positions are written; each new one must see the newest ones before it."""
    sessions, limit = 3, 16  # the longest ring's capacity, as if there were another one
    assert ring.ring_capacity(window, span) == capacity
    rng = np.random.default_rng(0)
    clock = ring.RingClock(jnp.full(sessions, written, jnp.uint32), jnp.zeros(sessions, jnp.int32))
    slots = np.full((sessions, capacity), -1)
    names = [deque(maxlen=window) for _ in range(sessions)]
    counts = np.zeros(sessions, int)

    @jax.jit
    def write(clock: ring.RingClock, valid: jnp.ndarray) -> tuple:
        after = ring.advance(clock, valid, limit)
        order = ring.new_order(clock, valid)
        mask = window_mask(order, *ring.slot_order(after, capacity), window)
        return after, ring.ring_slots(clock, valid, capacity), mask

    for turn in range(20):
        valid = rng.random((sessions, span)) < (0.7 if turn else 0.3)
        clock, places, mask = write(clock, valid)
        expected = {}
        for row, position in np.ndindex(sessions, span):
            if valid[row, position]:
                name = 100 * turn + position
                slots[row, places[row, position]] = name
                names[row].append(name)
                counts[row] += 1
                expected[row, position] = set(names[row])
            else:
                assert places[row, position] == capacity, "a scatter drops it"
        for (row, position), seen in expected.items():
            assert set(slots[row][np.asarray(mask[row, position])]) == seen
        np.testing.assert_array_equal(clock.written, ((written + counts) % 2**32))
        np.testing.assert_array_equal(clock.filled, np.minimum(counts, limit))
    assert counts.min() > 21, "the counter wrapped"


@pytest.mark.parametrize("first", [0, LATE])
@pytest.mark.parametrize("window", [1, 3, 7, 100])
def test_a_window_is_the_last_valid_positions(window: int, first: int) -> None:
    rng = np.random.default_rng(1)
    valid = rng.random((4, 40)) < 0.6
    valid[0, :5] = False
    order = (first + np.cumsum(valid, axis=1) - 1) % 2**32
    order = jnp.asarray(order.astype(np.uint32))
    mask = np.asarray(window_mask(order, order, jnp.asarray(valid), window))
    wanted = np.zeros_like(mask)
    for row in range(4):
        before: deque[int] = deque(maxlen=window)
        for position in range(40):
            if valid[row, position]:
                before.append(position)
                wanted[row, position, list(before)] = True
    exists = np.broadcast_to(valid[..., None], mask.shape)
    np.testing.assert_array_equal(mask[exists], wanted[exists])
