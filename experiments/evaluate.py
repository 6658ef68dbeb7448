r"""Free-running evaluation on held-out voices, scored on the model's audio and text.

python -m experiments.evaluate --checkpoint=demo --sessions=300 --seed=7 --json=out/evaluate.json
"""

import json
import pathlib
import time
from typing import Any

from absl import app, flags
from tqdm import tqdm

import interaction
from experiments.compilation import use_compilation_cache
from interaction.data.domain import answer_words
from interaction.data.sessions import make_session
from interaction.evaluation import summary
from interaction.evaluation.recognizer import compare
from interaction.evaluation.rollout import Listener
from interaction.evaluation.run import choose_clips, evaluate


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
    for key in ("asr_word_accuracy_generated", "asr_word_accuracy_original", "heard_word_accuracy"):
        value = figures[key]
        print(f"{key:<41}{'-' if value is None else format(value, '.3f'):>11}")
    for key, reasons in figures["excluded"].items():
        for reason, count in reasons.items():
            print(f"not scored in {key}: {count} ({reason})")
    for name, groups in figures["breakdown"].items():
        shown = [f"{group} {g['rate']:.2f} ({g['n']})" for group, g in groups.items()]
        print(f"{name}: " + ", ".join(shown))


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_string("checkpoint", "demo", "Released model: a name or a folder.")
    flags.DEFINE_integer("sessions", 300, "Sessions of 16 s.", lower_bound=1)
    flags.DEFINE_integer("seed", 7, "Of the sessions and of the model's sampling.")
    flags.DEFINE_string("json", None, "File for the figures; parts of it are printed.")
    flags.DEFINE_integer("batch", 8, "Sessions streamed at once.", lower_bound=1)
    flags.DEFINE_integer("asr_sessions", 80, "Answers given to the recogniser.", lower_bound=0)
    flags.DEFINE_enum("split", "heldout", ["heldout", "train"], "Voices and combinations.")


def main(argv: list[str]) -> None:
    """Loads, evaluates, prints and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    use_compilation_cache()
    model = interaction.load(given.checkpoint)
    figures = run(model, given.sessions, given.seed, given.batch, given.asr_sessions, given.split)
    asked = ("checkpoint", "sessions", "seed", "batch", "asr_sessions", "split")
    figures["command"] = {name: given[name].value for name in asked}
    show(figures)
    if given.json:
        path = pathlib.Path(given.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
