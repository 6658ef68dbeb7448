r"""Times the step, PCM to PCM, beside the same step in PyTorch.

python -m experiments.bench_step --preset=demo --json=out/bench_step.json

Both sides run the same random parameters on the recorded user of the demo, repeatedly, in
alternating blocks of one process, so that other load of the machine affects both. PyTorch runs on
its fastest number of threads. A micro-turn lasts from PCM in a numpy array to PCM in a numpy array.
Both sides skip the flow head if no session speaks, and the vocoder if all sessions have been silent
for long, so micro-turns with and without speech are also reported apart.
"""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from absl import app, flags

import interaction
from experiments.baselines.torch_stream import TorchStream
from experiments.figures_file import write_figures
from interaction.compiled.compilation_cache import use_compilation_cache
from interaction.data import tokenizer
from interaction.data.audio_file import read_audio
from interaction.data.bundled_user import ASSET
from interaction.model.parameters import init_model_params
from interaction.presets import PRESETS
from interaction.pretrained.store import save_model
from interaction.types import Special

_PRESET = flags.DEFINE_enum("preset", "demo", list(PRESETS), "Size of the model.")
_JSON = flags.DEFINE_string("json", None, "File for the figures.")
_TURNS = flags.DEFINE_integer("turns", 1_000, "Micro-turns timed on each side.", lower_bound=1)

