"""Which tokens of the text stream are spoken."""

import jax.numpy as jnp
import numpy as np

from interaction.model import control_tokens
from interaction.types import Special

DELEGATE, END, UPDATE = Special.DELEGATE, Special.END_DELEGATE, Special.UPDATE
SILENT, HOLD, WORD = Special.SILENT, Special.HOLD, Special.COUNT + 3


def test_spans_are_muted_and_nothing_else() -> None:
    text = [WORD, HOLD, DELEGATE, WORD, WORD, END, WORD, Special.CANCEL, WORD, UPDATE, WORD, END]
    spoken = [
        WORD,
        HOLD,
        SILENT,
        SILENT,
        SILENT,
        SILENT,
        WORD,
        SILENT,
        WORD,
        SILENT,
        SILENT,
        SILENT,
    ]
    np.testing.assert_array_equal(control_tokens.spoken_tokens(jnp.array([text]))[0], [spoken])


def test_a_span_that_is_never_closed_ends_with_its_words() -> None:
    text = [DELEGATE, WORD, SILENT, WORD, DELEGATE, WORD, HOLD, WORD]
    spoken = [SILENT, SILENT, SILENT, WORD, SILENT, SILENT, HOLD, WORD]
    np.testing.assert_array_equal(control_tokens.spoken_tokens(jnp.array([text]))[0], [spoken])


def test_token_by_token_equals_whole_sessions() -> None:
    text = np.random.default_rng(0).integers(0, Special.COUNT + 8, (64, 40))
    inside = jnp.zeros(64, bool)
    tokens = []
    for turn in range(40):
        token, inside = control_tokens.spoken_tokens(jnp.asarray(text[:, turn : turn + 1]), inside)
        tokens.append(token[:, 0])
    np.testing.assert_array_equal(
        control_tokens.spoken_tokens(jnp.asarray(text))[0], np.stack(tokens, axis=1)
    )
