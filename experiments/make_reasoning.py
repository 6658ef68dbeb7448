"""Makes records for the background model out of sessions with errands.

    python -m experiments.make_branches --sessions=data/errands --out=data/delegation
    python -m experiments.make_branches --sessions=data/errands --out=data/rehearsals --rehearsals=4

The first makes whole records, some of them led in by other talk; the second short ones of imagined
requests. A record depends on the seed and the sessions alone. The folder appears when it is
complete.
"""

from pathlib import Path

from absl import app, flags

from interaction.data import reasoning_records

_SESSIONS = flags.DEFINE_string("sessions", None, "Folder of make_sessions.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to make; it must not exist.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Of who leads in, and of what is imagined.", lower_bound=0)
_PRECEDED = flags.DEFINE_float("preceded", 0.5, "Share of whole records that are led in.", 0.0, 1.0)
_SHORT_RECORDS = flags.DEFINE_integer(
    "short_records", 0, "Short records of a session.", lower_bound=0
)


def main(_: list[str]) -> None:
    """Reads flags and makes the set."""
    path, out = Path(_SESSIONS.value), Path(_OUT.value)
    if _SHORT_RECORDS.value:
        made = reasoning_records.short_records_of(path, _SEED.value, _SHORT_RECORDS.value)
    else:
        made = reasoning_records.reasoning_records_of(path, _SEED.value, _PRECEDED.value)
    print(f"{out}: {reasoning_records.write_records(made, out)} records")


if __name__ == "__main__":
    app.run(main)
