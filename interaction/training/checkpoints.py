"""Checkpoints of a run: state and position in the data, written asynchronously by Orbax.

The file of the position also holds the version of the format and a fingerprint of every array.
Fingerprints are computed on the device and are the same on any mesh. A checkpoint that cannot be
read, or whose fingerprints differ, is refused with its name, and the run continues from the one
before. A checkpoint of another version stops the run; one without a version is from before this
field, and is read as version 1. All processes of a run see the same folder.
"""

import functools
import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from interaction.distributed.xla_options import compiler_options
from interaction.pretrained.backbone_folder import RELEASED_CONFIG, load_backbone, new_parts
from interaction.pretrained.fingerprints import fold
from interaction.pretrained.lazy_array import Index, LazyArray
from interaction.pretrained.store import WEIGHTS, load_model
from interaction.pretrained.tree_paths import differences, flatten
from interaction.training import adapters, hosts
from interaction.training.finite import NotFiniteError, not_finite
from interaction.training.frozen import is_below
from interaction.training.input_pipeline import InputPipeline
from interaction.training.state import TrainState
from interaction.types import Array

VERSION = 1  # of the format
# Fields of the position's file: version, fingerprints of the arrays, hash of all other fields.
_VERSION, _LEAVES, _SEAL = "format_version", "leaves", "sha256"
_RELEASED = ("ema/", "buffers/")  # parts of the state that a released model consists of
_log = logging.getLogger(__name__)
_snapshot = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class DamagedError(ValueError):
    """A checkpoint is incomplete, unreadable, or differs from what was written."""


