"""The short convolution against a hand computation and NumPy."""

import numpy as np

from interaction.ops.short_convolution import TAPS, short_convolution


def test_by_hand() -> None:
    kernel = np.array([[1.0], [10.0], [100.0], [1000.0]], np.float32)
    past = np.array([[[1.0], [2.0], [3.0]]], np.float32)
    x = np.array([[[4.0], [5.0], [-9.0]]], np.float32)  # the last one does not exist
    after, got = short_convolution(past, x, kernel, np.array([2], np.int32))
    np.testing.assert_array_equal(got[0, :2, 0], [4321.0 + 4.0, 5432.0 + 5.0])
    np.testing.assert_array_equal(after[0, :, 0], [3.0, 4.0, 5.0])


def test_equals_numpy_s_convolution_in_pieces() -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((1, 40, 6)), rng.standard_normal((TAPS, 6))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    wanted = [np.convolve(x[0, :, c], kernel[::-1, c])[:40] + x[0, :, c] for c in range(6)]
    past, outputs = np.zeros((1, TAPS - 1, 6), np.float32), []
    for at in range(0, 40, 5):
        past, out = short_convolution(past, x[:, at : at + 5], kernel, np.array([5], np.int32))
        outputs.append(out)
    np.testing.assert_allclose(
        np.concatenate(outputs, axis=1)[0].T, wanted, atol=1e-5
    )  # measured: 1e-6
