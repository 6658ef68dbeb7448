"""Checkpoints of a run: state and position in the data, written in the background by Orbax."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from interaction.checkpoint import WEIGHTS, differences, flatten, load_weights
from interaction.training.feed import Feed
from interaction.training.state import TrainState

_snapshot = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class Checkpoints:
    """The checkpoints in a run's folder. `close` waits for the last write."""

    def __init__(self, run_dir: str, keep: int) -> None:
        """Opens (or makes) `<run_dir>/checkpoints` and keeps the newest `keep`."""
        self.path = pathlib.Path(run_dir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.path, options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, feed: dict[str, Any]) -> None:
        """Starts writing; `state` may be donated as soon as this returns."""
        if self.latest() == step:
            return
        flat = flatten(_snapshot(state))
        tree = traverse_util.unflatten_dict(flat, sep="/")
        items = {"state": ocp.args.StandardSave(tree), "feed": ocp.args.JsonSave(feed)}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, step: int, abstract: TrainState, feed: Feed) -> TrainState:
        """Reads checkpoint `step` onto `abstract` (shapes, dtypes, shardings) and moves `feed`.

        Raises:
          ValueError: it is damaged, another model's, or from other data.
        """
        place = self.path / str(step)
        wanted = flatten(abstract)
        flat = _read(place, wanted)
        leaves = [flat[name] for name in wanted]
        feed.restore(_read_feed(place), str(place))
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def close(self) -> None:
        """Waits for what is being written, and raises if that failed."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_part(source: str, part: str) -> tuple[dict[str, np.ndarray], str]:
    """One part of a trained model: averaged parameters or buffers below the path `part`.

    Args:
      source: run folder (its newest checkpoint is read) or released folder.
      part: path in the parameters ("speech", "trunk/embed") or buffers ("router_bias").

    Returns:
      Flat float32 arrays under their full paths, and the folder they came from.

    Raises:
      ValueError: there is no checkpoint, it is damaged, or it has no such part.
    """
    folder = pathlib.Path(source).absolute()
    if (folder / WEIGHTS).exists():
        flat, place = load_weights(folder), folder
    else:
        place = _newest(folder)
        stored = _read(place, None)
        flat = {
            name.partition("/")[2]: leaf
            for name, leaf in stored.items()
            if name.startswith(("ema/", "buffers/"))
        }
    found = {name: leaf for name, leaf in flat.items() if f"{name}/".startswith(f"{part}/")}
    if not found:
        parts = sorted({name.partition("/")[0] for name in flat})
        raise ValueError(f"{place}: has no part {part!r}, wanted one of {parts}; check the path")
    return found, str(place)


def _newest(folder: pathlib.Path) -> pathlib.Path:
    steps = [place for place in (folder / "checkpoints").glob("*") if place.name.isdigit()]
    if not steps:
        raise ValueError(
            f"{folder}: got neither checkpoints nor {WEIGHTS}, wanted the folder of a run or of a "
            "released model; check the path"
        )
    return max(steps, key=lambda place: int(place.name))


def _read(place: pathlib.Path, wanted: dict[str, Any] | None) -> dict[str, Any]:
    """Flat state at `place`: onto `wanted`, or as numpy arrays of whatever is stored."""
    with ocp.StandardCheckpointer() as reader:
        try:
            metadata = reader.metadata(place / "state").item_metadata
        except Exception as error:
            raise _damaged(place, error) from error
        if metadata is None:
            raise _damaged(place, ValueError("its list of arrays cannot be read"))
        stored = flatten(metadata.tree)
        if wanted is not None:
            wrong = differences(stored, wanted)
            if wrong:
                raise ValueError(
                    f"{place}: does not fit this run's config: {'; '.join(wrong)}; "
                    "use the config it was made with, or start a new --workdir"
                )
        target = wanted or {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in stored.items()
        }
        try:
            tree = reader.restore(place / "state", traverse_util.unflatten_dict(target, sep="/"))
        except Exception as error:
            raise _damaged(place, error) from error
    flat = flatten(tree)
    return flat if wanted else {name: np.asarray(leaf) for name, leaf in flat.items()}


def _read_feed(place: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads((place / "feed" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise _damaged(place, error) from error


def _damaged(place: pathlib.Path, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)
    return ValueError(
        f"{place}: got a checkpoint that is damaged or not ours ({reason}), wanted one written by "
        "this loop; remove that folder to continue from an older one"
    )
