"""Trees of arrays by the paths of their leaves, and the differences between two such trees."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def flatten(tree: Any) -> dict[str, Any]:  # noqa: ANN401
    """Leaves of a pytree under their paths, "a/b/c"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def differences(got: Mapping[str, Any], wanted: Mapping[str, Any], limit: int = 4) -> list[str]:
    """Names the keys, shapes and dtypes in which flat tree `got` differs from `wanted`.

    At most `limit` lines of each kind are returned: missing, unknown, different.
    """
    missing = [f"{name} is missing" for name in wanted if name not in got]
    foreign = [f"{name} is unknown" for name in got if name not in wanted]
    unlike = [
        f"{name} is {_describe(got[name])}, wanted {_describe(leaf)}"
        for name, leaf in wanted.items()
        if name in got and _describe(got[name]) != _describe(leaf)
    ]
    return missing[:limit] + foreign[:limit] + unlike[:limit]


def _describe(leaf: Any) -> str:  # noqa: ANN401
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
