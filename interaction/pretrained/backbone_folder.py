"""Folders of imported backbones, and of released models that are made from them.

A backbone's folder has `model.safetensors` with arrays under their paths in the parameter tree,
`config.json` with the `BackboneConfig`, `tokenizer.json` with our ids, and the released model's two
files as they were: `inkling_config.json` and `inkling_tokenizer.json`.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tokenizers
from flax import traverse_util

from interaction.pretrained.array_file import open_arrays, write_arrays
from interaction.pretrained.config_json import config_from_json
from interaction.pretrained.inkling import abstract_backbone, to_released
from interaction.pretrained.inkling_config import CONFIG, MELS, BackboneConfig, read_json
from interaction.pretrained.inkling_files import INDEX, PIECE
from interaction.pretrained.inkling_tokenizer import convert_tokenizer
from interaction.pretrained.lazy_array import Index, LazyArray
from interaction.pretrained.tree_paths import differences, flatten
from interaction.types import Params

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
RELEASED_CONFIG, RELEASED_TOKENIZER = "inkling_config.json", "inkling_tokenizer.json"
VERSION = 2  # of a backbone's folder
_VERSION = "format_version"  # its name in CONFIG
_SHARD = 10_000_000_000  # most bytes of a released shard, but for one larger tensor

Progress = Callable[[int], Any]  # takes the number of bytes that were written


def save_backbone(
    folder: str | os.PathLike,
    source: str | os.PathLike,
    config: BackboneConfig,
    params: Params,
    progress: Progress,
) -> None:
    """Writes the folder of a backbone, which appears when it is complete.

    Args:
      folder: Folder to write, which must not exist.
      source: Folder of the released model.
      config: What `read_config` said of it.
      params: What `open_released` opened of it.
      progress: Called after each part.

    Raises:
      ValueError: The folder exists, the tokenizer does not fit, or some weights are not finite.
    """
    check_tokenizer(source, config)
    with _new_folder(folder) as fresh:
        origin = pathlib.Path(source)
        convert_tokenizer(origin / TOKENIZER, fresh / TOKENIZER)
        shutil.copyfile(origin / TOKENIZER, fresh / RELEASED_TOKENIZER)
        shutil.copyfile(origin / CONFIG, fresh / RELEASED_CONFIG)
        fields = {_VERSION: VERSION, **dataclasses.asdict(config)}
        (fresh / CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
        _write_finite(fresh / WEIGHTS, flatten(params), source, progress)


def load_backbone(folder: str | os.PathLike) -> tuple[BackboneConfig, Params]:
    """Opens the folder of a backbone.

    Returns:
      The config, and a nested dict of `LazyArray` with the paths of `abstract_backbone`.

    Raises:
      ValueError: A file is missing, cut off or of another version, or the weights do not fit the
        config.
    """
    place = pathlib.Path(folder)
    fields = read_json(place / CONFIG)
    version = fields.pop(_VERSION, None)
    if version != VERSION:
        raise ValueError(
            f"{place / CONFIG}: {_VERSION}: got {version!r}, wanted {VERSION}; take a folder that "
            "experiments.import_weights wrote, or import the weights again"
        )
    try:
        config = config_from_json(BackboneConfig, fields)
    except ValueError as error:
        raise ValueError(f"{place / CONFIG}: {error}") from error
    flat = open_arrays(place / WEIGHTS, PIECE)
    cast = {name: leaf.astype("float32") for name, leaf in flat.items()}  # any dtype fits
    wrong = differences(cast, abstract_backbone(config))
    if wrong:
        raise ValueError(
            f"{place / WEIGHTS}: does not fit {CONFIG} in the same folder: {'; '.join(wrong)}; "
            "import the weights again"
        )
    return config, traverse_util.unflatten_dict(flat, sep="/")


def new_parts(config: BackboneConfig) -> dict[str, LazyArray]:
    """Parameters of an interaction model's backbone that a released one lacks, all zero, by path.

    With them the model computes what the released one computed.
    """
    dim = config.decoder.dim
    shapes = {
        "audio_in/self_table": (MELS, config.levels, dim),
        "text_in/out_slot": (dim,),
        "text_in/transcript_gain": (dim,),
    }

    def zeros(index: Index) -> np.ndarray:
        return np.zeros([part.stop - part.start for part in index], np.float32)

    return {
        f"backbone/{path}": LazyArray(shape, np.dtype(np.float32), shape, zeros)
        for path, shape in shapes.items()
    }


def save_released(
    folder: str | os.PathLike,
    source: str | os.PathLike,
    config: BackboneConfig,
    params: Params,
    progress: Progress,
) -> None:
    """Writes the folder of a released model, which appears when it is complete.

    Args:
      folder: Folder to write, which must not exist.
      source: Folder of the backbone.
      config: Its configuration.
      params: Its weights, from `load_backbone`.
      progress: Called after each part.

    Raises:
      ValueError: The folder exists, the source lacks a file, or some weights are not finite.
    """
    origin = pathlib.Path(source)
    for name in (RELEASED_TOKENIZER, RELEASED_CONFIG):
        if not (origin / name).is_file():
            raise ValueError(f"{origin}: has no {name}, wanted a complete folder; copy it again")
    shards = _shards(to_released(config, params))
    with _new_folder(folder) as fresh:
        shutil.copyfile(origin / RELEASED_TOKENIZER, fresh / TOKENIZER)
        shutil.copyfile(origin / RELEASED_CONFIG, fresh / CONFIG)
        names = {}
        for number, shard in enumerate(shards, start=1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            _write_finite(fresh / file, shard, source, progress, {"format": "pt"})
            names |= dict.fromkeys(shard, file)
        size = sum(leaf.nbytes for shard in shards for leaf in shard.values())
        index = {"metadata": {"total_size": size}, "weight_map": names}
        (fresh / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: Mapping[str, LazyArray]) -> list[dict[str, LazyArray]]:
    """Tensors, in order, in groups of at most `_SHARD` bytes."""
    shards: list[dict[str, LazyArray]] = [{}]
    size = 0
    for name, leaf in tensors.items():
        if shards[-1] and size + leaf.nbytes > _SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = leaf
        size += leaf.nbytes
    return shards


def _write_finite(
    path: pathlib.Path,
    flat: Mapping[str, LazyArray],
    source: str | os.PathLike,
    progress: Progress,
    metadata: Mapping[str, str] | None = None,
) -> None:
    bad = write_arrays(path, flat, metadata=metadata, progress=progress)
    if bad:
        raise ValueError(
            f"{source}: got NaN or Inf in {bad[:4]}, wanted finite numbers; copy the folder again"
        )


@contextlib.contextmanager
def _new_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """An empty folder to fill, which moves to its path at the end; after an error nothing is left.

    Raises:
      ValueError: There is something under the path.
    """
    path = pathlib.Path(folder)
    if path.exists():
        raise ValueError(f"{path}: exists already, wanted a new folder; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        fresh = pathlib.Path(temporary) / path.name
        fresh.mkdir()
        yield fresh
        fresh.rename(path)


def check_tokenizer(folder: str | os.PathLike, config: BackboneConfig) -> None:
    """Refuses a tokenizer.json whose ids are not those of the head.

    Raises:
      ValueError: The file is missing or is no tokenizer, an id has no row in the head, or an id
        that config.json names is larger than all of its ids.
    """
    path = pathlib.Path(folder) / TOKENIZER
    try:
        core = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no exception of its own
        raise ValueError(f"{path}: no tokenizer ({error}); copy the folder again") from error
    highest = max(core.get_vocab(with_added_tokens=True).values(), default=-1)
    fields = read_json(pathlib.Path(folder) / CONFIG)
    named = [
        value for name, value in fields.items() if name.endswith("_token_id") and type(value) is int
    ]
    if not max(named, default=0) <= highest < config.used:
        raise ValueError(
            f"{path}: got ids up to {highest}, wanted at least {max(named, default=0)}, which "
            f"{CONFIG} names, and less than the {config.used} ids of the head; take files that "
            "were released together"
        )
