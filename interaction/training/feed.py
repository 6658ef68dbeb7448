"""Batches of stored sessions, in an order that a seed fixes and a checkpoint can continue."""

import hashlib
import pathlib
from typing import Any, NamedTuple

import grain
import numpy as np
from flax import serialization

_SUFFIXES = (".arrayrecord", ".array_record")


class Feed(NamedTuple):
    """An endless iterator of batches, with what identifies the data behind it."""

    batches: grain.DatasetIterator  # dict of numpy arrays, leading axis = batch
    identity: dict[str, Any]  # must be equal where an iterator's state is restored

    def state(self) -> dict[str, Any]:
        """The position, as JSON types."""
        return {**self.identity, "position": self.batches.get_state()}

    def restore(self, state: dict[str, Any], source: str) -> None:
        """Continues at `state`, which came from `source` (for the message).

        Raises:
          ValueError: the state belongs to other data, another batch size or another seed.
        """
        for field, wanted in self.identity.items():
            if state.get(field) != wanted:
                raise ValueError(
                    f"feed {field}: got {wanted!r}, but {source} was made with "
                    f"{state.get(field)!r}; use that, or start a new --workdir"
                )
        self.batches.set_state(state["position"])


def record_files(path: str) -> list[str]:
    """ArrayRecord files at `path`: the file itself, or those in the folder, sorted.

    Raises:
      ValueError: nothing is there.
    """
    place = pathlib.Path(path)
    if place.is_file():
        return [str(place)]
    files = sorted(str(file) for file in place.glob("*") if file.suffix in _SUFFIXES)
    if not files:
        raise ValueError(
            f"data: got {path!r}, wanted an ArrayRecord file or a folder of *{_SUFFIXES[0]}; "
            "make sessions with `python -m experiments.make_sessions`"
        )
    return files


def parse(record: bytes) -> dict[str, np.ndarray]:
    """Arrays of one stored session; the description in "meta" stays behind."""
    fields = serialization.msgpack_restore(record)
    return {name: value for name, value in fields.items() if name != "meta"}


def make_feed(path: str, batch: int, seed: int, threads: int = 2) -> Feed:
    """Sessions at `path`, shuffled anew each epoch, parsed on `threads` threads, without end.

    Raises:
      ValueError: no data, or fewer sessions than `batch`.
    """
    source = grain.sources.ArrayRecordDataSource(record_files(path))
    if len(source) < batch:
        raise ValueError(
            f"batch: got {batch}, wanted at most the {len(source)} sessions in {path!r}; "
            "make more sessions or lower it"
        )
    sessions = grain.MapDataset.source(source).shuffle(seed=seed).repeat().map(parse)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    batches = sessions.batch(batch, drop_remainder=True).to_iter_dataset(options)
    first = hashlib.sha256(source[0]).hexdigest()[:16]
    identity = {"sessions": len(source), "first": first, "batch": batch, "seed": seed}
    return Feed(iter(batches), identity)
