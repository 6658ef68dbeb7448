"""Random numbers of a session: a function of session key, micro-turn and use, of nothing else."""

import jax
import jax.numpy as jnp

from interaction.types import Array

TEXT, FLOW = 0, 1  # uses


def turn_keys(keys: Array, clock: Array, use: int) -> Array:
    """Keys of one use at one micro-turn: fold_in(fold_in(key, clock), use).

    Args:
      keys: Typed PRNG keys [b] of the sessions.
      clock: uint32[b], micro-turn of each session.
      use: TEXT or FLOW.

    Returns:
      Typed PRNG keys [b].
    """
    fold = jax.vmap(jax.random.fold_in)
    return fold(fold(keys, clock), jnp.full(clock.shape, use, jnp.uint32))


def sample_tokens(keys: Array, logits: Array, temperature: float) -> Array:
    """One token a session.

    Args:
      keys: Typed PRNG keys [b].
      logits: float32[b, v].
      temperature: 0 takes the most likely token.

    Returns:
      int32[b].
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    draw = jax.vmap(jax.random.categorical)
    return draw(keys, logits / temperature).astype(jnp.int32)


def split_keys(keys: Array, count: int) -> Array:
    """Splits each of typed PRNG keys [b]: [count, b], to be unpacked by use."""
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)


def uniform(keys: Array, shape: tuple[int, ...]) -> Array:
    """Uniform in [0, 1), float32[b, *shape], each row from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal float32[b, *shape], each row from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
