"""Checkpoints of a run: state and position in the data, written in the background by Orbax.

Each says, in the file of the position, the fingerprint of every array, which is computed on the
device and is the same on any mesh. One that cannot be read, or reads as something else, is refused
by name, and the run goes on from the one before. All processes of a run see the same folder.
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

from interaction.distributed.xla_options import step_compiler_options
from interaction.pretrained.fingerprints import fold
from interaction.pretrained.lazy_array import Index, LazyArray
from interaction.pretrained.store import WEIGHTS, load_weights
from interaction.pretrained.tree_paths import differences, flatten
from interaction.training import hosts
from interaction.training.finite import NotFiniteError, not_finite
from interaction.training.input_pipeline import InputPipeline
from interaction.training.state import TrainState
from interaction.types import Array

_LEAVES, _SEAL = "leaves", "sha256"  # of the position's file: arrays, and a hash of all the rest
_RELEASED = ("ema/", "buffers/")  # parts of the state that a released model is made of
_log = logging.getLogger(__name__)
_snapshot = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class DamagedError(ValueError):
    """A checkpoint is incomplete, cannot be read, or is not what was written."""


class Checkpoints:
    """The checkpoints in a run's folder. `close` waits for the last write."""

    def __init__(self, run_dir: str, keep: int) -> None:
        """Keeps the newest `keep` in `<run_dir>/checkpoints`."""
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
        """Starts writing; `state` may be donated as soon as this returns.

        Raises:
          NotFiniteError: the state holds NaN or Inf; nothing is written.
        """
        if self._saved == step:
            return
        flat = flatten(state)
        leaves = fingerprints(flat)
        non_finite = [name for name, leaf in leaves.items() if leaf["not_finite"]]
        if non_finite:
            raise NotFiniteError(not_finite(step, state=non_finite))
        if jax.default_backend() == "cpu":  # elsewhere Orbax has copied it when it returns
            flat = _snapshot(flat)
        items = {
            "state": ocp.args.StandardSave(traverse_util.unflatten_dict(flat, sep="/")),
            "pipeline": ocp.args.JsonSave(_seal({**pipeline, _LEAVES: leaves})),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._saved = step

    def restore(
        self, abstract: TrainState, pipeline: InputPipeline
    ) -> tuple[int, TrainState] | None:
        """Reads the newest good checkpoint and moves `pipeline` to where it was.

        Newer ones that are refused are named in a warning and moved to `<run_dir>/damaged`.

        Args:
          abstract: Shapes, dtypes and shardings, of any mesh.
          pipeline: Of the same data.

        Returns:
          Its step and the state, or None where there is no checkpoint.

        Raises:
          ValueError: All are damaged, or one is another model's or from other data.
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
                f"{self.path}: no checkpoint is good: {'; '.join(refused.values())}; "
                "restore the folder from a copy, or start a new --workdir"
            )
        return None

    def close(self) -> None:
        """Waits for what is being written, and raises if that failed."""
        if "_manager" in vars(self):
            self._manager.wait_until_finished()
            self._manager.close()

    def _set_aside(self, refused: Mapping[int, str]) -> None:
        """Moves refused checkpoints away, so that their steps can be saved again."""
        aside = self.path.parent / "damaged"
        if refused and hosts.is_first():
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for step in refused:
                (self.path / str(step)).rename(aside / str(step))
            _log.warning("moved checkpoints %s to %s", sorted(refused), aside)
        hosts.all_agree(True)


@functools.partial(jax.jit, static_argnums=1)
def _fold_piece(leaf: Array, shape: tuple[int, ...], starts: list[int]) -> Array:
    return fold(leaf, shape, starts, jnp)


@functools.cache
def _fingerprint(where: NamedSharding | None) -> Any:  # noqa: ANN401
    return jax.jit(
        lambda leaves: jnp.stack(
            [fold(leaf, leaf.shape, (0,) * leaf.ndim, jnp) for leaf in leaves]
        ),
        out_shardings=where,
        compiler_options=step_compiler_options(jax.default_backend()),
    )


def fingerprints(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each array: shape, dtype, fingerprint, and how many entries are not finite."""
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
    """Of an array in a file, read piece by piece."""
    found = np.zeros(2, np.uint32)
    for index in leaf.pieces():
        found += np.asarray(_fold_piece(leaf[index], leaf.shape, [part.start for part in index]))
    return _describe(leaf, *found.tolist())


def _describe(leaf: Any, fingerprint: int, bad: int) -> dict[str, Any]:  # noqa: ANN401
    return {
        "shape": list(leaf.shape),
        "dtype": np.dtype(leaf.dtype).name,
        "fingerprint": fingerprint,
        "not_finite": bad,
    }


def _changed(kept: dict[str, dict], found: dict[str, dict]) -> list[str]:
    """Names of arrays that do not have the fingerprint that is kept of them."""
    return [name for name in found if name in kept and kept[name] != found[name]]


def _seal(fields: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(fields, sort_keys=True)
    return {**fields, _SEAL: hashlib.sha256(text.encode()).hexdigest()}


def load_part(source: str, part: str) -> tuple[dict[str, LazyArray], str]:
    """One part of a trained model: averaged parameters or buffers below the path `part`.

    Args:
      source: run folder (its newest checkpoint is read) or released folder.
      part: path in the parameters ("speech", "backbone/embed") or buffers ("router_bias").

    Returns:
      Flat float32 arrays under their full paths, and the folder they are in.

    Raises:
      ValueError: there is no checkpoint, it is damaged, or it has no such part.
    """
    folder = pathlib.Path(source).absolute()
    released = (folder / WEIGHTS).exists()
    place = folder if released else _newest(folder)
    flat = load_weights(folder) if released else _open_arrays(place)
    found = {name: leaf for name, leaf in flat.items() if f"{name}/".startswith(f"{part}/")}
    if not found:
        parts = sorted({name.partition("/")[0] for name in flat})
        raise ValueError(f"{place}: has no part {part!r}, wanted one of {parts}; check the path")
    if not released:
        _verify(place, found)
    return found, str(place)


def _steps(folder: pathlib.Path) -> list[int]:
    """Steps of complete checkpoints, and of what looks like it, newest first."""
    return sorted((int(place.name) for place in folder.glob("*") if _is_step(place)), reverse=True)


def _is_step(place: pathlib.Path) -> bool:
    return place.name.isdecimal() and place.is_dir()  # one that is being written has a suffix


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
    """State and position at `place`.

    Raises:
      DamagedError: it is not what was written.
      ValueError: it is of another model or other data.
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
        raise _damaged(place, f"not what was written: {', '.join(wrong[:4])}")
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), position


def _open_arrays(place: pathlib.Path) -> dict[str, LazyArray]:
    """Averaged parameters and buffers at `place`, flat."""
    try:
        names = flatten(_handler().metadata(_state_of(place)).tree)
        return {_inner(name): _open(place, name) for name in names if name.startswith(_RELEASED)}
    except Exception as error:
        raise _damaged(place, error) from error


def _inner(name: str) -> str:
    """Path in the parameters or buffers of a path in the state."""
    return name.partition("/")[2]


def _open(place: pathlib.Path, name: str) -> LazyArray:
    """An array of a checkpoint. Orbax restores whole ones; it keeps them as TensorStore does."""
    base = {"driver": "file", "path": f"{_state_of(place)}/"}
    files = {"driver": "ocdbt", "base": base}
    path = name.replace("/", ".") + "/"
    spec = {"driver": "zarr", "kvstore": {**files, "path": path}}
    array = tensorstore.open(spec, read=True).result()
    piece: Any = array.chunk_layout.read_chunk.shape  # what a device held; read as a whole

    def read(index: Index) -> np.ndarray:
        return array[index].read().result()

    return LazyArray(tuple(array.shape), array.dtype.numpy_dtype, tuple(piece), read)


def _verify(place: pathlib.Path, flat: Mapping[str, LazyArray]) -> None:
    """Reads arrays of a checkpoint once.

    Raises:
      DamagedError: they are not what was written.
    """
    kept = _read_position(place).get(_LEAVES, {})
    kept = {
        name.partition("/")[2]: leaf for name, leaf in kept.items() if name.startswith(_RELEASED)
    }
    try:
        found = {name: _read_fingerprint(leaf) for name, leaf in flat.items()}
    except Exception as error:
        raise _damaged(place, error) from error
    # A checkpoint of an old run has no fingerprints at all.
    unknown = sorted(set(found) - set(kept)) if kept else []
    wrong = [*_changed(kept, found), *unknown]
    if wrong:
        raise _damaged(place, f"not what was written: {', '.join(wrong[:4])}")


def _read_position(place: pathlib.Path) -> dict[str, Any]:
    """The position; one of an old run has no seal."""
    try:
        marker = json.loads((place / "_CHECKPOINT_METADATA").read_text())
        if not marker.get("commit_timestamp_nsecs"):
            raise ValueError("its writing was never completed")
        fields = json.loads((place / "pipeline" / "metadata").read_text())
        seal = fields.pop(_SEAL, None)
    except Exception as error:
        raise _damaged(place, error) from error
    if (seal is not None or _LEAVES in fields) and _seal(fields)[_SEAL] != seal:
        raise _damaged(place, "feed/metadata is not what was written")
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
    """Of one process: unlike a checkpointer it does not wait for the others, which may fail."""
    return ocp.StandardCheckpointHandler()


def _state_of(place: pathlib.Path) -> Any:  # noqa: ANN401
    return epath.Path(place / "state")


def _damaged(place: pathlib.Path, reason: Exception | str) -> DamagedError:
    lines = str(reason).strip().splitlines()
    return DamagedError(
        f"{place}: got a checkpoint that is damaged or not ours "
        f"({lines[0][:300] if lines else repr(reason)}), wanted one written by this loop; "
        "it is left out"
    )
