r"""Makes full-duplex training or held-out sessions with espeak-ng and flite.

    python -m experiments.make_sessions --out=data/train --sessions=16000
    python -m experiments.make_sessions --out=data/heldout --sessions=300 --seed=1 --split=heldout
    python -m experiments.make_sessions --out=data/delegation_sessions --sessions=12000 \
        --seed=40 --delegations=0.6

With --delegations a share of the sessions has tool requests, which the model delegates. Session i
depends only on the seed, the split, the length and i. The folder appears when it is complete.
"""

import collections
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import tqdm
from absl import app, flags

from interaction.data import delegation_sessions, domain, records, sessions, voices
from interaction.data.stored_session import StoredSession

OUT = flags.DEFINE_string("out", None, "Folder to make; it must not exist.", required=True)
SESSIONS = flags.DEFINE_integer("sessions", 16_000, "Number of sessions.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the whole set.", lower_bound=0)
SPLIT = flags.DEFINE_enum("split", "train", voices.SPLITS, "Voices and word combinations.")
PROCESSES = flags.DEFINE_integer(
    "processes", os.cpu_count(), "Processes that make sessions.", lower_bound=1
)
TURNS = flags.DEFINE_integer("turns", 80, "Micro-turns of 200 ms in a session.", lower_bound=20)
DELEGATIONS = flags.DEFINE_float(
    "delegations", 0.0, "Share of the sessions with tool requests.", 0.0, 1.0
)
_SHARD = 100  # sessions of a file


def make(seed: int, index: int, split: str, turns: int, delegations: float) -> StoredSession:
    """Makes session `index` of a set.

    Args:
      seed: Seed of the set.
      index: Number of the session.
      split: `train` or `heldout`.
      turns: Length in micro-turns.
      delegations: Probability that the session has tool requests.
    """
    if np.random.default_rng((seed, index, _SHARD)).random() < delegations:
        return delegation_sessions.make_delegation_session((seed, index), split, turns)
    return sessions.make_session((seed, index), split, turns=turns)


def _shard(job: tuple[str, int, int, int, str, int, float]) -> collections.Counter:
    """Writes sessions start to stop - 1 to one file; returns counts of what is in it."""
    path, start, stop, seed, split, turns, delegations = job
    counts: collections.Counter = collections.Counter()

    def made() -> collections.abc.Iterator[StoredSession]:
        for index in range(start, stop):
            record = make(seed, index, split, turns, delegations)
            meta = json.loads(record["meta"])
            for event in meta["events"]:
                counts[event["kind"]] += 1
                counts["answers"] += bool(event["answer"])
                counts["held-out combinations"] += event["held_out"]
            yield record

    counts["sessions"] = records.write(Path(path), made())
    return counts


def main(_: list[str]) -> None:
    """Makes the set in a temporary folder, and renames it when it is complete."""
    out = Path(OUT.value)
    if out.exists():
        raise ValueError(f"--out: got {out}, wanted a new folder; remove it or name another one")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    begun = time.monotonic()
    jobs = [
        (
            str(partial / f"sessions-{start // _SHARD:05d}.arrayrecord"),
            start,
            min(start + _SHARD, SESSIONS.value),
            SEED.value,
            SPLIT.value,
            TURNS.value,
            DELEGATIONS.value,
        )
        for start in range(0, SESSIONS.value, _SHARD)
    ]
    counts: collections.Counter = collections.Counter()
    context = multiprocessing.get_context("spawn")
    with (
        context.Pool(PROCESSES.value) as pool,
        tqdm.tqdm(total=SESSIONS.value, unit="session", mininterval=2) as bar,
    ):
        for done in pool.imap_unordered(_shard, jobs):
            counts += done
            bar.update(done["sessions"])
    partial.rename(out)
    seconds = time.monotonic() - begun
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {SESSIONS.value} sessions, {size / 2**30:.2f} GiB, {seconds:.0f} s,")
    print(f"{len(domain.FORMS)} request forms, split {SPLIT.value}, seed {SEED.value}")
    for name, count in counts.most_common():
        print(f"  {name:<24}{count:>8}{count / SESSIONS.value:>8.2f} a session")


if __name__ == "__main__":
    app.run(main)
