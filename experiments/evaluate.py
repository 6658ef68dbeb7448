r"""Free-running evaluation on held-out voices, scored on the model's audio and text.

python -m experiments.evaluate --checkpoint=demo --sessions=300 --seed=7 --json=out/evaluate.json

With --held_out_only every session has one request, a combination of words that training never has.
The 56 forms that have such combinations come equally often; a row of the table joins the forms of
one intent.

With --suite=continuous one user after another speaks to a model that is never started anew,
--joined of them in one long session; beside it the same audio is heard in fresh sessions. Each
session lasts 24 s, of which the last 8 s are for its last answer: nobody speaks but the model.

python -m experiments.evaluate --suite=continuous --sessions=300 --joined=20

With --suite=delegation users ask for what takes a tool, in real time, with the background model
beside the checkpoint; the definitions are in `interaction.evaluation.delegation`. With --joined
above 1 so many users follow one another in one long talk. Its tools have one table and one time of
day, those of its first user.

python -m experiments.evaluate --suite=delegation --sessions=200 --json=out/delegation.json
"""

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
from experiments.compilation_cache import use_compilation_cache
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

REPLAYS = 100  # records that are run again, at most
JOINED = 20  # sessions of one long session
TALK_TURNS = 80  # micro-turns of a session in which its user speaks
TAIL_TURNS = 40  # after them, in a long session: the longest answer lasts 6.7 s
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
    """Evaluates a model and returns every figure, ready for JSON."""
    began = time.perf_counter()

    def make(index: int) -> StoredSession:
        if held_out_only:
            return make_held_out_session(seed, index)
        return make_session((seed, index), split)

    with tqdm(total=sessions, desc="sessions", unit="session") as progress:
        found = evaluate(model, make, sessions, seed, batch, shown_by(progress))
    return with_recogniser(found, asr) | {"wall_s": time.perf_counter() - began}


def shown_by(progress: tqdm) -> Callable[[int], object]:
    """A function that is called with the number of what is done."""
    return lambda done: progress.update(done - progress.n)


def with_recogniser(found: Evaluation, asr: int) -> dict[str, Any]:
    """The figures, with those of a recogniser that hears at most `asr` of the answers."""
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
    """Prints figures, what was left out, and where wrong answers come from."""
    groups = (BY_FORM, *summary.BY_ENGINE) if held_out_only else summary.BY_ENGINE
    print(summary.table(figures, groups))
    show_excluded(figures)
    for name, group in figures["breakdown"].items():
        if group and name not in groups:
            shown = [f"{key} {one['rate']:.2f} ({one['n']})" for key, one in group.items()]
            print(f"{name}: " + ", ".join(shown))


def show_excluded(figures: dict[str, Any], where: str = "") -> None:
    """Prints what was not scored, and why."""
    for key, reasons in figures["excluded"].items():
        for reason, count in reasons.items():
            print(f"not scored in {where}{key}: {count} ({reason})")


def run_continuous(
    model: Listener, sessions: int, joined: int, seed: int, batch: int, asr: int, split: str
) -> dict[str, Any]:
    """Evaluates a model on long sessions and on their parts as fresh ones; ready for JSON."""
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
    """Prints the figures of long and of fresh sessions side by side, and what was left out."""
    minutes = figures["long_session_s"] / 60
    print(f"{figures['long_sessions']} long sessions of {minutes:.1f} minutes")
    print(continuous_table(figures))
    for kind in ("continuous", "fresh"):
        show_excluded(figures[kind], f"{kind} ")


def make_talks(sessions: int, joined: int, seed: int) -> list[tuple[np.ndarray, str]]:
    """PCM and meta of users who ask for what takes a tool, `joined` of them in one long talk."""
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
    """Lets users ask for what takes a tool, in real time, and returns every figure."""
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
    print(f"running {min(len(paths), REPLAYS)} records again")
    figures = summarise_delegations(scores) | run_figures(paths, model, REPLAYS)
    if joined > 1:
        figures |= summarise_joined(scores)
    return figures | {"wall_s": time.perf_counter() - began}


def show_delegations(figures: dict[str, Any]) -> None:
    """Prints figures, what was left out, and some mistakes."""
    print(delegation_table(figures))
    for key, value in figures.items():
        if not isinstance(value, dict | list) and key not in figures["counts"]:
            print(f"{key}: {value:.2f}" if isinstance(value, float) else f"{key}: {value}")


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_string("checkpoint", "demo", "Released model: a name or a folder.")
    flags.DEFINE_integer("sessions", 300, "Sessions of 16 s.", lower_bound=1)
    flags.DEFINE_integer("seed", 7, "Of the sessions and of the model's sampling.")
    flags.DEFINE_string("json", None, "File for the figures; parts of it are printed.")
    flags.DEFINE_integer("batch", 8, "Sessions streamed at once.", lower_bound=1)
    flags.DEFINE_integer("asr_sessions", 80, "Answers given to the recogniser.", lower_bound=0)
    flags.DEFINE_enum(
        "suite", "conversation", ["conversation", "continuous", "delegation"], "What users want."
    )
    flags.DEFINE_integer(
        "joined",
        None,
        f"Sessions of one long session; default: {JOINED} with --suite=continuous, else 1.",
        lower_bound=1,
    )
    flags.DEFINE_bool("held_out_only", False, "One request a session, of held-out combinations.")
    flags.DEFINE_integer("at_once", 4, "Conversations in real time at once.", lower_bound=1)
    flags.DEFINE_string("records", "out/delegation", "Folder for the records of conversations.")
    flags.DEFINE_string("background", None, "Background model; default: beside the checkpoint.")
    flags.DEFINE_enum("split", "heldout", ["heldout", "train"], "Voices and combinations.")


def joined_sessions(given: flags.FlagValues) -> int:
    """Checks flags against one another; returns how many sessions make a long one.

    Raises:
      UsageError: they do not go together.
    """
    if given.suite == "delegation" and given.split == "train":
        raise app.UsageError(
            "--split: got train, whose results no tool gives, wanted heldout; leave it out"
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
            f"--sessions: got {given.sessions}, wanted a multiple of --joined={joined}, for whole "
            "long sessions; change one of them"
        )
    return joined


def main(argv: list[str]) -> None:
    """Loads, evaluates, prints and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    joined = joined_sessions(given)
    use_compilation_cache()
    model = interaction.load(given.checkpoint)
    names = ["checkpoint", "suite", "sessions", "seed", "split"]
    if given.suite == "delegation":
        background = given.background or find_background(given.checkpoint)
        if background is None:
            raise app.UsageError(f"no background model beside {given.checkpoint}; name one")
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
