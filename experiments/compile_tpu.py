r"""Compiles the train step or the streaming step for a TPU slice, with no TPU.

python -m experiments.compile_tpu --preset=small --topology=v5p-64 --what=step
python -m experiments.compile_tpu --preset=small --topology=v5p-512 --what=train --json=out/c.json
python -m experiments.compile_tpu --preset=experiments/configs/inkling_small_lora.py --what=train

libtpu (`pip install interaction[tpu]`) compiles the same functions that run on TPUs, including
kernels, from shapes alone: no parameter is made. The command prints HBM per chip by kind,
collectives, kernels, and the compiler's estimate of the other operations. A program that does not
fit is refused.
"""

import collections
import dataclasses
import json
import math
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import Mesh, NamedSharding

from interaction.compiled import device_memory, hlo, topology
from interaction.compiled.hlo import Collective
from interaction.compiled.slices import find_slice
from interaction.config import REMAT, ModelConfig
from interaction.distributed import sharding
from interaction.distributed.collectives import DATA, EXPERT, FSDP, SESSIONS
from interaction.model import session_state, streaming
from interaction.model.parameters import init_model_params
from interaction.presets import PRESETS
from interaction.training.loop import trained_part
from interaction.training.objective import find_objective
from interaction.training.optimizer import make_optimizer
from interaction.training.state import abstract_state, make_train_step
from interaction.training.train_config import TrainConfig, load_config
from interaction.types import Chunk
from pallas_kernels.chips import TPUS

TRAIN, STEP = "train", "step"
INPUTS = ("text", "frame")  # optional inputs of a chunk beside audio
_OBJECTIVE = "interaction.training.conversation_loss:joint_objective"
_EXPERT_DEVICES = 32  # most devices that hold the experts of a layer in training
_STEP_SESSIONS = 32  # default number of sessions of the step, at least
_SHOWN = 16  # most lines of collectives that are printed
_GIB = 1 << 30


class Request(NamedTuple):
    """The program to compile."""

    preset: str  # name of a preset, or file of a training config
    what: str  # TRAIN or STEP
    topology: str  # name of a TPU slice
    mesh: dict[str, int]  # axis -> size, {} for the default
    sessions: int  # sessions of a step or of a training batch, 0 for the default
    turns: int  # micro-turns of a training session
    accumulate: int  # parts that a device splits its training sessions into
    remat: str | None  # one of config.REMAT, None for the preset's
    inputs: tuple[str, ...]  # some of INPUTS


class Program(NamedTuple):
    """A jitted function and the shapes that it is compiled for."""

    lower: Callable[..., jax.stages.Lowered]
    arguments: tuple
    kinds: dict[str, Any]  # kind of memory -> arrays of the arguments


class DoesNotFitError(ValueError):
    """The program needs more HBM than a device has; `by_kind` holds the known bytes."""

    def __init__(self, by_kind: Mapping[str, int], capacity: int, detail: str = "") -> None:
        """Makes a message that names the largest kind.

        Args:
          by_kind: Kind of memory -> bytes on a device.
          capacity: HBM of a device, bytes.
          detail: Text at the end of the message.
        """
        self.by_kind = dict(by_kind)
        largest = max(by_kind, key=lambda kind: by_kind[kind])
        more = {
            "parameters": "more devices on expert, fsdp or tensor",
            "optimizer": "more devices on fsdp or expert",
            "averages": "more devices on fsdp or expert",
            "state": "fewer sessions, or more devices",
            "temporaries": "fewer sessions or turns a device, --accumulate or --remat",
        }.get(largest, "a larger slice")
        super().__init__(
            f"does not fit: {sum(by_kind.values()) / _GIB:.2f} GiB on a device that has "
            f"{capacity / _GIB:.2f}; the largest part is {largest} with "
            f"{by_kind[largest] / _GIB:.2f} GiB: take {more}{detail}"
        )


# The program to compile.


