"""Control tokens in the model's text stream: what is not said aloud, and what it asks for.

`<delegate>` words `</delegate>` hands a request to the background model, `<update>` words
`</delegate>` changes the running one, `<cancel>` drops it. A span is words in a row: any other
token ends it, so that a span that is never closed does not silence the model for good.
"""

import jax
import jax.numpy as jnp

from interaction.types import Array, Special

OPENING = (Special.DELEGATE, Special.UPDATE)
CONTROL = (*OPENING, Special.END_DELEGATE, Special.CANCEL)


def _among(token: Array, ids: tuple[int, ...]) -> Array:
    return jnp.isin(token, jnp.array(ids, jnp.int32))


def spoken_tokens(text: Array, inside: Array | None = None) -> tuple[Array, Array]:
    """What of the text stream is said aloud, over micro-turns in a row.

    Args:
      text: int32[b, n], tokens of the text stream.
      inside: bool[b], whether the tokens before them opened a span; None at a session's start.

    Returns:
      int32[b, n], SILENT in place of what is not said aloud, and bool[b], `inside` after them.
    """
    b, n = text.shape
    places = jnp.where(text < Special.COUNT, jnp.arange(n), -1)
    last = jax.lax.cummax(places, axis=1)  # the newest token that is no word
    opened = _among(jnp.take_along_axis(text, jnp.maximum(last, 0), axis=1), OPENING)
    before = jnp.zeros(b, bool) if inside is None else inside
    unspoken = jnp.where(last >= 0, opened, before[:, None])
    aloud = jnp.where(unspoken | _among(text, CONTROL), Special.SILENT, text)
    return aloud, unspoken[:, -1]


def token_windows(before: Array, aloud: Array) -> Array:
    """The last spoken tokens at each micro-turn, the newest last.

    Args:
      before: int32[b, w], the window of the micro-turn before the first one.
      aloud: int32[b, n], from `spoken_tokens`.

    Returns:
      int32[b, n, w].
    """
    w, n = before.shape[1], aloud.shape[1]
    tokens = jnp.concatenate([before[:, 1:], aloud], axis=1)
    return jnp.stack([tokens[:, i : i + n] for i in range(w)], axis=-1)
