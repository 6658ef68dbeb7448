"""Which samples of a recording a mel frame is trained to render."""

import jax
import numpy as np
import pytest

from interaction import presets
from interaction.training import vocoder_loss
from tests.support import random_params

CONFIG = presets.tiny()


class Compared(Exception):
    """Carries the recording that a loss compares with."""


def test_the_vocoder_is_trained_two_frames_behind_its_mel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame 0 of a crop is the mel of samples 0 to 800, and its own hop are the last 200 of them.

    Two frames of 200 behind, its 200 samples of PCM are compared with samples 200 to 400; the first
    8 frames have no loss.
    """

    def compare(got: jax.Array, wanted: jax.Array) -> None:
        raise Compared(wanted)

    monkeypatch.setattr(vocoder_loss, "spectral_losses", compare)
    params, key = random_params(CONFIG)["vocoder"], jax.random.key(0)

    @jax.jit  # compiles nothing but what it returns
    def compared(crops: jax.Array) -> jax.Array:
        try:
            vocoder_loss.crop_loss(params, crops, key, CONFIG.vocoder, CONFIG.audio)
        except Compared as found:
            return found.args[0]

    frames = 20
    ramp = np.arange(600 + frames * 200, dtype=np.float32)[None]
    wanted = ramp[:, 200 + 8 * 200 : 200 + frames * 200]
    np.testing.assert_array_equal(compared(ramp), wanted)
