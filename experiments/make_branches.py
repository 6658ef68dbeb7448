"""Makes records for the background model out of sessions: those with errands, some led in.

    python -m experiments.make_branches --sessions=data/errands --out=data/delegation

A record depends on the seed and the sessions alone. The folder appears when it is complete.
"""

from pathlib import Path

from absl import app, flags

from interaction.data import lead_in

_SESSIONS = flags.DEFINE_string("sessions", None, "Folder of make_sessions.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to make; it must not exist.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Of who leads in.", lower_bound=0)
_LED_IN = flags.DEFINE_float("led_in", 0.5, "Share of records that are led in.", 0.0, 1.0)


def main(_: list[str]) -> None:
    """Reads flags and makes the set."""
    out = Path(_OUT.value)
    count = lead_in.write_branches(Path(_SESSIONS.value), out, _SEED.value, _LED_IN.value)
    print(f"{out}: {count} records")


if __name__ == "__main__":
    app.run(main)
