r"""Free-running evaluation on held-out voices, scored on the model's audio and text.

python -m experiments.evaluate --checkpoint=demo --sessions=300 --seed=7 --json=out/evaluate.json

With --suite=delegation users ask for what takes a tool, in real time, with the background model
beside the checkpoint; the definitions are in `interaction.evaluation.delegation`.

python -m experiments.evaluate --suite=delegation --sessions=200 --json=out/delegation.json
"""

import json
import pathlib
import time
from typing import Any

from absl import app, flags
from tqdm import tqdm

import interaction
from experiments.agent_factory import agent_maker, find_background
from experiments.compilation_cache import use_compilation_cache
from interaction.data.delegation_sessions import make_delegation_session
from interaction.data.domain import answer_words
from interaction.data.sessions import make_session
from interaction.evaluation import summary
from interaction.evaluation.delegation import score_delegations
from interaction.evaluation.delegation_summary import delegation_table, summarise_delegations
from interaction.evaluation.recognizer import compare
from interaction.evaluation.rollout import Listener
from interaction.evaluation.run import choose_clips, evaluate
from interaction.evaluation.talk import TAIL_S, MakeAgent, read_recording, run_figures, run_sessions

REPLAYS = 100  # records that are run again, at most


def run(
    model: Listener, sessions: int, seed: int, batch: int, asr: int, split: str
) -> dict[str, Any]:
    """Evaluates a model and returns every figure, ready for JSON."""
    began = time.perf_counter()
    with tqdm(total=sessions, desc="sessions", unit="session") as progress:
        found = evaluate(
            model,
            lambda index: make_session((seed, index), split),
            sessions,
            seed,
            batch,
            lambda done: progress.update(done - progress.n),
        )
    figures = found.figures
    figures["wall_s"] = time.perf_counter() - began
    chosen = choose_clips(found.clips, asr)
    print(f"recognising {len(chosen)} answers, each as generated and original")
    figures["asr"] = compare(chosen, answer_words())
    for key in ("generated", "original", "ratio"):
        name = f"asr_word_accuracy_{key}"
        figures[name] = figures["asr"].pop(name)
        figures["counts"][name] = figures["asr"]["clips"]
    return figures


def show(figures: dict[str, Any]) -> None:
    """Prints figures, what was left out, and where wrong answers come from."""
    print(summary.table(figures))
    for key in (
        "asr_word_accuracy_generated",
        "asr_word_accuracy_original",
        "transcript_word_accuracy",
    ):
        value = figures[key]
        print(f"{key:<41}{'-' if value is None else format(value, '.3f'):>11}")
    for key, reasons in figures["excluded"].items():
        for reason, count in reasons.items():
            print(f"not scored in {key}: {count} ({reason})")
    for name, groups in figures["breakdown"].items():
        shown = [f"{group} {g['rate']:.2f} ({g['n']})" for group, g in groups.items()]
        print(f"{name}: " + ", ".join(shown))


def run_delegations(
    model: interaction.InteractionModel,
    make_agent: MakeAgent,
    sessions: int,
    seed: int,
    at_once: int,
    records: pathlib.Path,
) -> dict[str, Any]:
    """Lets users ask for what takes a tool, in real time, and returns every figure."""
    began = time.perf_counter()
    made = []
    for index in tqdm(range(sessions), desc="users", unit="session"):
        record = make_delegation_session((seed, index), "heldout")
        made.append((record["user"], record["meta"]))
    turns = sum(json.loads(meta)["turns"] + round(5 * TAIL_S) for _, meta in made)
    with tqdm(total=turns, desc=f"talking, {at_once} at once", unit="turn") as progress:
        paths = run_sessions(
            model, make_agent, made, seed, records, at_once, on_turn=progress.update
        )
    scores = []
    for path in tqdm(paths, desc="scoring", unit="session"):
        scores.append(score_delegations(read_recording(path, model.decode)))
    print(f"running {min(len(paths), REPLAYS)} records again")
    figures = summarise_delegations(scores) | run_figures(paths, model, REPLAYS)
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
    flags.DEFINE_enum("suite", "conversation", ["conversation", "delegation"], "What users want.")
    flags.DEFINE_integer("at_once", 4, "Conversations in real time at once.", lower_bound=1)
    flags.DEFINE_string("records", "out/delegation", "Folder for the records of conversations.")
    flags.DEFINE_string("background", None, "Background model; default: beside the checkpoint.")
    flags.DEFINE_enum("split", "heldout", ["heldout", "train"], "Voices and combinations.")


def main(argv: list[str]) -> None:
    """Loads, evaluates, prints and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    if given.suite == "delegation" and given.split == "train":
        raise app.UsageError(
            "--split: got train, whose results no tool gives, wanted heldout; leave it out"
        )
    use_compilation_cache()
    model = interaction.load(given.checkpoint)
    asked = ["checkpoint", "suite", "sessions", "seed", "split"]
    if given.suite == "delegation":
        background = given.background or find_background(given.checkpoint)
        if background is None:
            raise app.UsageError(f"no background model beside {given.checkpoint}; name one")
        records = pathlib.Path(given.records)
        figures = run_delegations(
            model,
            agent_maker(background),
            given.sessions,
            given.seed,
            given.at_once,
            records,
        )
        figures["background"] = background
        asked += ["at_once", "records"]
        show_delegations(figures)
    else:
        figures = run(
            model, given.sessions, given.seed, given.batch, given.asr_sessions, given.split
        )
        asked += ["batch", "asr_sessions"]
        show(figures)
    figures["command"] = {name: given[name].value for name in asked}
    if given.json:
        path = pathlib.Path(given.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