class Checkpoints:
    """The checkpoints in a run's folder; `close` waits for the last write."""

    def __init__(self, run_dir: str, keep: int) -> None:
        """Keeps the newest `keep` checkpoints in `<run_dir>/checkpoints`."""
        self.path = pathlib.Path(run_dir).absolute() / "checkpoints"
        self._keep = keep
        self._saved: int | None = None

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep, create=True, cleanup_tmp_directories=True
        )
        return ocp.CheckpointManager(self.path, options=options)

    def save(self, step: int, state: TrainState, pipeline: dict[str, Any]) -> None:
        """Starts writing a checkpoint; `state` may be donated as soon as this returns.

        Args:
          step: Updates done.
          state: State after that step.
          pipeline: Position of the input pipeline, from `InputPipeline.state`.

        Raises:
          NotFiniteError: The state holds NaN or Inf; nothing is written.
        """
        if self._saved == step:
            return
        flat = flatten(state)
        leaves = fingerprints(flat)
        non_finite = [name for name, leaf in leaves.items() if leaf["not_finite"]]
        if non_finite:
            raise NotFiniteError(not_finite(step, state=non_finite))
        if jax.default_backend() == "cpu":  # elsewhere Orbax copies the state before it returns
            flat = _snapshot(flat)
        items = {
            "state": ocp.args.StandardSave(traverse_util.unflatten_dict(flat, sep="/")),
            "pipeline": ocp.args.JsonSave(_seal({**pipeline, _VERSION: VERSION, _LEAVES: leaves})),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._saved = step

    def restore(
        self, abstract: TrainState, pipeline: InputPipeline
    ) -> tuple[int, TrainState] | None:
        """Reads the newest undamaged checkpoint and moves `pipeline` to its position.

        Newer checkpoints that are damaged are logged and moved to `<run_dir>/damaged`.

        Args:
          abstract: Shapes, dtypes and shardings of the state, on any mesh.
          pipeline: Input pipeline of the same data.

        Returns:
          The step and the state; None if there is no checkpoint.

        Raises:
          ValueError: All checkpoints are damaged, or one is of another version, of another model or
            of other data.
        """
        refused: dict[int, str] = {}
        for step in hosts.from_first(_steps(self.path)):
            state, position, reason = None, {}, "another process cannot read it"
            try:
                state, position = _read_state(self.path / str(step), abstract, pipeline)
            except DamagedError as error:
                reason = str(error)
            if hosts.all_agree(state is not None) and state is not None:
                self._set_aside(refused)
                pipeline.restore(position, str(self.path / str(step)))
                self._saved = step
                return step, state
            _log.warning("%s", reason)
            refused[step] = reason
        if refused:
            raise ValueError(
                f"{self.path}: every checkpoint is damaged: {'; '.join(refused.values())}; "
                "restore the folder from a copy, or start a new --workdir"
            )
        return None

    def close(self) -> None:
        """Waits until the last checkpoint is written, and raises if that failed."""
        if "_manager" in vars(self):
            self._manager.wait_until_finished()
            self._manager.close()

    def _set_aside(self, refused: Mapping[int, str]) -> None:
        """Moves damaged checkpoints away, so that their steps can be saved again."""
        aside = self.path.parent / "damaged"
        if refused and hosts.is_first():
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for step in refused:
                (self.path / str(step)).rename(aside / str(step))
            _log.warning("moved checkpoints %s to %s", sorted(refused), aside)
        hosts.all_agree(True)


@jax.jit
def _fold_piece(leaf: Array, starts: list[int]) -> Array:
    return fold(leaf, starts, jnp)


@functools.cache
def _fingerprint(where: NamedSharding | None) -> Any:  # noqa: ANN401
    return jax.jit(
        lambda leaves: jnp.stack([fold(leaf, (0,) * leaf.ndim, jnp) for leaf in leaves]),
        out_shardings=where,
        compiler_options=compiler_options(jax.default_backend()),
    )


def fingerprints(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Shape, dtype, fingerprint and number of non-finite entries of each array."""
    if not flat:
        return {}
    leaves = list(flat.values())
    sharding = getattr(leaves[0], "sharding", None)
    where = None
    if isinstance(sharding, NamedSharding):
        where = NamedSharding(sharding.mesh, PartitionSpec())
    found = np.asarray(_fingerprint(where)(leaves)).tolist()
    return {
        name: _describe(leaf, *figures)
        for (name, leaf), figures in zip(flat.items(), found, strict=True)
    }


def _read_fingerprint(leaf: LazyArray) -> dict[str, Any]:
    """`fingerprints` of an array in a file, which is read piece by piece."""
    found = np.zeros(3, np.uint32)
    for index in leaf.pieces():
        found += np.asarray(_fold_piece(leaf[index], [part.start for part in index]))
    return _describe(leaf, *found.tolist())


def _describe(leaf: Any, low: int, high: int, non_finite: int) -> dict[str, Any]:  # noqa: ANN401
    return {
        "shape": list(leaf.shape),
        "dtype": np.dtype(leaf.dtype).name,
        "fingerprint": high << 32 | low,
        "not_finite": non_finite,
    }


def _changed(kept: dict[str, dict], found: dict[str, dict]) -> list[str]:
    """Names of arrays whose stored fingerprint differs."""
    return [name for name in found if name in kept and kept[name] != found[name]]


def _seal(fields: dict[str, Any]) -> dict[str, Any]:
    """Adds a hash of the fields."""
    text = json.dumps(fields, sort_keys=True)
    return {**fields, _SEAL: hashlib.sha256(text.encode()).hexdigest()}


def load_part(source: str, part: str) -> tuple[dict[str, LazyArray], str]:
    """Reads one part of a trained model: averaged parameters or buffers below the path `part`.

    Args:
      source: Folder of a run, whose newest checkpoint is read, of a released model, or of an
        imported backbone, whose new parts are zero.
      part: Path in the parameters ("speech", "backbone/heads") or buffers ("router_bias").

    Returns:
      Lazy arrays under their full paths, with adapters merged, and the folder that they are in.

    Raises:
      ValueError: There is no checkpoint, it is damaged or of another version, or it has no such
        part.
    """
    folder = pathlib.Path(source).absolute()
    complete = (folder / WEIGHTS).exists()
    place = folder if complete else _newest(folder)
    if not complete:
        flat = _open_arrays(place)
    elif (folder / RELEASED_CONFIG).exists():
        config, params = load_backbone(folder)
        flat = flatten(params) | new_parts(config)
    else:
        flat = flatten(load_model(folder)[1])
    parts = sorted({name.partition("/")[0] for name in flat} - {adapters.ROOT})
    found = {
        name: leaf
        for name, leaf in flat.items()
        if is_below(name, part) or is_below(name, f"{adapters.ROOT}/{part}")
    }
    if not found or part.partition("/")[0] not in parts:
        raise ValueError(f"{place}: has no part {part!r}, wanted one of {parts}; check the path")
    if not complete:
        _verify(place, found)
    return adapters.merge(found), str(place)


def _steps(folder: pathlib.Path) -> list[int]:
    """Steps of the checkpoints in a folder, complete or damaged, newest first."""
    return sorted((int(place.name) for place in folder.glob("*") if _is_step(place)), reverse=True)


def _is_step(place: pathlib.Path) -> bool:
    return place.name.isdecimal() and place.is_dir()  # an unfinished checkpoint has a suffix


def _newest(folder: pathlib.Path) -> pathlib.Path:
    steps = _steps(folder / "checkpoints")
    if not steps:
        raise ValueError(
            f"{folder}: got neither checkpoints nor {WEIGHTS}, wanted the folder of a run or of a "
            "released model; check the path"
        )
    return folder / "checkpoints" / str(steps[0])


def _read_state(
    place: pathlib.Path, abstract: TrainState, pipeline: InputPipeline
) -> tuple[TrainState, dict[str, Any]]:
    """State and position of the checkpoint at `place`.

    Raises:
      DamagedError: The checkpoint differs from what was written.
      ValueError: The checkpoint is of another version, or belongs to another model or other data.
    """
    wanted = flatten(abstract)
    position = _read_position(place)
    pipeline.check(position, str(place))
    kept = position.get(_LEAVES, {})
    if kept:
        _check_fit(place, {name: _abstract(leaf) for name, leaf in kept.items()}, wanted)
    try:
        stored = flatten(_handler().metadata(_state_of(place)).tree)
    except Exception as error:
        raise _damaged(place, error) from error
    if not kept:
        _check_fit(place, stored, wanted)
    try:
        target = traverse_util.unflatten_dict(wanted, sep="/")
        tree = _handler().restore(
            _state_of(place), args=ocp.args.StandardRestore(target, strict=True)
        )
        flat = flatten(tree)
        leaves = [jax.block_until_ready(flat[name]) for name in wanted]
    except Exception as error:
        raise _damaged(place, error) from error
    wrong = _changed(kept, fingerprints(flat))
    if wrong:
        raise _damaged(place, f"differs from what was written: {', '.join(wrong[:4])}")
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), position


def _open_arrays(place: pathlib.Path) -> dict[str, LazyArray]:
    """Averaged parameters and buffers of the checkpoint at `place`, by path."""
    _read_position(place)  # refuses another version
    try:
        names = flatten(_handler().metadata(_state_of(place)).tree)
        return {_inner(name): _open(place, name) for name in names if name.startswith(_RELEASED)}
    except Exception as error:
        raise _damaged(place, error) from error


def _inner(name: str) -> str:
    """Removes the first level of a path: from the state to the parameters or buffers."""
    return name.partition("/")[2]


def _open(place: pathlib.Path, name: str) -> LazyArray:
    """An array of a checkpoint; TensorStore reads parts of it, Orbax only whole arrays."""
    base = {"driver": "file", "path": f"{_state_of(place)}/"}
    files = {"driver": "ocdbt", "base": base}
    path = name.replace("/", ".") + "/"
    spec = {"driver": "zarr", "kvstore": {**files, "path": path}}
    array = tensorstore.open(spec, read=True).result()
    piece: Any = array.chunk_layout.read_chunk.shape  # the shard of a device, read as a whole

    def read(index: Index) -> np.ndarray:
        return array[index].read().result()

    return LazyArray(tuple(array.shape), array.dtype.numpy_dtype, tuple(piece), read)


def _verify(place: pathlib.Path, flat: Mapping[str, LazyArray]) -> None:
    """Reads arrays of a checkpoint and compares their fingerprints.

    Raises:
      DamagedError: An array differs from what was written.
    """
    kept = _read_position(place).get(_LEAVES, {})
    kept = {
        name.partition("/")[2]: leaf for name, leaf in kept.items() if name.startswith(_RELEASED)
    }
    try:
        found = {name: _read_fingerprint(leaf) for name, leaf in flat.items()}
    except Exception as error:
        raise _damaged(place, error) from error
    # Checkpoints of older runs have no fingerprints.
    unknown = sorted(set(found) - set(kept)) if kept else []
    wrong = [*_changed(kept, found), *unknown]
    if wrong:
        raise _damaged(place, f"differs from what was written: {', '.join(wrong[:4])}")


def _read_position(place: pathlib.Path) -> dict[str, Any]:
    """The position of the input pipeline; in checkpoints of older runs it has no hash.

    Raises:
      DamagedError: It is missing, or differs from what was written.
      ValueError: The checkpoint is of another version.
    """
    try:
        marker = json.loads((place / "_CHECKPOINT_METADATA").read_text())
        if not marker.get("commit_timestamp_nsecs"):
            raise ValueError("the checkpoint was never completed")
        fields = json.loads((place / "pipeline" / "metadata").read_text())
        seal = fields.pop(_SEAL, None)
    except Exception as error:
        raise _damaged(place, error) from error
    version = fields.get(_VERSION, 1)
    if version != VERSION:
        raise ValueError(
            f"{place}: {_VERSION}: got {version!r}, wanted {VERSION}; go on with the release that "
            "began the run, or start a new --workdir"
        )
    if (seal is not None or _LEAVES in fields) and _seal(fields)[_SEAL] != seal:
        raise _damaged(place, "pipeline/metadata differs from what was written")
    return fields


def _check_fit(place: pathlib.Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wrong = differences(stored, wanted)
    if wrong:
        raise ValueError(
            f"{place}: does not fit this run's config: {'; '.join(wrong)}; "
            "use the config it was made with, or start a new --workdir"
        )


def _abstract(leaf: dict[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]))


def _handler() -> ocp.StandardCheckpointHandler:
    """Reads in this process alone; a checkpointer would wait for the others, which may fail."""
    return ocp.StandardCheckpointHandler()


def _state_of(place: pathlib.Path) -> Any:  # noqa: ANN401
    return epath.Path(place / "state")


def _damaged(place: pathlib.Path, reason: Exception | str) -> DamagedError:
    lines = str(reason).strip().splitlines()
    return DamagedError(
        f"{place}: got a checkpoint that is damaged or foreign "
        f"({lines[0][:300] if lines else repr(reason)}), wanted one written by this loop; "
        "it is left out"
    )
