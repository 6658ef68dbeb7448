r"""Free-running evaluation on held-out voices; the model's audio and text are scored.

python -m experiments.evaluate --checkpoint=demo --sessions=300 --seed=7 --json=out/evaluate.json

With --held_out_only each session has one request, a combination of words that training never has.
The 56 forms with such combinations come equally often. A row of the table joins the forms of one
intent.

With --suite=continuous long sessions are compared with fresh ones. In a long session --joined users
speak one after another, and the model keeps its state. In fresh sessions the model starts with an
empty state for each of the same users. A user's session lasts 24 s; in its last 8 s the user is
silent, so that the last answer ends within it.

python -m experiments.evaluate --suite=continuous --sessions=300 --joined=20

With --suite=delegation users make tool requests, in real time, and the background model of the
checkpoint works on them. `interaction.evaluation.delegation` defines the measures. With --joined
above 1 so many users follow one another in one long conversation. Its tools have one table of
prices and one time of day, those of its first user.

python -m experiments.evaluate --suite=delegation --sessions=200 --json=out/delegation.json
"""

import importlib.util
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import tqdm

import interaction
from experiments.agent_factory import agent_maker, find_background
from interaction.data.delegation_sessions import make_delegation_session
from interaction.data.domain import answer_words
from interaction.data.held_out import make_held_out_session
from interaction.data.sessions import make_session
from interaction.data.stored_session import StoredSession
from interaction.evaluation import summary
from interaction.evaluation.continuous import compare_continuous, continuous_table
from interaction.evaluation.delegation import score_delegations
from interaction.evaluation.delegation_summary import (
    delegation_table,
    summarise_delegations,
    summarise_joined,
)
from interaction.evaluation.events import TURN_S
from interaction.evaluation.joined import join_metas, join_users
from interaction.evaluation.recognizer import compare
from interaction.evaluation.rollout import Listener
from interaction.evaluation.run import Evaluation, choose_clips, evaluate
from interaction.evaluation.talk import TAIL_S, MakeAgent, read_recording, run_figures, run_sessions

REPLAYS = 100  # most records that are replayed
JOINED = 20  # default number of users in one long session
TALK_TURNS = 80  # micro-turns of a session in which the user speaks
TAIL_TURNS = 40  # silent micro-turns of the user after them; the longest answer lasts 6.7 s
BY_FORM = "answer_exact_by_form"


def run(
    model: Listener,
    sessions: int,
    seed: int,
    batch: int,
    asr: int,
    split: str,
    held_out_only: bool = False,
) -> dict[str, Any]:
    """Evaluates a model on single sessions; returns all figures, for JSON."""
    began = time.perf_counter()

    def make(index: int) -> StoredSession:
        if held_out_only:
            return make_held_out_session(seed, index)
        return make_session((seed, index), split)

    with tqdm(total=sessions, desc="sessions", unit="session") as progress:
        found = evaluate(model, make, sessions, seed, batch, shown_by(progress))
    return with_recogniser(found, asr) | {"wall_s": time.perf_counter() - began}


def shown_by(progress: tqdm) -> Callable[[int], object]:
    """A function that shows progress when it is called with the number of finished items."""
    return lambda done: progress.update(done - progress.n)


def with_recogniser(found: Evaluation, asr: int) -> dict[str, Any]:
    """The figures, with those of a speech recogniser on at most `asr` answers."""
    figures = found.figures
    chosen = choose_clips(found.clips, asr)
    print(f"recognising {len(chosen)} answers, each as generated and original")
    figures["asr"] = compare(chosen, answer_words())
    for key in ("generated", "original", "ratio"):
        name = f"asr_word_accuracy_{key}"
        figures[name] = figures["asr"].pop(name)
        figures["counts"][name] = figures["asr"]["clips"]
    return figures


def show(figures: dict[str, Any], held_out_only: bool = False) -> None:
    """Prints figures, counts of what was not scored, and the breakdown."""
    groups = (BY_FORM, *summary.BY_ENGINE) if held_out_only else summary.BY_ENGINE
    print(summary.table(figures, groups))
    show_excluded(figures)
    for name, group in figures["breakdown"].items():
        if group and name not in groups:
            shown = [f"{key} {one['rate']:.2f} ({one['n']})" for key, one in group.items()]
            print(f"{name}: " + ", ".join(shown))


