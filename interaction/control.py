"""Control tokens in the model's text stream: what is not said aloud, and what it asks for.

`<delegate>` words `</delegate>` hands a request to the background model, `<update>` words
`</delegate>` changes the running one, `<cancel>` drops it. A span is words in a row: any other
token ends it, so that a span that is never closed does not mute the model for good.
"""

import jax
import jax.numpy as jnp

from interaction.types import Array, Special

OPENING = (Special.DELEGATE, Special.UPDATE)
CONTROL = (*OPENING, Special.END_DELEGATE, Special.CANCEL)


def _among(token: Array, ids: tuple[int, ...]) -> Array:
    return jnp.isin(token, jnp.array(ids, jnp.int32))


def spoken_token(token: Array, inside: Array) -> tuple[Array, Array]:
    """What of one micro-turn's token is heard.

    Args:
      token: int32[b], of the text stream.
      inside: bool[b], whether the tokens before it opened a span.

    Returns:
      int32[b], SILENT in place of what is not said aloud, and bool[b], `inside` of the next token.
    """
    word = token >= Special.COUNT
    muted = (inside & word) | _among(token, CONTROL)
    return jnp.where(muted, Special.SILENT, token), _among(token, OPENING) | (inside & word)


def spoken(text: Array) -> Array:
    """`spoken_token` of whole sessions, int32[b, n] -> int32[b, n]."""
    places = jnp.where(text < Special.COUNT, jnp.arange(text.shape[1]), -1)
    last = jax.lax.cummax(places, axis=1)
    opened = jnp.take_along_axis(text, jnp.maximum(last, 0), axis=1)
    inside = _among(opened, OPENING) & (last >= 0)
    return jnp.where(inside | _among(text, CONTROL), Special.SILENT, text)
