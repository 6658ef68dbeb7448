r"""What a preset costs: parameters, FLOPs, bytes, and how long steps and training take at best.

python -m interaction.report --preset=small --json=out/report_small.json

Parameters and bytes are counted on the shapes of the real trees, FLOPs from the config, and the
tests hold them against what is traced. Times are modelled. `docs/report.md` has every formula.
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

from interaction.config import ModelConfig, SpeechConfig
from interaction.distributed.sharding import cast_params
from interaction.model import session_state
from interaction.model.backbone import LONG, SLIDING
from interaction.model.parameters import init_model_params
from interaction.presets import PRESETS
from interaction.training.speech import flow_rows

LAYER_OVERHEAD = 0.30e-3  # s a layer above the floor: what servers of such models spend today
HBM_SHARE = 0.9  # of a slice's memory that weights and sessions may take
_TIME_WIDTH = 64  # of the flow network's time features, see `FlowNet`
_BACKWARD = 3  # forward and backward over forward
_INPUTS = {"audio": (False, False), "audio, text, frame": (True, True)}  # variants of the step


class Chip(NamedTuple):
    """Ceilings of one chip, as its vendor states them."""

    flops: float  # bfloat16 FLOP/s
    hbm_rate: float  # bytes/s
    hbm: int  # bytes
    devices: int  # JAX devices
    cores: int  # what the number in a slice's name counts


CHIPS = {
    "v5e": Chip(197e12, 0.82e12, 16 << 30, 1, 1),
    "v5p": Chip(459e12, 2.77e12, 95 << 30, 1, 2),
    "v6e": Chip(918e12, 1.64e12, 32 << 30, 1, 1),
    "tpu7x": Chip(2_307e12, 7.38e12, 192 << 30, 2, 2),
    "h200": Chip(989e12, 4.8e12, 141 * 10**9, 1, 1),
}


class Slice(NamedTuple):
    """Some chips of one kind."""

    name: str
    chip: Chip
    chips: int

    @property
    def hbm(self) -> int:
        """Bytes of memory."""
        return self.chips * self.chip.hbm


def slice_of(name: str) -> Slice:
    """The slice of a name such as "v5p-64": 64 cores, which are 32 chips.

    Raises:
      ValueError: No such chip, or a number that is no whole number of chips.
    """
    kind, _, number = name.partition("-")
    size = int(number) if number.isdecimal() else 0
    if kind not in CHIPS or size < 1 or size % CHIPS[kind].cores:
        raise ValueError(
            f"slice: got {name!r}, wanted one of {'|'.join(CHIPS)}, '-' and a number of cores that "
            "makes whole chips, such as v5p-64 or v6e-32; correct the name"
        )
    return Slice(name, CHIPS[kind], size // CHIPS[kind].cores)


class Counts(NamedTuple):
    """Parameters of a model."""

    total: int
    active: int  # all but the experts that a token does not choose and tables that are looked up
    by_part: dict[str, int]


# Path of a parameter -> part of the model.
_PARTS = (
    (r"backbone/(sliding|long)/(query|key|value|attention_out|sink|(query|key)_norm)", "attention"),
    (r"backbone/(sliding|long)/(gate|up|down)", "experts"),
    (r"backbone/(sliding|long)/shared_(gate|up|down)", "shared expert"),
    (r"backbone/(sliding|long)/router|router_bias", "router"),
    (r"backbone/(sliding|long)/(attention|ffn)_norm", "norms"),
    (
        r"backbone/text_in/table|backbone/audio_in/(user|self)_table|speech/condition/table",
        "tables",
    ),
    (r"backbone/audio_in/.*", "audio in"),
    (r"backbone/video_in/.*", "video in"),
    (r"backbone/text_in/.*", "text in"),
    (r"backbone/heads/.*", "read-out"),
    (r"speech/condition/.*", "speech condition"),
    (r"speech/flow/.*", "speech flow"),
    (r"vocoder/.*", "vocoder"),
)


def _part(path: tuple) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    found = [part for pattern, part in _PARTS if re.fullmatch(pattern, name)]
    if not found:
        raise ValueError(f"report: {name!r} belongs to no part; add it to _PARTS")
    return found[0]


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return leaf.size * leaf.dtype.itemsize


def _sum_parts(tree: Any, size: Callable[[jax.ShapeDtypeStruct], int]) -> dict[str, int]:  # noqa: ANN401
    parts = {part: 0 for _, part in _PARTS}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        parts[_part(path)] += size(leaf)
    return parts


@functools.cache
def _abstract_params(config: ModelConfig) -> Any:  # noqa: ANN401
    return jax.eval_shape(lambda: init_model_params(config, jax.random.key(0)))


def parameter_counts(config: ModelConfig) -> Counts:
    """Parameters of a model, from the shapes that its initialisation makes.

    Active is what a micro-turn's step uses for a token: everything but the experts that a router
    does not choose, and the rows of tables, which are looked up and not multiplied.
    """
    cfg = config.transformer
    by_part = _sum_parts(_abstract_params(config), lambda leaf: leaf.size)
    total = sum(by_part.values())
    idle = by_part["experts"] * (cfg.experts - cfg.experts_per_token) // cfg.experts
    return Counts(total, total - idle - by_part["tables"], by_part)


@functools.cache
def _served_params(config: ModelConfig) -> Any:  # noqa: ANN401
    cast = partial(cast_params, dtype=config.transformer.dtype)
    return jax.eval_shape(cast, _abstract_params(config))


def weight_bytes(config: ModelConfig) -> dict[str, int]:
    """Bytes of the weights by part, as serving keeps them: see `sharding.cast_params`."""
    return _sum_parts(_served_params(config), _bytes)


@functools.cache
def _abstract_state(config: ModelConfig) -> session_state.StreamState:
    keys = jax.ShapeDtypeStruct((1, 2), "uint32")
    return jax.eval_shape(partial(session_state.init_state, config), keys)


def state_bytes(config: ModelConfig) -> int:
    """Bytes of one session's state: constant, however long it talks."""
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(_abstract_state(config)))


