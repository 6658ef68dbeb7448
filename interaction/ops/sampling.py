"""Random numbers of a session: a function of session key, micro-turn and use alone."""

import jax
import jax.numpy as jnp

from interaction.types import Array

TEXT, FLOW = 0, 1  # uses: the text token, the noise of the flow


def turn_keys(keys: Array, clock: Array, use: int) -> Array:
    """Keys of one use at one micro-turn: fold_in(fold_in(key, clock), use).

    Args:
      keys: Typed PRNG keys [b] of the sessions.
      clock: uint32[b], number of each session's micro-turn.
      use: TEXT or FLOW.

    Returns:
      Typed PRNG keys [b].
    """
    fold = jax.vmap(jax.random.fold_in)
    return fold(fold(keys, clock), jnp.full(clock.shape, use, jnp.uint32))


def sample_tokens(keys: Array, logits: Array, temperature: float) -> Array:
    """Samples one token for each session.

    Args:
      keys: Typed PRNG keys [b].
      logits: float32[b, v].
      temperature: Divisor of the logits; 0 takes the most likely token.

    Returns:
      int32[b].
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    draw = jax.vmap(jax.random.categorical)
    return draw(keys, logits / temperature).astype(jnp.int32)


def split_keys(keys: Array, count: int) -> Array:
    """Splits each of the typed PRNG keys [b] into `count` keys: [count, b]."""
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)


def uniform(keys: Array, shape: tuple[int, ...]) -> Array:
    """Uniform numbers float32[b, *shape] in [0, 1), each row from one of the PRNG keys [b]."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal numbers float32[b, *shape], each row from one of the PRNG keys [b]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