def show_excluded(figures: dict[str, Any], where: str = "") -> None:
    """Prints how much was not scored, and why."""
    for key, reasons in figures["excluded"].items():
        for reason, count in reasons.items():
            print(f"not scored in {where}{key}: {count} ({reason})")


def run_continuous(
    model: Listener, sessions: int, joined: int, seed: int, batch: int, asr: int, split: str
) -> dict[str, Any]:
    """Evaluates a model on long sessions and on fresh ones; returns all figures, for JSON."""
    began = time.perf_counter()

    def make(index: int) -> StoredSession:
        turns = TALK_TURNS + TAIL_TURNS
        return make_session((seed, index), split, turns=turns, tail=TAIL_TURNS)

    with tqdm(total=2 * sessions, desc="sessions", unit="session") as progress:
        done = shown_by(progress)
        found = compare_continuous(model, make, sessions, joined, seed, batch, done)
    return {
        "continuous": with_recogniser(found.continuous, asr),
        "fresh": with_recogniser(found.fresh, asr),
        "answers": found.answers,
        "long_sessions": sessions // joined,
        "long_session_s": joined * TURN_S * (TALK_TURNS + TAIL_TURNS),
        "wall_s": time.perf_counter() - began,
    }


def show_continuous(figures: dict[str, Any]) -> None:
    """Prints the figures of long and of fresh sessions, and counts of what was not scored."""
    minutes = figures["long_session_s"] / 60
    print(f"{figures['long_sessions']} long sessions of {minutes:.1f} minutes")
    print(continuous_table(figures))
    for kind in ("continuous", "fresh"):
        show_excluded(figures[kind], f"{kind} ")


def make_talks(sessions: int, joined: int, seed: int) -> list[tuple[np.ndarray, str]]:
    """Makes users with tool requests.

    Args:
      sessions: Number of users.
      joined: Number of users in one long conversation.
      seed: Seed of the sessions.

    Returns:
      For each conversation the user's PCM, int16[n] at 16 kHz, and the meta as JSON.
    """
    made = []
    for index in tqdm(range(sessions), desc="users", unit="session"):
        first = index % joined == 0
        like = None if first else json.loads(made[index - index % joined]["meta"])
        made.append(make_delegation_session((seed, index), "heldout", like=like))
    if joined == 1:
        return [(record["user"], record["meta"]) for record in made]
    gap, talks = round(TAIL_S / TURN_S), []
    for first in range(0, sessions, joined):
        parts = made[first : first + joined]
        meta = join_metas([json.loads(part["meta"]) for part in parts], gap)
        talks.append((join_users([part["user"] for part in parts], gap), json.dumps(meta)))
    return talks


def run_delegations(
    model: interaction.InteractionModel,
    make_agent: MakeAgent,
    sessions: int,
    seed: int,
    at_once: int,
    records: pathlib.Path,
    joined: int = 1,
) -> dict[str, Any]:
    """Evaluates a model with its background model in real time; returns all figures, for JSON."""
    began = time.perf_counter()
    made = make_talks(sessions, joined, seed)
    turns = sum(json.loads(meta)["turns"] + round(TAIL_S / TURN_S) for _, meta in made)
    with tqdm(total=turns, desc=f"talking, {at_once} at once", unit="turn") as progress:
        paths = run_sessions(
            model, make_agent, made, seed, records, at_once, on_turn=progress.update
        )
    scores = []
    for path in tqdm(paths, desc="scoring", unit="session"):
        scores.append(score_delegations(read_recording(path, model.decode)))
    print(f"replaying {min(len(paths), REPLAYS)} records")
    figures = summarise_delegations(scores) | run_figures(paths, model, REPLAYS)
    if joined > 1:
        figures |= summarise_joined(scores)
    return figures | {"wall_s": time.perf_counter() - began}


def show_delegations(figures: dict[str, Any]) -> None:
    """Prints figures, counts of what was not scored, and some mistakes."""
    print(delegation_table(figures))
    for key, value in figures.items():
        if not isinstance(value, dict | list) and key not in figures["counts"]:
            print(f"{key}: {value:.2f}" if isinstance(value, float) else f"{key}: {value}")