def kv_bytes(config: ModelConfig) -> int:
    """Bytes of keys and values that one position writes, in all layers."""
    cfg = config.transformer
    size = jnp.dtype(cfg.dtype).itemsize
    return 2 * cfg.layers * cfg.kv_heads * cfg.head_dim * size


def turn_positions(config: ModelConfig, text: bool = False, frame: bool = False) -> int:
    """Positions of a micro-turn, of the variant with text or a frame coming in."""
    return config.audio_positions + 1 + text * config.text_slots + frame * config.patches


def turns_per_second(config: ModelConfig) -> float:
    """Micro-turns in a second of talk."""
    return config.audio.sample_rate / config.audio.turn_samples


def _backbone_products(
    config: ModelConfig, turns: int, seen: tuple[int, int], text: bool, frame: bool
) -> dict[str, int]:
    """Multiply-adds of the transformer by part.

    Args:
      config: The model's.
      turns: Micro-turns of one session.
      seen: Pairs of a query and a key in one sliding layer, and in one long layer.
      text: Whether the variant has positions for text that arrives.
      frame: Whether it has those of a frame.
    """
    cfg, audio = config.transformer, config.audio_positions
    long = cfg.layers // cfg.long_every
    pairs = (cfg.layers - long) * seen[0] + long * seen[1]
    tokens = turns * turn_positions(config, text, frame)
    rows = cfg.layers * tokens * cfg.dim
    width = config.audio.user_frames // audio * config.frame_dim
    return {
        "projections": rows * 2 * (cfg.heads + cfg.kv_heads) * cfg.head_dim,
        "attention": 2 * pairs * cfg.heads * cfg.head_dim,
        "router": rows * cfg.experts,
        "experts": rows * cfg.experts_per_token * 3 * cfg.expert_ffn,
        "shared expert": rows * 3 * cfg.shared_ffn,
        "read-out": turns * (audio + 1) * cfg.dim * config.vocab,
        "audio in": turns * audio * (width + cfg.dim) * 2 * cfg.dim,
        "video in": turns * frame * config.patches * _patch_products(cfg.dim),
    }


def _patch_products(dim: int) -> int:
    width = dim // 4  # 64 folds of 5x5 pixels, 4 of 4x4 of those, 1 of 2x2
    return 64 * 75 * width + 4 * 16 * width * width + 4 * width * dim


def _condition_products(config: ModelConfig) -> int:
    cfg, audio = config.speech, config.audio
    seen = cfg.token_window * cfg.token_dim + cfg.prefix_frames * audio.mels
    made = audio.speech_frames * (cfg.feature_dim + audio.mels)
    hidden = 2 * cfg.condition_layers * cfg.condition_dim
    return cfg.condition_dim * (seen + config.transformer.dim + hidden + made)


def _flow_products(cfg: SpeechConfig, frames: int, mels: int) -> int:
    """Of one evaluation of the flow network."""
    mix = 4 * frames * frames * cfg.dim
    feed = frames * 6 * cfg.dim * cfg.dim
    layer = _TIME_WIDTH * 6 * cfg.dim + mix + feed
    ends = frames * (3 * mels + cfg.feature_dim) * cfg.dim
    return cfg.layers * layer + ends + _TIME_WIDTH * _TIME_WIDTH