def _settings(preset: str) -> TrainConfig:
    """The training run of a preset, or that of a config file.

    Raises:
      ValueError: It is neither.
    """
    if preset in PRESETS:
        return TrainConfig(preset, _OBJECTIVE, data="", model=PRESETS[preset]())
    if not preset.endswith(".py"):
        raise ValueError(
            f"--preset: got {preset!r}, wanted one of {', '.join(PRESETS)}, or the file of a "
            "training config; correct the flag"
        )
    return load_config(preset)


def default_mesh(what: str, devices: int, config: ModelConfig) -> dict[str, int]:
    """The default mesh: the step splits experts over all devices, training over some of them."""
    experts = math.gcd(config.transformer.experts, devices)
    if what == STEP:
        return {DATA: devices // experts, EXPERT: experts}
    experts = math.gcd(experts, _EXPERT_DEVICES)
    return {FSDP: devices // experts, EXPERT: experts}


def parse_mesh(pairs: Sequence[str]) -> dict[str, int]:
    """Reads axis=size pairs.

    Raises:
      ValueError: A pair has another form.
    """
    found = [re.fullmatch(r"\s*(\w+)=(\d+)\s*", pair) for pair in pairs]
    if not all(found):
        raise ValueError(
            f"--mesh: got {','.join(pairs)!r}, wanted axis=size,axis=size; correct the flag"
        )
    return {pair[1]: int(pair[2]) for pair in found if pair}


def _abstract(tree: Any, where: Any) -> Any:  # noqa: ANN401
    """Adds shardings to shapes: a tree of shardings, or one for all leaves."""
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, tree)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
        where,
    )


def train_program(config: ModelConfig, request: Request, mesh: Mesh) -> Program:
    """The train step of backbone and flow head: losses, gradients, optimizer, averages."""
    settings = dataclasses.replace(
        _settings(request.preset),
        model=config,
        batch=request.sessions,
        accumulate=request.accumulate,
        mesh=request.mesh,
    )
    objective = trained_part(find_objective(settings.objective, config), settings)
    optimizer = make_optimizer(settings)
    state = abstract_state(objective, optimizer, mesh)
    b, n, samples = request.sessions, request.turns, request.turns * config.audio.turn_samples
    batch = {
        "user": jax.ShapeDtypeStruct((b, samples), jnp.int16),
        "model": jax.ShapeDtypeStruct((b, samples), jnp.int16),
        "text": jax.ShapeDtypeStruct((b, n), jnp.int32),
        "user_transcript": jax.ShapeDtypeStruct((b, n, config.audio_positions), jnp.int32),
    }
    batch = _abstract(batch, sharding.session_sharding(mesh))
    key = _abstract(jax.eval_shape(lambda: jax.random.key(0)), sharding.replicated(mesh))
    kinds = {
        "parameters": (state.params, state.buffers),
        "optimizer": state.opt_state,
        "averages": state.ema,
        "inputs": batch,
    }
    step = make_train_step(objective, optimizer, settings, mesh)
    lower = step.lower  # pyrefly: ignore[missing-attribute]
    return Program(lower, (state, batch, key), kinds)


def step_program(config: ModelConfig, request: Request, mesh: Mesh) -> Program:
    """The streaming step of all sessions, PCM to PCM, with the dtypes of serving."""
    b, size = request.sessions, config.frame_size

    def make() -> tuple:
        params = init_model_params(config, jax.random.key(0))
        params = sharding.cast_params(params, config.transformer.dtype)
        rows, seeds = jnp.zeros(b, bool), jnp.zeros(b, jnp.int32)
        pcm = jnp.zeros((b, config.audio.turn_samples))
        chunk = Chunk(pcm, active=rows, reset=rows, seed=seeds)
        if "text" in request.inputs:
            chunk = chunk._replace(text=jnp.zeros((b, config.text_slots), jnp.int32))
        if "frame" in request.inputs:
            chunk = chunk._replace(frame=jnp.zeros((b, size, size, 3)), has_frame=rows)
        return params, session_state.init_state(config, jnp.zeros((b, 2), jnp.uint32)), chunk

    params, state, chunk = jax.eval_shape(make)
    params = _abstract(params, sharding.shardings(mesh, params))
    place = partial(NamedSharding, mesh)
    state = _abstract(state, jax.tree.map(place, session_state.state_specs(config)))
    chunk = _abstract(chunk, sharding.session_sharding(mesh))
    step = streaming.make_step(config, mesh, sharding.param_specs(params))
    kinds = {"parameters": params, "state": state, "inputs": chunk}
    lower = step.lower  # pyrefly: ignore[missing-attribute]
    return Program(lower, (params, state, chunk), kinds)


