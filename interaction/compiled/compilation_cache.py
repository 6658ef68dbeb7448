"""The cache of compiled programs between processes."""

import pathlib

import jax

from interaction.distributed.jax_settings import mixes_up_collectives

FOLDER = pathlib.Path("~/.cache/interaction/xla")


def use_compilation_cache() -> None:
    """Keeps compiled programs in `FOLDER`, unless JAX was given a folder of the user's own.

    JAX takes one from JAX_COMPILATION_CACHE_DIR or `jax_compilation_cache_dir`, and none at all
    with JAX_ENABLE_COMPILATION_CACHE=false. With several CPU devices programs are not kept, see
    `jax_settings.mixes_up_collectives`.
    """
    if mixes_up_collectives(jax.default_backend(), jax.device_count()):
        return
    if jax.config.jax_compilation_cache_dir is None:  # pyrefly: ignore[missing-attribute]
        jax.config.update("jax_compilation_cache_dir", str(FOLDER.expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
