r"""Makes records for the training of the background model from sessions with delegations.

    sessions=data/delegation_sessions
    python -m experiments.make_reasoning --sessions=$sessions --out=data/delegation
    python -m experiments.make_reasoning --sessions=$sessions --out=data/short_records \
        --short_records=4

The first command makes whole records, of which a share is preceded by other sessions. The second
makes short records of imagined requests. A record depends only on the seed and the sessions. The
folder appears when it is complete.
"""

from pathlib import Path

from absl import app, flags

from interaction.data import reasoning_records

_SESSIONS = flags.DEFINE_string("sessions", None, "Folder that make_sessions made.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to make; it must not exist.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all random choices.", lower_bound=0)
_PRECEDED = flags.DEFINE_float(
    "preceded", 0.5, "Share of the whole records that other sessions precede.", 0.0, 1.0
)
_SHORT_RECORDS = flags.DEFINE_integer(
    "short_records", 0, "Short records of each session; 0 makes whole records.", lower_bound=0
)


def main(_: list[str]) -> None:
    """Makes the records."""
    path, out = Path(_SESSIONS.value), Path(_OUT.value)
    if _SHORT_RECORDS.value:
        made = reasoning_records.short_records(path, _SEED.value, _SHORT_RECORDS.value)
    else:
        made = reasoning_records.whole_records(path, _SEED.value, _PRECEDED.value)
    print(f"{out}: {reasoning_records.write_records(made, out)} records")


if __name__ == "__main__":
    app.run(main)