# The compiled program.


def compile_program(
    program: Program, mesh: Mesh, capacity: int
) -> tuple[jax.stages.Compiled, device_memory.Memory]:
    """Compiles a program.

    Args:
      program: The program.
      mesh: Devices.
      capacity: HBM of a device, bytes.

    Returns:
      The compiled program and the memory that it needs on a device.

    Raises:
      DoesNotFitError: It needs more than `capacity`.
    """
    known = {kind: device_memory.bytes_per_device(tree) for kind, tree in program.kinds.items()}
    if sum(known.values()) > capacity:
        raise DoesNotFitError(known, capacity)
    try:
        with jax.set_mesh(mesh):  # otherwise kernels would be those of this machine's platform
            lowered = program.lower(*program.arguments)
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or "hbm" not in str(error).lower():
            raise
        wanted, available = out_of_memory(str(error))
        known["temporaries"] = max(wanted - sum(known.values()), 0)
        detail = f"\nthe compiler says: {str(error)[:2_000]}"
        raise DoesNotFitError(known, available or capacity, detail) from error
    memory = device_memory.hbm(done, program.kinds)
    if memory.peak > capacity:
        raise DoesNotFitError(memory.by_kind, capacity)
    return done, memory


def out_of_memory(message: str) -> tuple[int, int]:
    """Reads the error message of a compiler that is out of HBM.

    Returns:
      Bytes that the program needs, and bytes that exist; 0 if the message does not say. The former
      include the arguments, even where the message speaks of temporaries.
    """

    def named(pattern: str) -> int:
        scales = {"K": 1 << 10, "M": 1 << 20, "G": _GIB, "T": 1 << 40}
        found = re.search(rf"(?:{pattern})([\d.]+)([KMGT])", message)
        return int(float(found[1]) * scales[found[2]]) if found else 0

    wanted = named(r"Total hbm usage >= ") or named(r"HLO temporaries \(|Used ")
    return wanted, named(r"available HBM \(|Used [\d.]+[KMGT] of ")