# Micro-turns: before the timing, timed per block, and not timed at the start of a block.
_WARM_UP, _BLOCK, _SETTLE = 30, 50, 2
_SILENCE = 4.0  # factor of the logit of silence, with which `demo` speaks in a third of them
_FIRST_REPLY = """
import resource, sys
import numpy as np
import interaction
model = interaction.load(sys.argv[1])
state = model.init_state(sessions=1, seed=0)
pcm = np.zeros((1, model.config.audio.turn_samples), np.float32)
for turn in range(100):
    state, reply = model.step(state, interaction.Chunk(audio=pcm))
    np.asarray(reply.audio)
    if turn == 0:
        print("replied", flush=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

# Runs a micro-turn of PCM float32[b, turn_samples]; returns seconds until the call returned, and
# the text-out tokens, integers [b].
MicroTurn = Callable[[np.ndarray], tuple[float, np.ndarray]]


def conversation(sessions: int, samples: int) -> np.ndarray:
    """Cuts the recorded user into micro-turns.

    Args:
      sessions: Sessions, which start at evenly spaced micro-turns.
      samples: Samples of a micro-turn.

    Returns:
      PCM float32[turns, sessions, samples].
    """
    pcm = read_audio(ASSET)
    turns = pcm[: len(pcm) // samples * samples].reshape(-1, samples)
    starts = np.arange(sessions) * len(turns) // sessions
    return np.stack([np.roll(turns, -start, axis=0) for start in starts], axis=1)


def save_random(preset: str, folder: pathlib.Path) -> None:
    """Saves a model of random parameters, which is silent in most micro-turns."""
    use_compilation_cache()
    config = PRESETS[preset]()
    init = jax.jit(functools.partial(init_model_params, config))
    params = jax.tree.map(np.array, init(jax.random.key(0)))
    params["backbone"]["heads"]["text"][:, Special.SILENT] *= _SILENCE
    save_model(folder, config, params, tokenizer.PATH)


def first_reply(folder: pathlib.Path) -> tuple[float, float]:
    """Time from the start of a process to its first reply, s, and its peak memory, MiB.

    Measures the second of two processes, which finds a full compilation cache.
    """
    for _ in range(2):
        start = time.perf_counter()
        command = [sys.executable, "-c", _FIRST_REPLY, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            out = process.stdout
            if out is None or out.readline().strip() != "replied":
                raise RuntimeError("the process ended before its first reply; see its error above")
            seconds, memory = time.perf_counter() - start, float(out.readline())
    return seconds, memory


def ours(model: interaction.InteractionModel, sessions: int) -> MicroTurn:
    """Micro-turns of the library, called as users call it."""
    state = model.init_state(sessions=sessions, seed=0)

    def turn(pcm: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal state
        start = time.perf_counter()
        chunk = interaction.Chunk(audio=pcm)  # pyrefly: ignore[bad-argument-type]
        state, reply = model.step(state, chunk)
        returned = time.perf_counter() - start
        np.asarray(reply.audio)
        return returned, np.asarray(reply.text)

    return turn


def theirs(stream: TorchStream) -> MicroTurn:
    """Micro-turns of the baseline, which is eager: its call returns when the work is done."""

    def turn(pcm: np.ndarray) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        _, token = stream.step(pcm)
        return time.perf_counter() - start, token

    return turn


def run_block(turn: MicroTurn, chunks: np.ndarray) -> np.ndarray:
    """Runs n micro-turns.

    Args:
      turn: Runs one.
      chunks: PCM float32[n, b, turn_samples].

    Returns:
      float64[n, 3]: duration of each micro-turn, s; duration until its call returned, s; and 1 if
      some session spoke, else 0.
    """
    rows = []
    for pcm in chunks:
        start = time.perf_counter()
        returned, token = turn(pcm)
        rows.append((time.perf_counter() - start, returned, np.any(token != Special.SILENT)))
    return np.array(rows, float)


def best_threads(turn: MicroTurn, chunks: np.ndarray, cores: int) -> int:
    """Finds the number of threads on which PyTorch runs the conversation fastest.

    Args:
      turn: Runs a micro-turn.
      chunks: PCM float32[n, b, turn_samples].
      cores: Largest number of threads.
    """
    seconds = {}
    for threads in range(1, cores + 1):
        torch.set_num_threads(threads)
        seconds[threads] = float(np.sum(run_block(turn, chunks)[:, 0]))
    return min(seconds, key=seconds.__getitem__)


def compare(folder: pathlib.Path, sessions: int, turns: int) -> dict[str, float]:
    """Times both sides at a number of sessions; `main` describes the figures."""
    model = interaction.load(str(folder))
    stream = TorchStream(model.config, model.params, sessions)
    sides = {"step": ours(model, sessions), "torch": theirs(stream)}
    chunks = conversation(sessions, model.config.audio.turn_samples)
    for turn in sides.values():
        run_block(turn, chunks[:_WARM_UP])
    cores = len(os.sched_getaffinity(0))
    threads = best_threads(sides["torch"], chunks, cores)
    torch.set_num_threads(threads)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    for block in range(-(-turns // _BLOCK)):
        first = block * (_SETTLE + _BLOCK)
        places = np.arange(first, first + _SETTLE + _BLOCK) % len(chunks)
        for name, turn in sides.items():
            rows[name].append(run_block(turn, chunks[places])[_SETTLE:])
    figures: dict[str, float] = {"torch_threads": threads}
    for name, blocks in rows.items():
        total, returned, spoke = np.concatenate(blocks)[:turns].T
        total, spoke = 1e3 * total, spoke.astype(bool)
        figures[f"{name}_p50_ms"], figures[f"{name}_p99_ms"] = np.percentile(total, (50, 99))
        for part, among in {"speaking": spoke, "silent": ~spoke}.items():
            if np.any(among):
                figures[f"{name}_{part}_p50_ms"] = np.median(total[among])
        figures[f"{name}_speaking_share"] = np.mean(spoke)
        if name == "step":
            figures["host_overhead_ms"] = 1e3 * np.median(returned)
    for part in ("", "_speaking", "_silent"):
        ours_ms, torch_ms = (figures.get(f"{side}{part}_p50_ms") for side in ("step", "torch"))
        if ours_ms and torch_ms:
            figures[f"ratio_to_torch{part}"] = ours_ms / torch_ms
    return figures


def main(argv: list[str]) -> None:
    """Prints and writes the figures.

    step_p50_ms and step_p99_ms are micro-turns of the library, torch_* those of the baseline, and
    ratio_to_torch is the quotient of the medians. Names with _speaking are of micro-turns in which
    some session spoke, those with _silent of the others; *_speaking_share is the share of the
    former. host_overhead_ms is the median time until the library's call returns. Names with _8 are
    the same figures at eight sessions. first_reply_s and peak_memory_mb (in MiB) belong to a
    process with one session.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        save_random(_PRESET.value, folder)
        seconds, memory = first_reply(folder)
        figures = {"first_reply_s": seconds, "peak_memory_mb": memory}
        figures |= compare(folder, 1, _TURNS.value)
        eight = compare(folder, 8, _TURNS.value)
    figures |= {f"{name}_8": value for name, value in eight.items()}
    figures |= {"turns": _TURNS.value, "cores": len(os.sched_getaffinity(0))}
    figures = {name: round(float(value), 3) for name, value in figures.items()}
    for name, value in figures.items():
        print(f"{name:<28}{value:>10g}")
    write_figures(figures, _JSON.value)


if __name__ == "__main__":
    app.run(main)
