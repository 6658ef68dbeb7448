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


def fold(leaf: Any, starts: Sequence[Array | int], xp: Any) -> Any:  # noqa: ANN401
    """Two checksums of an array, and how many of its entries are not finite.

    The results of the parts of an array add up (modulo 2**32) to the result of the whole array: a
    checksum is a sum of integers, so neither order nor mesh change it. Each entry is weighted by a
    hash of its place (the finaliser of MurmurHash3, one dimension after another), so entries that
    change places change the checksums as well. One changed entry always changes both.

    Args:
      leaf: The part of the array that begins at `starts`, bool or a number type of at most 4 bytes.
      starts: Index of the part's first entry, int32[] for each dimension.
      xp: The module of `leaf`, numpy or jax.numpy.

    Returns:
      uint32[3].
    """
    leaf = leaf.astype(xp.uint8) if leaf.dtype == bool else leaf
    if not leaf.ndim:  # numpy warns when a single number wraps
        leaf, starts = leaf.reshape(1), (0,)
    bits = leaf.view(_KINDS[leaf.dtype.itemsize]).astype(xp.uint32)
    place = xp.zeros([1] * leaf.ndim, xp.uint32)
    for dim, start in enumerate(starts):
        here = xp.arange(leaf.shape[dim], dtype=xp.uint32) + xp.asarray(start, xp.uint32)
        here = here.reshape(-1, *[1] * (leaf.ndim - dim - 1))
        place = _mix(place * xp.uint32(0x9E3779B1) + here + xp.uint32(dim + 1), xp)
    weights = place, _mix(place ^ xp.uint32(0x5BD1E995), xp)
    mixed = bits ^ (bits >> xp.uint32(16))
    one = xp.uint32(1)  # with an odd weight no bit of an entry is lost
    sums = [xp.sum(mixed * (weight | one), dtype=xp.uint32) for weight in weights]
    return xp.stack([*sums, xp.sum(~xp.isfinite(leaf), dtype=xp.uint32)])


def _mix(place: Any, xp: Any) -> Any:  # noqa: ANN401
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        place = (place ^ (place >> xp.uint32(shift))) * xp.uint32(factor)
    return place ^ (place >> xp.uint32(16))


_fold_far = jax.jit(lambda leaf: fold(leaf, (0,) * leaf.ndim, jnp))


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
        found = fold(np.asarray(leaf), (0,) * leaf.ndim, np) if near else None
        sums = np.asarray(_fold_far(leaf) if found is None else found)[:2].tolist()
        names.append(f"{name} {leaf.dtype} {leaf.shape} {sums}")
    text = "\n".join([config_to_json(config), *sorted(names)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