def complete(request: Request, config: ModelConfig, devices: int) -> Request:
    """Fills in the default mesh and number of sessions: the smallest one, in a step at least 32."""
    mesh = request.mesh or default_mesh(request.what, devices, config)
    places = math.prod(mesh.get(axis, 1) for axis in SESSIONS)
    each = request.accumulate if request.what == TRAIN else -(-_STEP_SESSIONS // places)
    sessions = request.sessions or places * each
    if request.what == STEP and sessions % places:
        raise ValueError(
            f"--sessions: got {sessions}, wanted a multiple of the {places} devices on "
            f"{', '.join(SESSIONS)}; change the number or the mesh"
        )
    return request._replace(mesh=mesh, sessions=sessions)


def figures(request: Request) -> dict[str, Any]:
    """Compiles a request.

    Returns:
      The figures that `--json` writes; for a program that does not fit, `error` instead of the
      compiler's figures.

    Raises:
      ValueError: The slice is unknown, or mesh or batch do not fit it.
    """
    found = find_slice(request.topology)
    devices = topology.topology(request.topology).devices
    chip, share = TPUS[found.chip.name], found.chip.devices
    settings = _settings(request.preset)
    config = settings.model
    if request.what == TRAIN and request.preset not in PRESETS:
        mesh, sessions = request.mesh or dict(settings.mesh), request.sessions or settings.batch
        request = request._replace(mesh=mesh, sessions=sessions)
    remat = request.remat or config.transformer.remat
    request = request._replace(remat=remat)
    transformer = dataclasses.replace(config.transformer, remat=remat)
    config = dataclasses.replace(config, transformer=transformer)
    request = complete(request, config, len(devices))
    mesh = sharding.make_mesh(request.mesh, devices)
    build = train_program if request.what == TRAIN else step_program
    started = time.monotonic()
    program = build(config, request, mesh)
    row: dict[str, Any] = {
        **request._asdict(),
        "chips": found.chips,
        "devices": len(devices),
        "hbm_capacity_bytes": chip.hbm_bytes,
    }
    try:
        done, memory = compile_program(program, mesh, chip.device_hbm_bytes)
    except DoesNotFitError as error:
        parts = {kind: size * share for kind, size in error.by_kind.items()}
        return row | {
            "compiled": False,
            "error": f"{request.preset} {request.what} on {request.topology} {error}",
            "hbm_bytes_per_chip": sum(parts.values()),
            "hbm_by_kind": parts,
            "collectives": [],
            "compile_s": round(time.monotonic() - started, 1),
        }
    text = done.as_text() or ""
    estimate = hlo.estimate(text)
    return row | {
        "compiled": True,
        "hbm_bytes_per_chip": memory.peak * share,
        "hbm_by_kind": {kind: size * share for kind, size in memory.by_kind.items()},
        "collectives": [collective._asdict() for collective in hlo.collectives(text)],
        "kernels": {name: kernel._asdict() for name, kernel in hlo.kernels(text).items()},
        "estimate": {"seconds": estimate.cycles / chip.clock_hz, **estimate._asdict()},
        "compile_s": round(time.monotonic() - started, 1),
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


# Printed text.


def memory_lines(row: Mapping[str, Any]) -> list[str]:
    """HBM of a chip by kind, the largest first."""
    capacity, used = row["hbm_capacity_bytes"], row["hbm_bytes_per_chip"]
    parts = sorted(row["hbm_by_kind"].items(), key=lambda part: -part[1])
    lines = [f"HBM per chip: {used / _GIB:.2f} GiB of {capacity / _GIB:.0f}, {used / capacity:.1%}"]
    return lines + [f"  {kind:<12}{size / _GIB:>9.3f} GiB" for kind, size in parts]


def collective_lines(row: Mapping[str, Any]) -> list[str]:
    """Collectives of one execution, grouped by kind and place in the code."""
    groups: dict[tuple, list[Collective]] = collections.defaultdict(list)
    for entry in row["collectives"]:
        collective = Collective(**entry)
        where = "layers" if collective.loops else "once"
        groups[collective.kind, collective.group, where, scope_of(collective)].append(collective)
    sizes = {key: sum(_bytes(collective) for collective in found) for key, found in groups.items()}
    lines = [f"collectives: {sum(sizes.values()) / 1e6:.2f} MB sent by a device in one execution"]
    ordered = sorted(groups, key=lambda key: -sizes[key])
    for key in ordered[:_SHOWN]:
        kind, group, where, scope = key
        times = sum(collective.runs for collective in groups[key])
        largest = max(groups[key], key=lambda collective: collective.bytes)
        arrays = largest.shape.count("+") + 1
        what = f"{largest.dtype}{largest.shape}"
        lines.append(
            f"  {sizes[key] / 1e6:>10.2f} MB {times:>5} x {kind:<18} of {group!s:<4} {where:<7}"
            f"{what if arrays == 1 else f'{largest.dtype}, {arrays} arrays':<24} {scope}"
        )
    rest = ordered[_SHOWN:]
    if rest:
        lines.append(f"  {sum(sizes[key] for key in rest) / 1e6:>10.2f} MB in {len(rest)} others")
    return lines


def _bytes(collective: Collective) -> int:
    return collective.bytes * collective.runs


# Scopes that JAX adds.
_ADDED = re.compile(r"jit\(.*|while|body|closed_call|checkpoint|shard_map|rematted_computation|")


def scope_of(collective: Collective) -> str:
    """The last two named scopes of a collective, without those that JAX adds."""
    *parts, _ = collective.scope.split("/")  # the last part is the primitive
    names = (re.sub(r"transpose\(|jvp\(|\)", "", part) for part in parts)
    scope = "/".join([name for name in names if not _ADDED.fullmatch(name)][-2:])
    return f"{scope or '-'}{', backward' if 'transpose(' in collective.scope else ''}"


def table(row: Mapping[str, Any]) -> str:
    """The figures of a compiled program as text."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in row["mesh"].items())
    size = f"{row['sessions']} sessions"
    if row["what"] == TRAIN:
        size += f" of {row['turns']} micro-turns, recomputing {row['remat']}"
    head = f"{row['preset']} {row['what']}, {size}, on {row['topology']}: {row['chips']} chips, "
    lines = [f"{head}{row['devices']} devices, mesh {mesh}", *memory_lines(row)]
    if not row["compiled"]:
        return "\n".join(lines)
    estimate = row["estimate"]
    lines += collective_lines(row)
    lines.append("Mosaic kernels: " + (", ".join(
        f"{name} x {kernel['runs']}" for name, kernel in sorted(row["kernels"].items())
    ) or "none"))  # fmt: skip
    lines.append(
        f"XLA's estimate of its own operations: {estimate['seconds'] * 1e3:.1f} ms "
        f"({estimate['cycles'] / 1e6:.1f} M cycles, within 11% of published timings); it excludes "
        f"{estimate['kernels']} runs of kernels and {estimate['collectives']} collectives, so it "
        "is not the time of the program"
    )
    lines.append(
        f"compiled in {row['compile_s']:.0f} s with {row['host_bytes'] / 1e9:.1f} GB of host memory"
    )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Compiles and prints; exits with 1 if the program does not fit."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    unknown = sorted(set(given.inputs) - set(INPUTS))
    if unknown:
        raise app.UsageError(f"--inputs: got {unknown}, wanted some of {', '.join(INPUTS)}")
    try:
        row = figures(
            Request(
                given.preset,
                given.what,
                given.topology,
                parse_mesh(given.mesh),
                given.sessions or given.batch,
                given.turns,
                given.accumulate,
                given.remat,
                tuple(given.inputs),
            )
        )
    except ValueError as error:
        sys.exit(f"compile_tpu: {error}")
    print(table(row))
    if given.json:
        path = pathlib.Path(given.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row, indent=1) + "\n")
    if not row["compiled"]:
        sys.exit(f"compile_tpu: {row['error']}")


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("preset", "small", "A preset, or the file of a training config.")
    flags.DEFINE_string("topology", "v5p-64", "TPU slice: v5p-64, v6e-64, tpu7x-16, v5p:4x4x2.")
    flags.DEFINE_enum("what", STEP, [TRAIN, STEP], "The train step, or the streaming step.")
    flags.DEFINE_list("mesh", [], "axis=size pairs of data, fsdp, expert, sequence, tensor.")
    flags.DEFINE_integer("sessions", 0, "Sessions of the step; 0: at least 32, one per device.", 0)
    flags.DEFINE_integer("batch", 0, "Sessions of a training batch; 0: one per device.", 0)
    flags.DEFINE_integer("turns", 1_024, "Micro-turns of a training session.", 1)
    flags.DEFINE_integer("accumulate", 1, "Parts of a device's training sessions.", 1)
    flags.DEFINE_enum("remat", None, REMAT, "What the backward pass recomputes.")
    flags.DEFINE_list("inputs", list(INPUTS), "Inputs of the step beside audio.")
    flags.DEFINE_string("json", None, "File for the figures.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
