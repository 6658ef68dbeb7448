"""The input pipeline: batches of stored sessions.

The seed fixes the order, and a checkpoint stores the position in it. Each process reads only the
rows of a batch that its devices need. Order and position are those of whole batches, so a run
continues with the same data on any number of processes.
"""

import hashlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from interaction.data import records
from interaction.pretrained.tree_paths import differences

_NEEDED = {"user", "model", "text", "user_transcript"}  # fields of a session


class InputPipeline(NamedTuple):
    """An endless iterator of batches, and fields that identify its data."""

    batches: grain.DatasetIterator  # dicts of numpy arrays; their leading axis is `rows`
    rows: Sequence[int]  # rows of each whole batch that are read here, ascending
    identity: dict[str, Any]  # a stored position fits only an equal identity

    def take(self, where: NamedSharding) -> dict[str, jax.Array]:
        """The next whole batch; each device gets its rows.

        Args:
          where: Sharding of the leading axis; this process must hold all rows that its devices
            need.

        Returns:
          Arrays by name, with the stored dtypes: user and model int16[b, samples] (PCM), text
          int32[b, n], and the others of `training.features`.
        """
        local, batch = next(self.batches), self.identity["batch"]
        first = {row: at for at, row in enumerate(self.rows)}

        def place(leaf: np.ndarray) -> jax.Array:
            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                start, stop, _ = index[0].indices(batch) if index else (0, batch, 1)
                return leaf[first[start] : first[start] + stop - start]

            return jax.make_array_from_callback((batch, *leaf.shape[1:]), where, part)

        return {name: place(leaf) for name, leaf in local.items()}

    def state(self) -> dict[str, Any]:
        """The position, in JSON types; it is the same on every process."""
        return {**self.identity, "position": self.batches.get_state()}

    def check(self, state: dict[str, Any], source: str) -> None:
        """Refuses a position of another input pipeline.

        Args:
          state: A result of `state`.
          source: Where it was stored, for the error message.

        Raises:
          ValueError: The position belongs to other data, another batch size or another seed.
        """
        for field, wanted in self.identity.items():
            if state.get(field) != wanted:
                raise ValueError(
                    f"input pipeline {field}: got {wanted!r}, but {source} was made with "
                    f"{state.get(field)!r}; use that, or start a new --workdir"
                )

    def restore(self, state: dict[str, Any], source: str) -> None:
        """Continues at a stored position; arguments and errors are those of `check`."""
        self.check(state, source)
        self.batches.set_state(state["position"])


def local_rows(batch: int, where: NamedSharding) -> list[int]:
    """Rows of a batch that the devices of this process hold, ascending."""
    held = where.addressable_devices_indices_map((batch,)).values()
    return sorted({row for index in held if index for row in range(*index[0].indices(batch))})


def make_input_pipeline(
    path: str, batch: int, seed: int, rows: Sequence[int] | None = None, threads: int = 2
) -> InputPipeline:
    """Endless batches of the sessions at `path`, shuffled anew in each epoch.

    Args:
      path: ArrayRecord file, or a folder of them.
      batch: Sessions of a whole batch.
      seed: Seed of the order.
      rows: Rows of each batch that are read and parsed here, ascending; None means all.
      threads: Threads that read and parse.

    Raises:
      ValueError: There are no data, or fewer sessions than `batch`. The iterator raises it for a
        session that is damaged or unlike the first one, with its file and its number in the file.
    """
    source = records.source(path)
    if len(source) < batch:
        raise ValueError(
            f"batch: got {batch}, wanted at most the {len(source)} sessions in {path!r}; "
            "make more sessions or lower it"
        )
    first = source.arrays(0)
    missing = sorted(_NEEDED - set(first))
    if missing:
        raise ValueError(
            f"data: got sessions without {missing} in {path!r}, wanted {sorted(_NEEDED)}; make "
            "them again with `python -m experiments.make_sessions`"
        )

    def read(index: int) -> dict[str, np.ndarray]:
        found = source.arrays(index)
        wrong = differences(found, first)
        if wrong:
            raise ValueError(
                f"{source.place(index)}: does not fit {source.place(0)}: {'; '.join(wrong)}; all "
                "sessions of a data set are equally long: make them together with `python -m "
                "experiments.make_sessions`"
            )
        return found

    mine = range(batch) if rows is None else rows
    sessions = grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat().map(read)
    places = grain.MapDataset.range(sys.maxsize // batch)  # numbers the rows that are read here
    rows_here = places.map(lambda at: sessions[at // len(mine) * batch + mine[at % len(mine)]])
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    batches = rows_here.batch(len(mine), drop_remainder=True).to_iter_dataset(options)
    name = hashlib.sha256(source[0]).hexdigest()[:16]
    identity = {"sessions": len(source), "first": name, "batch": batch, "seed": seed}
    return InputPipeline(iter(batches), mine, identity)
