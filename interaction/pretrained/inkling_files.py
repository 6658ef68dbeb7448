"""The tensors of a released Inkling model: an index and shards, or one file."""

import os
import pathlib

from interaction.pretrained.array_file import open_arrays
from interaction.pretrained.inkling_config import read_json
from interaction.pretrained.lazy_array import LazyArray

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PIECE = 1 << 27  # most bytes that are read at once
_DROPPED = "model.mtp."  # layers that guess tokens ahead, which only speed up decoding
_SHOWN = 8  # most files or tensors that an error names


def open_tensors(folder: str | os.PathLike) -> dict[str, LazyArray]:
    """The tensors of a released model by name, in their stored dtypes, but for "model.mtp…".

    Raises:
      ValueError: The index or a shard is missing, cut off or quantised, or they disagree.
    """
    place = pathlib.Path(folder)
    if not (place / INDEX).is_file():
        found = open_arrays(place / SINGLE, PIECE)
    else:
        found = _open_shards(place)
    return {name: leaf for name, leaf in found.items() if not name.startswith(_DROPPED)}


def _open_shards(place: pathlib.Path) -> dict[str, LazyArray]:
    shards = read_json(place / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(shard, str) and shard == pathlib.Path(shard).name for shard in shards.values()
    ):
        raise ValueError(
            f"{place / INDEX}: weight_map: wanted the name of a file in this folder for each "
            "tensor; copy it again"
        )
    names = sorted(set(shards.values()))
    missing = [shard for shard in names if not (place / shard).is_file()]
    if missing:
        raise ValueError(
            f"{place}: has no {', '.join(missing[:_SHOWN])} ({len(missing)} of {len(names)} shards "
            f"that {INDEX} names); copy them"
        )
    found, inside = {}, {}
    for shard in names:
        opened = open_arrays(place / shard, PIECE)
        found |= opened
        inside |= dict.fromkeys(opened, shard)
    wrong = [name for name in {**shards, **inside} if shards.get(name) != inside.get(name)]
    if wrong:
        raise ValueError(
            f"{place / INDEX}: names other files than those that have {', '.join(wrong[:_SHOWN])}; "
            "copy the folder again"
        )
    return found