def define_flags() -> None:
    """Defines the flags. Not at import, so that tests can import several commands."""
    flags.DEFINE_string("checkpoint", "demo", "Released model: a name or a folder.")
    flags.DEFINE_integer("sessions", 300, "Number of sessions, of one user each.", lower_bound=1)
    flags.DEFINE_integer("seed", 7, "Seed of the sessions and of the model's sampling.")
    flags.DEFINE_string("json", None, "File for all figures; a part of them is printed.")
    flags.DEFINE_integer("batch", 8, "Sessions that run together.", lower_bound=1)
    flags.DEFINE_integer("asr_sessions", 80, "Most answers for the recogniser.", lower_bound=0)
    flags.DEFINE_enum(
        "suite",
        "conversation",
        ["conversation", "continuous", "delegation"],
        "Sessions and measures, see above.",
    )
    flags.DEFINE_integer(
        "joined",
        None,
        f"Users in one long session; default: {JOINED} with --suite=continuous, else 1.",
        lower_bound=1,
    )
    flags.DEFINE_bool("held_out_only", False, "One request a session, a held-out combination.")
    flags.DEFINE_integer(
        "at_once", 4, "Conversations at once with --suite=delegation.", lower_bound=1
    )
    flags.DEFINE_string("records", "out/delegation", "Folder for records with --suite=delegation.")
    flags.DEFINE_string("background", None, "Background model; default: the checkpoint's.")
    flags.DEFINE_enum("split", "heldout", ["heldout", "train"], "Voices and word combinations.")


def joined_sessions(given: flags.FlagValues) -> int:
    """Checks that flags go together; returns the number of users in one long session.

    Raises:
      UsageError: They do not go together.
    """
    if given.suite == "delegation" and given.split == "train":
        raise app.UsageError(
            "--split: got train with --suite=delegation, where results do not belong to requests, "
            "wanted heldout; leave it out"
        )
    if given.held_out_only and (given.suite != "conversation" or given.split == "train"):
        raise app.UsageError(
            f"--held_out_only: got it with --suite={given.suite} --split={given.split}, wanted "
            "conversation and heldout; leave it out"
        )
    joined = given.joined or (JOINED if given.suite == "continuous" else 1)
    if given.suite == "conversation" and joined > 1:
        raise app.UsageError(
            f"--joined: got {joined} with --suite=conversation, wanted continuous or delegation; "
            "name one of them"
        )
    if given.sessions % joined:
        raise app.UsageError(
            f"--sessions: got {given.sessions}, wanted a multiple of --joined={joined}; change one "
            "of them"
        )
    return joined


def check_surroundings(given: Any) -> None:  # noqa: ANN401
    """Refuses a run that would fail only after its sessions: no recogniser, or records in the way.

    Args:
      given: The flags.

    Raises:
      UsageError: Names the flag and the fix.
    """
    if given.suite == "delegation":
        if any(pathlib.Path(given.records).glob("*.session")):
            raise app.UsageError(
                f"--records: got {given.records}, which has records, wanted a folder without any; "
                "remove it or name another"
            )
    elif given.asr_sessions and importlib.util.find_spec("pocketsphinx") is None:
        raise app.UsageError(
            f"--asr_sessions: got {given.asr_sessions} without a recogniser; install it with "
            "pip install -e '.[eval]', or set --asr_sessions=0"
        )


def main(argv: list[str]) -> None:
    """Evaluates a model, and prints and writes the figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    joined = joined_sessions(given)
    check_surroundings(given)
    model = interaction.load(given.checkpoint)
    names = ["checkpoint", "suite", "sessions", "seed", "split"]
    if given.suite == "delegation":
        background = given.background or find_background(given.checkpoint)
        if background is None:
            raise app.UsageError(
                f"--background: got none, and {given.checkpoint} has none beside it; name one"
            )
        figures = run_delegations(
            model,
            agent_maker(background),
            given.sessions,
            given.seed,
            given.at_once,
            pathlib.Path(given.records),
            joined,
        )
        figures["background"] = background
        names += ["at_once", "records"]
        show_delegations(figures)
    else:
        rest = given.seed, given.batch, given.asr_sessions, given.split
        names += ["batch", "asr_sessions", "held_out_only"]
        if given.suite == "continuous":
            figures = run_continuous(model, given.sessions, joined, *rest)
            show_continuous(figures)
        else:
            figures = run(model, given.sessions, *rest, given.held_out_only)
            show(figures, given.held_out_only)
    figures["command"] = {name: given[name].value for name in names} | {"joined": joined}
    if given.json:
        path = pathlib.Path(given.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
