"""Control tokens in the text stream: requests to the background model, which are not spoken.

`<delegate>` words `</delegate>` sends a request to the background model, `<update>` words
`</delegate>` changes the running request, `<cancel>` cancels it. A span is a sequence of words: any
other token ends it, so a span that is never closed does not silence the model for good.
"""

import jax
import jax.numpy as jnp

from interaction.types import Array, Special

OPENING = (Special.DELEGATE, Special.UPDATE)
CONTROL = (*OPENING, Special.END_DELEGATE, Special.CANCEL)


def _among(token: Array, ids: tuple[int, ...]) -> Array:
    return jnp.isin(token, jnp.array(ids, jnp.int32))


def spoken_tokens(text: Array, inside: Array | None = None) -> tuple[Array, Array]:
    """The spoken tokens of the text stream in consecutive micro-turns.

    Args:
      text: int32[b, n], tokens of the text stream.
      inside: bool[b], whether the first token is inside a span; None at the start of a session.

    Returns:
      int32[b, n], with SILENT in place of tokens that are not spoken, and bool[b], `inside` of the
      next token.
    """
    b, n = text.shape
    places = jnp.where(text < Special.COUNT, jnp.arange(n), -1)
    last = jax.lax.cummax(places, axis=1)  # index of the newest token that is not a word
    opened = _among(jnp.take_along_axis(text, jnp.maximum(last, 0), axis=1), OPENING)
    before = jnp.zeros(b, bool) if inside is None else inside
    unspoken = jnp.where(last >= 0, opened, before[:, None])
    aloud = jnp.where(unspoken | _among(text, CONTROL), Special.SILENT, text)
    return aloud, unspoken[:, -1]


def token_windows(before: Array, aloud: Array) -> Array:
    """The last spoken tokens at each micro-turn, the newest last.

    Args:
      before: int32[b, w], window of the micro-turn before the first one.
      aloud: int32[b, n], from `spoken_tokens`.

    Returns:
      int32[b, n, w].
    """
    w, n = before.shape[1], aloud.shape[1]
    tokens = jnp.concatenate([before[:, 1:], aloud], axis=1)
    return jnp.stack([tokens[:, i : i + n] for i in range(w)], axis=-1)
