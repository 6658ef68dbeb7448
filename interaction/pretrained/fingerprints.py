"""Fingerprints of arrays and models: the same for the same bits on any devices."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import ModelConfig
from interaction.pretrained.config_json import config_to_json
from interaction.pretrained.tree_paths import flatten
from interaction.types import Array, Params

_ON_HOST = 1 << 30  # bytes up to which an array is read on the host
_KINDS = {1: "uint8", 2: "uint16", 4: "uint32"}


def fold(leaf: Any, shape: Sequence[int], starts: Sequence[Array | int], xp: Any) -> Any:  # noqa: ANN401
    """Checksum of an array, and the number of its non-finite entries.

    The results of the parts of an array add up (modulo 2**32) to the result of the array: the
    checksum is a weighted sum of integers, so neither order nor mesh changes it. One changed entry
    always changes the checksum, several almost certainly.

    Args:
      leaf: [...], the part of the array that begins at `starts`: bool, or a dtype of at most 4
        bytes.
      shape: Shape of the array.
      starts: Index int32[] of the first entry along each dimension.
      xp: The module of `leaf`: numpy or jax.numpy.

    Returns:
      uint32[2].
    """
    leaf = leaf.astype(xp.uint8) if leaf.dtype == bool else leaf
    bits = leaf.view(_KINDS[leaf.dtype.itemsize]).astype(xp.uint32)
    place = xp.zeros(leaf.shape, xp.uint32)
    for dim, (size, start) in enumerate(zip(shape, starts, strict=True)):
        here = xp.arange(leaf.shape[dim], dtype=xp.uint32) + xp.asarray(start, xp.uint32)
        place = place * xp.uint32(size) + here.reshape(-1, *[1] * (leaf.ndim - dim - 1))
    weight = (place * xp.uint32(0x9E3779B1)) | xp.uint32(1)  # odd: no bit is lost
    checksum = xp.sum((bits ^ (bits >> xp.uint32(16))) * weight, dtype=xp.uint32)
    return xp.stack([checksum, xp.sum(~xp.isfinite(leaf), dtype=xp.uint32)])


_fold_far = jax.jit(lambda leaf: fold(leaf, leaf.shape, (0,) * leaf.ndim, jnp))


def fingerprint(config: ModelConfig, params: Params) -> str:
    """Identity of a model.

    Args:
      config: Model configuration.
      params: Nested dict of float32 or bfloat16 arrays, on the host or on devices.

    Returns:
      32 hexadecimal digits that depend on the config and on every bit of the parameters.
    """
    names = []
    for name, leaf in flatten(params).items():
        near = leaf.nbytes <= _ON_HOST and getattr(leaf, "is_fully_addressable", True)
        found = fold(np.asarray(leaf), leaf.shape, (0,) * leaf.ndim, np) if near else None
        checksum = int(np.asarray(_fold_far(leaf) if found is None else found)[0])
        names.append(f"{name} {leaf.dtype} {leaf.shape} {checksum}")
    text = "\n".join([config_to_json(config), *sorted(names)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