def _vocoder_products(config: ModelConfig) -> int:
    cfg, audio = config.vocoder, config.audio
    block = 4 * cfg.dim * cfg.dim  # up to twice the width, and down
    ends = cfg.dim * (3 * audio.mels + cfg.pitch_bins + 2 * cfg.order)
    return audio.speech_frames * (cfg.layers * block + ends + audio.mels * cfg.order)


def step_flops_by_part(
    config: ModelConfig, text: bool = False, frame: bool = False
) -> dict[str, int]:
    """FLOPs of a micro-turn's step for one session, of its matrix products.

    Args:
      config: The model's.
      text: Whether the variant has positions for text that arrives.
      frame: Whether it has those of a frame.
    """
    audio, cfg = config.audio, config.speech
    slots = _ring_slots(config)
    tokens = turn_positions(config, text, frame)
    flow = _flow_products(cfg, audio.speech_frames, audio.mels)
    products = {
        **_backbone_products(config, 1, (tokens * slots[0], tokens * slots[1]), text, frame),
        "front end": audio.user_frames * (audio.n_fft // 2 + 1) * audio.mels,
        "speech condition": _condition_products(config),
        "speech flow": cfg.flow_steps * flow,
        "vocoder": _vocoder_products(config),
    }
    return {part: 2 * count for part, count in products.items()}


def step_flops(config: ModelConfig, text: bool = False, frame: bool = False) -> int:
    """FLOPs of a micro-turn's step for one session, see `step_flops_by_part`."""
    return sum(step_flops_by_part(config, text, frame).values())


def _ring_slots(config: ModelConfig) -> tuple[int, int]:
    """Slots of the ring of a sliding and of a long layer: a step scores all of them."""
    caches = _abstract_state(config).caches
    return caches[SLIDING].k.shape[2], caches[LONG].k.shape[2]


def _windowed(tokens: int, window: int) -> int:
    """Pairs of a query and a key that it sees: up to `window`, its own included."""
    ramp = min(tokens, window)
    return ramp * (ramp + 1) // 2 + (tokens - ramp) * window


def train_flops(
    config: ModelConfig, turns: int, text: bool = False, frame: bool = False
) -> dict[str, float]:
    """FLOPs that training on one session needs, by part: what MFU is a share of.

    Forward and backward, three times the forward's matrix products; what the backward pass computes
    again is not counted, and attention is counted at the keys that its windows show. A share of
    micro-turns trains the speech head, see `training.speech`; the vocoder trains elsewhere.

    Args:
      config: The model's.
      turns: Micro-turns of the session.
      text: Whether the batch has positions for text that arrives.
      frame: Whether it has those of frames.
    """
    cfg, audio = config.transformer, config.audio
    tokens = turns * turn_positions(config, text, frame)
    seen = (_windowed(tokens, cfg.window), _windowed(tokens, cfg.long_window))
    products = _backbone_products(config, turns, seen, text, frame)
    flops = {part: 2.0 * _BACKWARD * count for part, count in products.items()}
    rows, flowing = flow_rows(turns)  # a condition each, after one that feeds it and is not trained
    flow = _flow_products(config.speech, audio.speech_frames, audio.mels)
    flops["speech condition"] = 2.0 * (_BACKWARD + 1) * rows * _condition_products(config)
    flops["speech flow"] = 2.0 * _BACKWARD * flowing * flow
    return flops


class StepTime(NamedTuple):
    """A modelled step."""

    floor: float  # s, the longer of the two times below
    hbm: float  # s to read weights and state
    flops: float  # s of matrix products at the ceiling
    with_overhead: float  # s, LAYER_OVERHEAD for each layer on top


def step_bytes(
    config: ModelConfig, sessions: int, text: bool = False, frame: bool = False
) -> float:
    """Bytes that a step reads: weights once, of the experts those that are chosen, and all state.

    Tokens are taken to choose experts evenly and on their own; tables are looked up; the flow
    network is read in each of its steps.
    """
    cfg, parts = config.transformer, weight_bytes(config)
    tokens = sessions * turn_positions(config, text, frame)
    missed = (1 - cfg.experts_per_token / cfg.experts) ** tokens
    again = (config.speech.flow_steps - 1) * parts["speech flow"]
    weights = sum(parts.values()) - parts["tables"] - missed * parts["experts"] + again
    return weights + sessions * state_bytes(config)


def step_time(
    config: ModelConfig, place: Slice, sessions: int, text: bool = False, frame: bool = False
) -> StepTime:
    """Roofline of a step whose bytes and FLOPs are spread evenly over a slice."""
    hbm = step_bytes(config, sessions, text, frame) / (place.chips * place.chip.hbm_rate)
    flops = sessions * step_flops(config, text, frame) / (place.chips * place.chip.flops)
    floor = max(hbm, flops)
    return StepTime(floor, hbm, flops, floor + LAYER_OVERHEAD * config.transformer.layers)


def sessions_that_fit(config: ModelConfig, place: Slice) -> int:
    """Sessions whose state fits beside the weights in HBM_SHARE of the memory; at least 0."""
    free = HBM_SHARE * place.hbm - sum(weight_bytes(config).values())
    return max(int(free // state_bytes(config)), 0)


def serving_slices(config: ModelConfig, sessions: int) -> list[Slice]:
    """Of each TPU the smallest power of two that holds a model and sessions, and twice, four times.

    Of GPUs as many as are needed.
    """
    found = []
    for kind in ("v5p", "v6e", "tpu7x", "h200"):
        size = CHIPS[kind].cores
        while sessions_that_fit(config, slice_of(f"{kind}-{size}")) < sessions:
            size *= 2
        sizes = (size,) if kind == "h200" else (size, 2 * size, 4 * size)
        found += [slice_of(f"{kind}-{size}") for size in sizes]
    return found


class TrainRate(NamedTuple):
    """Modelled speed of training."""

    tokens: float  # positions a second
    audio: float  # seconds of talk a second


def train_rate(config: ModelConfig, place: Slice, turns: int, mfu: float) -> TrainRate:
    """Speed at a stated share of the FLOP/s, sessions of `turns` micro-turns of audio alone."""
    per_turn = sum(train_flops(config, turns).values()) / turns
    rate = mfu * place.chips * place.chip.flops / per_turn
    return TrainRate(rate * turn_positions(config), rate / turns_per_second(config))


def figures(
    config: ModelConfig, sessions: list[int], train_slices: list[str], turns: int, mfu: float
) -> dict[str, Any]:
    """Everything that is printed, under the names that `--json` uses."""
    counts = parameter_counts(config)
    weights, state = weight_bytes(config), state_bytes(config)
    minute = 60 * turns_per_second(config)
    train = train_flops(config, turns)
    return {
        "parameters_total": counts.total,
        "parameters_active": counts.active,
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
                "chips": slice_of(name).chips,
                "tokens_per_s": rate.tokens,
                "audio_s_per_s": rate.audio,
            }
            for name in train_slices
            for rate in [train_rate(config, slice_of(name), turns, mfu)]
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
        "hbm_used": used / place.hbm,
        "sessions_that_fit": sessions_that_fit(config, place),
    }


def table(preset: str, values: dict[str, Any]) -> str:
    """The figures as they are printed."""
    total, active = values["parameters_total"], values["parameters_active"]
    weights, state = values["weight_bytes"], values["state_bytes_per_session"]
    positions, step = values["positions"], values["step_flops"]
    lines = [
        f"{preset}: {total:,} parameters, {active:,} active",
        *(f"  {part:<18}{count:>20,}" for part, count in values["parameters_by_part"].items()),
        f"{values['dtype']} weights {_unit(weights)}B",
        f"a session's state {_unit(state)}B; a minute of talk writes"
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
            f" {_unit(row['audio_s_per_s'])} seconds of talk/s"
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
        f"a step, ms, modelled: roofline / with {overhead:.2f} ms a layer; sessions x inputs",
        f"  {'slice':<9}{'chips':>6}{'fit':>8}  {columns}",
    ]
    for name, mine in slices.items():
        times = (f"{row['floor_ms']:.2f} / {row['with_overhead_ms']:.2f}" for row in mine)
        columns = "".join(f"{time:<24}" for time in times).rstrip()
        row = mine[0]
        lines.append(f"  {name:<9}{row['chips']:>6}{row['sessions_that_fit']:>8}  {columns}")
    return lines


def _unit(value: float) -> str:
    """Three digits and a decimal prefix, a space in between."""
    power = 0
    while value >= 1_000 and power < 6:
        value, power = value / 1_000, power + 1
    return f"{value:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}"


def main(argv: list[str]) -> None:
    """Prints the figures of a preset and writes them where asked."""
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
    flags.DEFINE_string("json", None, "Where to write the figures.")
    flags.DEFINE_multi_integer("sessions", [32, 64], "Sessions of a step.", lower_bound=1)
    flags.DEFINE_list("train_slices", ["v5p-2048", "v6e-1024", "tpu7x-1024"], "Slices that train.")
    flags.DEFINE_integer("turns", 1_500, "Micro-turns of a training session.", lower_bound=1)
    flags.DEFINE_float("mfu", 0.33, "Share of the FLOP/s that training is taken to use.", 0, 1)
    app.run(main)
