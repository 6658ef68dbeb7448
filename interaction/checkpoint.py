"""The released form of a model: one folder with weights, config and tokenizer.

`model.safetensors` holds arrays under their path in the parameter tree ("trunk/embed/table"),
`config.json` the `ModelConfig`, `tokenizer.json` the tokenizer.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, numpy as safetensors

from interaction.config import ModelConfig
from interaction.types import Params

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
_Config = TypeVar("_Config")
_STORED = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def flatten(tree: Any) -> dict[str, Any]:  # noqa: ANN401
    """Leaves of a pytree under their paths, "a/b/c"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def differences(got: Mapping[str, Any], wanted: Mapping[str, Any], limit: int = 4) -> list[str]:
    """Names what keeps flat tree `got` from fitting `wanted`: keys, shapes, dtypes.

    At most `limit` lines of each kind are returned.
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


def config_to_json(config: Any) -> str:  # noqa: ANN401
    """A config dataclass as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def config_from_json(
    cls: type[_Config], fields: Mapping[str, Any], name: str = "config"
) -> _Config:
    """Builds a config dataclass from parsed JSON; absent fields take their defaults.

    Raises:
      ValueError: a field is unknown, of the wrong type, or refused by the dataclass's own check.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"{name}: got {fields!r}, wanted a JSON object; correct it")
    schema: Any = cls
    known: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(schema)}
    values = {}
    for key, value in fields.items():
        kind = known.get(key)
        if kind is None:
            raise ValueError(
                f"{name}.{key}: unknown field, wanted one of {sorted(known)}; remove it"
            )
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            values[key] = config_from_json(kind, value, f"{name}.{key}")
        elif type(value) is kind or (kind is float and type(value) is int):
            values[key] = kind(value)
        else:
            raise ValueError(f"{name}.{key}: got {value!r}, wanted {kind.__name__}; correct it")
    return cls(**values)


def save_model(
    folder: str | os.PathLike,
    config: ModelConfig,
    params: Params,
    tokenizer: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Writes a released model; each file appears whole or not at all.

    Args:
      folder: where to write; made if absent.
      config: of the model.
      params: nested dict of float arrays.
      tokenizer: path of the tokenizer's JSON file, copied.
      dtype: "float32" or "bfloat16", of the stored arrays.

    Raises:
      ValueError: another dtype, or weights that are not finite.
    """
    if dtype not in _STORED:
        raise ValueError(f"dtype: got {dtype!r}, wanted one of {sorted(_STORED)}; choose one")
    flat = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    bad = [name for name, leaf in flat.items() if not np.all(np.isfinite(leaf))]
    if bad:
        raise ValueError(f"params: {bad[:4]} hold NaN or Inf, wanted finite weights; train again")
    stored = {
        name: np.ascontiguousarray(leaf.astype(_STORED[dtype])) for name, leaf in flat.items()
    }
    place = pathlib.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        fresh = pathlib.Path(temporary)
        shutil.copyfile(tokenizer, fresh / TOKENIZER)
        (fresh / CONFIG).write_text(config_to_json(config))
        (fresh / WEIGHTS).write_bytes(safetensors.save(stored))
        for name in (TOKENIZER, CONFIG, WEIGHTS):
            os.replace(fresh / name, place / name)


def load_model(
    folder: str | os.PathLike, abstract: Callable[[ModelConfig], Params] | None = None
) -> tuple[ModelConfig, Params]:
    """Reads a released model.

    Args:
      folder: written by `save_model`.
      abstract: gives the tree of shapes and dtypes that a config's model has; where given, the
        weights must fit it.

    Returns:
      The config, and a nested dict of float32 numpy arrays.

    Raises:
      ValueError: the folder or a file is missing, cut off, not ours, or does not fit the config.
    """
    place = pathlib.Path(folder)
    config = load_config(place)
    flat = load_weights(place)
    if abstract is not None:
        wrong = differences(flat, flatten(abstract(config)))
        if wrong:
            raise ValueError(
                f"{place / WEIGHTS}: does not fit {CONFIG} beside it: {'; '.join(wrong)}; "
                "load a folder whose two files were written together"
            )
    return config, traverse_util.unflatten_dict(flat, sep="/")


def load_config(folder: str | os.PathLike) -> ModelConfig:
    """The config in a released folder.

    Raises:
      ValueError: it is missing, is not JSON, or has unknown or contradictory fields.
    """
    path = _existing(pathlib.Path(folder), CONFIG)
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); copy the folder again") from error
    try:
        return config_from_json(ModelConfig, fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_weights(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights in a released folder, flat, as float32.

    Raises:
      ValueError: the file is missing, cut off, or holds arrays of other dtypes.
    """
    path = _existing(pathlib.Path(folder), WEIGHTS)
    try:
        flat = safetensors.load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: got a file that is cut off or no safetensors ({error}); copy it again"
        ) from error
    for name, leaf in flat.items():
        if leaf.dtype not in _STORED.values():
            raise ValueError(
                f"{path}: {name} is {_describe(leaf)}, wanted float32 or bfloat16; "
                "this is another project's file"
            )
    return {name: leaf.astype(np.float32) for name, leaf in flat.items()}


def _existing(folder: pathlib.Path, name: str) -> pathlib.Path:
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder, wanted one written by save_model; check the path"
        )
    if not (folder / name).is_file():
        raise ValueError(f"{folder}: has no {name}; wanted a complete folder, copy it again")
    return folder / name
