r"""Cost of a preset: parameters, FLOPs, bytes, and lower bounds for the time of steps and training.

python -m experiments.model_cost --preset=small --json=out/cost_small.json

Times are modelled; `docs/model_cost.md` has the formulas.
"""

import json
import pathlib
from typing import Any

from absl import app, flags

from interaction.compiled.costs import (
    ADDED_PARTS,
    LAYER_OVERHEAD,
    inkling_counts,
    kv_bytes,
    parameter_counts,
    serving_slices,
    sessions_that_fit,
    state_bytes,
    step_flops,
    step_flops_by_part,
    step_time,
    turn_positions,
    turns_per_second,
    weight_bytes,
)
from interaction.compiled.slices import Slice, find_slice
from interaction.config import ModelConfig
from interaction.presets import PRESETS
from interaction.training.flops import train_flops, train_rate

# Variant of the step -> whether it has text and frames.
_INPUTS = {"audio": (False, False), "audio, text, frame": (True, True)}


def figures(
    config: ModelConfig, sessions: list[int], train_slices: list[str], turns: int, mfu: float
) -> dict[str, Any]:
    """All figures, under the names that `--json` uses.

    Args:
      config: Model configuration.
      sessions: Numbers of sessions of a step.
      train_slices: Names of the slices that train.
      turns: Micro-turns of a training session.
      mfu: Assumed share of the FLOP/s that training uses.
    """
    counts, inkling = parameter_counts(config), inkling_counts(config)
    weights, state = weight_bytes(config), state_bytes(config)
    minute = 60 * turns_per_second(config)
    train = train_flops(config, turns)
    return {
        "parameters_total": counts.total,
        "parameters_active": counts.active,
        "parameters_added": counts.total - inkling.total,
        "parameters_by_part": counts.by_part,
        "dtype": config.transformer.dtype,
        "positions": {name: turn_positions(config, *_INPUTS[name]) for name in _INPUTS},
        "step_flops": {name: step_flops(config, *_INPUTS[name]) for name in _INPUTS},
        "step_flops_by_part": step_flops_by_part(config),
        "train_turns": turns,
        "train_flops_per_turn": sum(train.values()) / turns,
        "train_flops_per_token": sum(train.values()) / turns / turn_positions(config),
        "train_flops_by_part": {part: count / turns for part, count in train.items()},
        "weight_bytes": sum(weights.values()),
        "weight_bytes_by_part": weights,
        "state_bytes_per_session": state,
        "kv_bytes_per_minute": round(minute * turn_positions(config) * kv_bytes(config)),
        "step_modelled": [
            _step_row(config, place, count, name)
            for place in serving_slices(config, max(sessions))
            for count in sessions
            for name in _INPUTS
        ],
        "mfu": mfu,
        "training_modelled": [
            {
                "slice": name,
                "chips": find_slice(name).chips,
                "tokens_per_s": rate.tokens,
                "audio_s_per_s": rate.audio,
            }
            for name in train_slices
            for rate in [train_rate(config, find_slice(name), turns, mfu)]
        ],
    }


def _step_row(config: ModelConfig, place: Slice, sessions: int, inputs: str) -> dict[str, Any]:
    time = step_time(config, place, sessions, *_INPUTS[inputs])
    used = sum(weight_bytes(config).values()) + sessions * state_bytes(config)
    return {
        "slice": place.name,
        "chips": place.chips,
        "sessions": sessions,
        "inputs": inputs,
        "hbm_ms": 1e3 * time.hbm,
        "flops_ms": 1e3 * time.flops,
        "floor_ms": 1e3 * time.floor,
        "with_overhead_ms": 1e3 * time.with_overhead,
        "hbm_used": used / place.hbm_bytes,
        "sessions_that_fit": sessions_that_fit(config, place),
    }


def table(preset: str, values: dict[str, Any]) -> str:
    """The figures as text."""
    total, active = values["parameters_total"], values["parameters_active"]
    weights, state = values["weight_bytes"], values["state_bytes_per_session"]
    positions, step = values["positions"], values["step_flops"]
    added = dict.fromkeys(part for _, part in ADDED_PARTS)
    lines = [
        f"{preset}: {total:,} parameters, {active:,} active",
        f"  of these {values['parameters_added']:,} are added to the Inkling architecture:"
        f" {', '.join(added)}",
        *(f"  {part:<18}{count:>20,}" for part, count in values["parameters_by_part"].items()),
        f"{values['dtype']} weights {_unit(weights)}B",
        f"a session's state {_unit(state)}B; a minute of conversation writes"
        f" {_unit(values['kv_bytes_per_minute'])}B of keys and values",
        *(
            f"a step on {name}: {positions[name]} positions, {_unit(step[name])}FLOP"
            for name in step
        ),
        f"training on sessions of {values['train_turns']} micro-turns:"
        f" {_unit(values['train_flops_per_token'])}FLOP a token (position),"
        f" {_unit(values['train_flops_per_turn'])}FLOP a micro-turn",
        *_step_lines(values["step_modelled"]),
        f"training at an MFU of {values['mfu']:.0%} (assumed), modelled:",
        *(
            f"  {row['slice']:<11}{row['chips']:>5} chips  {_unit(row['tokens_per_s'])} tokens/s,"
            f" {_unit(row['audio_s_per_s'])} seconds of audio/s"
            for row in values["training_modelled"]
        ),
    ]
    return "\n".join(lines)


def _step_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each slice, a column for each number of sessions and variant."""
    overhead = 1e3 * LAYER_OVERHEAD
    slices: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        slices.setdefault(row["slice"], []).append(row)
    heads = [f"{row['sessions']} x {row['inputs']}" for row in next(iter(slices.values()))]
    columns = "".join(f"{head:<24}" for head in heads).rstrip()
    lines = [
        f"a step, ms, modelled: roofline / with {overhead:.2f} ms per layer; sessions x inputs",
        f"  {'slice':<9}{'chips':>6}{'fit':>8}  {columns}",
    ]
    for name, mine in slices.items():
        times = (f"{row['floor_ms']:.2f} / {row['with_overhead_ms']:.2f}" for row in mine)
        columns = "".join(f"{time:<24}" for time in times).rstrip()
        row = mine[0]
        lines.append(f"  {name:<9}{row['chips']:>6}{row['sessions_that_fit']:>8}  {columns}")
    return lines


def _unit(value: float) -> str:
    """A number of three digits with a decimal prefix: "1.23 M"."""
    power = 0
    while value >= 1_000 and power < 6:
        value, power = value / 1_000, power + 1
    return f"{value:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}"


def main(argv: list[str]) -> None:
    """Prints the figures of a preset, and writes them if a flag names a file."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    sessions = sorted(given.sessions)
    config = PRESETS[given.preset]()
    values = figures(config, sessions, given.train_slices, given.turns, given.mfu)
    print(table(given.preset, values))
    if given.json:
        path = pathlib.Path(given.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"preset": given.preset, **values}, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_enum("preset", "small", list(PRESETS), "Model.")
    flags.DEFINE_string("json", None, "File for the figures.")
    flags.DEFINE_multi_integer("sessions", [32, 64], "Sessions of a step.", lower_bound=1)
    flags.DEFINE_list(
        "train_slices", ["v5p-2048", "v6e-1024", "tpu7x-1024"], "TPU slices for training."
    )
    flags.DEFINE_integer("turns", 1_500, "Micro-turns of a training session.", lower_bound=1)
    flags.DEFINE_float("mfu", 0.33, "Assumed share of the FLOP/s that training uses.", 0, 1)
    app.run(main)
