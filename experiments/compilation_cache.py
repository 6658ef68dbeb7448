"""The cache of compiled programs between processes."""

import os

import jax


def use_compilation_cache() -> None:
    """Stores compiled programs in JAX_COMPILATION_CACHE_DIR, or else ~/.cache/interaction/xla."""
    place = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/interaction/xla")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
