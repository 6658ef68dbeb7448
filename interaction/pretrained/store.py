"""The released form of a model: one folder with weights, config and tokenizer.

`model.safetensors` contains arrays under their paths in the parameter tree, such as
"backbone/text_in/table", `config.json` the `ModelConfig` and the version of the format,
`tokenizer.json` the tokenizer. Weights are read and written in parts: a model may be larger than
the memory of a host. A folder that names no version is from before that field, of version 1.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from flax import traverse_util

from interaction.config import ModelConfig
from interaction.pretrained.array_file import DTYPES, open_arrays, write_arrays
from interaction.pretrained.config_json import config_from_json
from interaction.pretrained.lazy_array import Index, LazyArray
from interaction.pretrained.tree_paths import differences, flatten
from interaction.types import Params

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
RELEASED = pathlib.Path(__file__).parent / "models"
VERSION = 2  # of the three files together
_VERSION = "format_version"  # its name in CONFIG
_BACKGROUND = "_background"  # end of the names of background models
# The pair that was released first stands in for one of the present architecture.
_STAND_INS = {"demo": "first_demo", "demo_background": "first_demo_background"}
_PIECE = 1 << 29  # most bytes of a stored array that are read at once


def save_model(
    folder: str | os.PathLike,
    config: ModelConfig,
    params: Params,
    tokenizer: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Writes a released model; each file is replaced atomically.

    Args:
      folder: Folder to write to; created if it does not exist.
      config: Model configuration.
      params: Nested dict of float arrays; a `LazyArray` is written in parts.
      tokenizer: Path of the tokenizer's JSON file, which is copied.
      dtype: Dtype of the stored arrays, "float32" or "bfloat16".

    Raises:
      ValueError: The dtype is another, or some weights are not finite.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, wanted one of {sorted(DTYPES)}; choose one")
    place = pathlib.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        fresh = pathlib.Path(temporary)
        shutil.copyfile(tokenizer, fresh / TOKENIZER)
        (fresh / CONFIG).write_text(config_text(config))
        bad = write_arrays(fresh / WEIGHTS, flatten(params), DTYPES[dtype])
        if bad:
            raise ValueError(
                f"params: got NaN or Inf in {bad[:4]}, wanted finite numbers of {dtype}; "
                "train again"
            )
        for name in (TOKENIZER, CONFIG, WEIGHTS):
            os.replace(fresh / name, place / name)


def find_released(name: str | os.PathLike) -> pathlib.Path:
    """The folder of a released model, by its name or its path.

    Raises:
      ValueError: There is no such model or folder.
    """
    names = sorted({*_STAND_INS, *(path.name for path in RELEASED.glob("*") if path.is_dir())})
    folder = pathlib.Path(name)
    if str(name) in names:
        folder = RELEASED / name
        folder = folder if folder.is_dir() else RELEASED / _STAND_INS[str(name)]
    if not str(name) or not folder.is_dir():
        behind = [one for one in names if one.endswith(_BACKGROUND)]
        live = [one for one in names if one not in behind]
        raise ValueError(
            f"name: got {str(name)!r}, wanted a folder, or one of {live} for a live model, or of "
            f"{behind} for a background model; check the spelling"
        )
    return folder


def load_model(
    folder: str | os.PathLike, abstract: Callable[[ModelConfig], Params] | None = None
) -> tuple[ModelConfig, Params]:
    """Opens a released model.

    Args:
      folder: A folder that `save_model` wrote.
      abstract: Function from a config to the tree of shapes and dtypes that the weights must fit;
        None: no check.

    Returns:
      The config, and a nested dict of float32 `LazyArray` arrays.

    Raises:
      ValueError: The folder or a file is missing, cut off, of another format or version, or does
        not fit the config; or, as a part of an array is read, it is not finite.
    """
    place = pathlib.Path(folder)
    config = load_config(place)
    flat = load_weights(place)
    if abstract is not None:
        wanted = flatten(abstract(config))
        speaks, must = (any(name.startswith("speech/") for name in one) for one in (flat, wanted))
        if speaks != must:
            got, other, fix = ("live", "background", "interaction.load")
            if must:
                got, other, fix = (other, got, "interaction.background.load_reasoner")
            raise ValueError(
                f"{place}: got a {got} model, wanted a {other} model; load it with {fix}"
            )
        wrong = differences(flat, wanted)
        if wrong:
            raise ValueError(
                f"{place / WEIGHTS}: does not fit {CONFIG} in the same folder: {'; '.join(wrong)}; "
                "load a folder whose two files were written together"
            )
    return config, traverse_util.unflatten_dict(flat, sep="/")


def config_text(config: ModelConfig) -> str:
    """The text of a released folder's `config.json`, which a run's folder has too."""
    return json.dumps({_VERSION: VERSION, **dataclasses.asdict(config)}, indent=2) + "\n"


def load_config(folder: str | os.PathLike) -> ModelConfig:
    """The config in a released folder or in that of a run.

    Raises:
      ValueError: The file is missing, is not JSON, is of another version, or has unknown or
        contradictory fields.
    """
    path = _existing(pathlib.Path(folder), CONFIG)
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); copy the folder again") from error
    if isinstance(fields, dict):
        _check_version(path, fields.pop(_VERSION, 1))
    try:
        return config_from_json(ModelConfig, fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_version(path: pathlib.Path, version: Any) -> None:  # noqa: ANN401
    if version != VERSION:
        raise ValueError(
            f"{path}: {_VERSION}: got {version!r}, wanted {VERSION}; load the folder with the "
            "release that wrote it, or export the model again"
        )


def load_weights(folder: str | os.PathLike) -> dict[str, LazyArray]:
    """The weights in a released folder as float32, a flat dict by path.

    Raises:
      ValueError: The file is missing, cut off, or contains arrays of other dtypes; or, as a part of
        an array is read, it is not finite.
    """
    path = _existing(pathlib.Path(folder), WEIGHTS)
    return {
        name: dataclasses.replace(
            leaf, dtype=DTYPES["float32"], read=partial(_read_finite, path, name, leaf)
        )
        for name, leaf in open_arrays(path, _PIECE).items()
    }


def _read_finite(path: pathlib.Path, name: str, leaf: LazyArray, index: Index) -> np.ndarray:
    """Reads a part of a stored array; refuses NaN and Inf."""
    part = leaf.read(index)
    bad = part.size - np.count_nonzero(np.isfinite(part))
    if bad:
        raise ValueError(
            f"{path}: {name} has NaN or Inf in {bad} of {part.size} places, wanted finite numbers; "
            "copy the folder again"
        )
    return part


def _existing(folder: pathlib.Path, name: str) -> pathlib.Path:
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder, wanted one that save_model wrote; check the path"
        )
    if not (folder / name).is_file():
        raise ValueError(f"{folder}: has no {name}, wanted a complete folder; copy it again")
    return folder / name
