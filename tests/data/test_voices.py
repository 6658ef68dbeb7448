import numpy as np
import pytest

from interaction.data import voices

HELD_OUT = voices.STYLES.index(voices.HELD_OUT_STYLE)


def test_training_hears_no_blend_with_the_held_out_style() -> None:
    rng = np.random.default_rng(0)
    train = np.array([voices.draw_natural_voice(rng, "train").weights for _ in range(500)])
    held = np.array([voices.draw_natural_voice(rng, "heldout").weights for _ in range(500)])
    np.testing.assert_array_equal(train[:, HELD_OUT], 0)
    assert held[:, HELD_OUT].min() >= 0.5
    for weights in (train, held):
        assert np.abs(weights.sum(axis=1) - 1).max() < 0.003 and weights.min() >= 0
    # a symmetric Dirichlet distribution: the mean of each of the four is 1/4, its deviation 0.25
    assert (
        np.abs(np.delete(train, HELD_OUT, axis=1).mean(axis=0) - 0.25).max() < 4 * 0.25 / 500**0.5
    )


def test_a_natural_voice_names_all_that_it_is() -> None:
    voice = voices.NaturalVoice((0.25, 0, 0.75, 0, 0), "en-gb", 1.1, 0.9, 1.05)
    assert str(voice) == "kokoro:en-gb+0.25+0+0.75+0+0:1.1:0.9:1.05"
    with pytest.raises(ValueError, match="split: got 'test'"):
        voices.draw_natural_voice(np.random.default_rng(0), "test")


def test_the_held_out_engine_is_neither_kokoro_nor_the_assistant() -> None:
    rng = np.random.default_rng(0)
    drawn = [voices.draw_held_out_engine(rng) for _ in range(100)]
    assert {voice.engine for voice in drawn} == {"flite"}
    assert {voice.name for voice in drawn} == set(voices.FLITE_USERS) - {voices.ASSISTANT}
    assert all(voice.warp == 1 and 0.85 <= voice.speed <= 1.15 for voice in drawn)
