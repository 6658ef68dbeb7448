"""Fingerprints of arrays: parts add up, and entries that change places are noticed."""

import ml_dtypes
import numpy as np

from interaction.pretrained.fingerprints import fold


def test_parts_add_up_to_the_whole_array() -> None:
    leaf = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    leaf[3, 2, 1] = np.inf
    parts = [fold(leaf[i : i + 3, j : j + 2], (i, j, 0), np) for i in (0, 3) for j in (0, 2, 4)]
    np.testing.assert_array_equal(sum(parts), fold(leaf, (0, 0, 0), np))
    assert fold(leaf, (0, 0, 0), np)[2] == 1


def test_rows_that_change_places_are_noticed_at_any_stride() -> None:
    """A weight that is linear in the place misses a swap at a distance of 2**24 entries."""
    for columns in (1 << 10, 1 << 16, 1 << 24):
        rows = np.zeros((2, columns), ml_dtypes.bfloat16)
        rows[0, 7], rows[1, 7] = 1.0, 4.0
        one, other = fold(rows, (0, 0), np), fold(rows[::-1], (0, 0), np)
        assert np.all(one[:2] != other[:2]), columns


def test_a_layer_s_place_counts_in_an_array_of_any_size() -> None:
    """Layers of 2**31 entries: their places repeat modulo 2**32."""
    part = np.ones((1, 1, 8, 2, 3), np.float32)
    found = {tuple(fold(part, (layer, 0, 4, 0, 0), np)) for layer in range(64)}
    assert len(found) == 64
