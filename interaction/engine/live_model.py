"""`InteractionModel`: a loaded model with its tokenizer and a jitted step that checks inputs."""

import functools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from interaction import logs
from interaction.compiled.compilation_cache import use_compilation_cache
from interaction.compiled.traced_objects import keep_traced
from interaction.config import ModelConfig
from interaction.data.tokenizer import Tokenizer, load_tokenizer
from interaction.distributed import sharding
from interaction.distributed.jax_settings import model_settings
from interaction.distributed.local_rows import LocalRows
from interaction.distributed.packing import LIMITS, Packing
from interaction.engine import session_file
from interaction.engine.chunk_checks import (
    check_chunk,
    check_form,
    chunk_forms,
    unusable_chunk,
)
from interaction.model import session_rows, session_state, streaming
from interaction.model.parameters import init_model_params
from interaction.model.transformer import separate_layers
from interaction.modules import vocoder
from interaction.pretrained import fingerprints, store
from interaction.types import Array, Chunk, Params, Reply, Special

_log = logging.getLogger(__name__)


class InteractionModel:
    """A model ready to stream; immutable, so one model serves any number of states.

    On a mesh that spans processes, each process makes the same model and calls the same methods in
    the same order. `sessions`, `Chunk` and `Reply` then refer to the sessions on the process's
    devices, of which each device has the same number; the state spans the mesh. A session whose
    devices belong to several processes (along `tensor` or `sequence`) is a row in each of these
    processes, which must pass the same inputs for it.
    """

    @model_settings()
    def __init__(
        self, config: ModelConfig, params: Params, tokenizer: Tokenizer, mesh: Mesh | None = None
    ) -> None:
        """Puts the parameters on the devices; the step is compiled by the first call.

        Args:
          config: Model configuration.
          params: Parameters in the layout of `init_model_params`: on the host, on devices, or in
            files (`LazyArray`), of which each process reads the parts of its devices.
          tokenizer: A tokenizer with at most `config.vocab` ids.
          mesh: A mesh from `sharding.make_mesh`, which may span processes; None takes the first
            device.

        Raises:
          ValueError: The tokenizer has more ids than the model, the mesh does not divide the model,
            or the mesh has no device of this process.
        """
        if tokenizer.vocab > config.vocab:
            raise ValueError(
                f"tokenizer: got {tokenizer.vocab} ids, wanted at most vocab={config.vocab}; "
                "load the tokenizer that the model was trained with"
            )
        self.config = config
        self.mesh = sharding.make_mesh({}) if mesh is None else mesh
        sharding.check_heads(self.mesh, config.transformer)
        self._rows = LocalRows(self.mesh)
        params = sharding.cast_params(params, config.transformer.dtype)
        self.params = jax.tree.map(sharding.put, params, sharding.shardings(self.mesh, params))
        self.tokenizer = tokenizer
        platform, alone = sharding.platform(self.mesh), self.mesh.size == 1
        # The step reads these parameters; on a single CPU with separate layers, see `run_stack`.
        arranged = _separate(self.params) if platform == "cpu" and alone else self.params
        packing = Packing(arranged, sharding.param_specs(arranged), LIMITS[platform])
        self._packed = packing.join(arranged, self.mesh)
        self._step = streaming.make_step(config, self.mesh, packing.specs, packing.take_apart)
        specs = session_state.state_specs(config)
        # A row that is taken out is on all devices. Only heads that `tensor` splits stay split, if
        # this process has all of them.
        several = self._rows.several
        alone = jax.tree.map(lambda spec: PartitionSpec(None, *spec[1:] * (not several)), specs)
        whole, one = sharding.place(self.mesh, specs), sharding.place(self.mesh, alone)

        def init(seeds: Array) -> session_state.StreamState:
            return session_state.init_state(config, session_state.session_keys(seeds))

        log = functools.partial(session_rows.before_step, config)
        caches = whole.memory.caches
        slots: Any = dict.fromkeys(caches, sharding.session_sharding(self.mesh))
        undo = session_rows.Undo(session_state.without_caches(whole), slots, caches)
        self._placed = {"state": whole, "one": one, "undo": undo}
        self._init = jax.jit(init, out_shardings=whole)
        self._jitted: dict[str, Any] = {
            "init_row": jax.jit(init, out_shardings=one),
            "take_row": jax.jit(session_rows.take_row, out_shardings=one),
            "put_row": jax.jit(session_rows.put_row, donate_argnums=0, out_shardings=whole),
            "before_step": jax.jit(log, out_shardings=undo),
            "take_back": jax.jit(session_rows.take_back, donate_argnums=0, out_shardings=whole),
        }
        self._compiled: dict[tuple, Any] = {}  # by number of sessions, and fields or function

    @model_settings()
    def compile(self, sessions: int, *, frames: bool = False) -> None:
        """Compiles every program of a batch, on threads of their own.

        Args:
          sessions: Number of sessions of this process.
          frames: Whether chunks may have frames.
        """
        sessions = self._rows.total(sessions)
        seeds = jax.ShapeDtypeStruct((sessions,), np.int32)
        state = self._form("state", jax.eval_shape(self._init, seeds))
        one = self._form("one", jax.eval_shape(self._jitted["init_row"], np.zeros(1, np.int32)))
        undo = self._form("undo", jax.eval_shape(self._jitted["before_step"], state))
        row = np.int32(0)
        known = {
            "take_row": (state, row),
            "put_row": (state, row, one),
            "before_step": (state,),
            "take_back": (state, undo, row),
        }
        work: dict[tuple, tuple[Any, tuple]] = {
            (sessions, name): (self._jitted[name], args) for name, args in known.items()
        }
        work[1, "init_row"] = self._jitted["init_row"], (np.zeros(1, np.int32),)
        for chunk in _variants(self.config, sessions, frames):
            work[sessions, _fields(chunk)] = (self._step, (self._packed, state, chunk))
        with ThreadPoolExecutor() as pool:
            made = {
                key: pool.submit(_compile, *job)
                for key, job in work.items()
                if key not in self._compiled
            }
        if made:
            self._compiled |= {key: one.result() for key, one in made.items()}
            keep_traced()

    def _form(self, name: str, shapes: Any) -> Any:  # noqa: ANN401
        """Shapes, dtypes and places of a value that programs take."""

        def placed(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:  # noqa: ANN401
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        return jax.tree.map(placed, shapes, self._placed[name])

    @model_settings()
    def _run(self, name: str, state: session_state.StreamState, *args: Any) -> Any:  # noqa: ANN401
        _check_alive(state)
        return self._compiled.get((len(state.clock), name), self._jitted[name])(state, *args)

    @model_settings()
    def init_row(self, seed: int) -> session_state.StreamState:
        """A fresh session in the form of `take_row`, for `put_row`."""
        program = self._compiled.get((1, "init_row"), self._jitted["init_row"])
        return program(np.array([seed], np.int32))

    def take_row(self, state: session_state.StreamState, row: int) -> session_state.StreamState:
        """A copy of one session of a state, see `session_rows.take_row`.

        This `row` and those below count the sessions of all processes.
        """
        return self._run("take_row", state, np.int32(row))

    def put_row(
        self, state: session_state.StreamState, row: int, one: session_state.StreamState
    ) -> session_state.StreamState:
        """The state with a session in a row, see `session_rows.put_row`; the state is donated."""
        return self._run("put_row", state, np.int32(row), one)

    def before_step(self, state: session_state.StreamState) -> session_rows.Undo:
        """What the next step changes, see `session_rows.before_step`."""
        return self._run("before_step", state)

    def take_back(
        self, state: session_state.StreamState, undo: session_rows.Undo, row: int
    ) -> session_state.StreamState:
        """The state with a session before a step, see `session_rows`; the state is donated."""
        return self._run("take_back", state, undo, np.int32(row))

    @model_settings()
    def init_state(self, sessions: int, seed: int | Sequence[int] = 0) -> session_state.StreamState:
        """Fresh sessions.

        Args:
          sessions: Number of sessions of this process.
          seed: A seed for each session, or one number: then row i of all processes' rows has seed
            `seed + i`.

        Returns:
          The state before the first micro-turn.

        Raises:
          ValueError: The number of sessions is 0, is not divisible by the mesh, or is not that of
            the seeds; a seed does not fit in int32; or another process asked for another number of
            sessions per share of the mesh, or made one of these mistakes.
        """
        if not self._rows.several:
            return self._init(self._seeds(sessions, seed))
        seeds, mistake = None, None
        try:
            seeds = self._seeds(sessions, seed)
        except ValueError as error:
            mistake = error
        low, high = self._rows.span(-1 if mistake else sessions // self._rows.shares)
        if mistake:
            raise mistake
        if low != high:
            raise ValueError(
                f"sessions: got {high} for each share of the mesh from one process, and "
                f"{'a mistake' if low < 0 else low} from another, wanted equal numbers; ask for "
                "the same number in each process"
            )
        return self._init(seeds)

    def _seeds(self, sessions: int, seed: int | Sequence[int]) -> Array:
        """Checks the seeds; returns int32[sessions of all processes] on the mesh."""
        shares = self._rows.shares
        if sessions < 1 or sessions % shares:
            raise ValueError(
                f"sessions: got {sessions}, wanted a multiple of {shares}, the number of devices "
                "that sessions are split over, and at least one; ask for more"
            )
        seeds = np.asarray(seed)
        if seeds.ndim and seeds.shape != (sessions,):
            raise ValueError(
                f"seed: got shape {seeds.shape}, wanted one number or {sessions} of them; "
                "pass a seed for each session"
            )
        rows = np.zeros(sessions, np.int64) if seeds.ndim else self._rows.places(sessions)
        last = 0 if seeds.ndim else self._rows.total(sessions) - 1
        limits = np.iinfo(np.int32)
        integers = np.issubdtype(seeds.dtype, np.integer)
        if not integers or np.any(seeds < limits.min) or np.any(seeds > limits.max - last):
            raise ValueError(f"seed: got {seed!r}, wanted integers of 32 bits; pass other seeds")
        return self._rows.spread((seeds.astype(np.int64) + rows).astype(np.int32))

    @model_settings()
    def step(
        self, state: session_state.StreamState, chunk: Chunk
    ) -> tuple[session_state.StreamState, Reply]:
        """Takes one micro-turn of every session; inside `jax.jit` use `streaming.step` instead.

        With several processes a step begins when all have called it with the same fields of the
        chunk. If one process raised an error, the others would wait for ever. So there a chunk of
        wrong shapes or dtypes is logged instead, and all rows of its process are refused.

        Args:
          state: State of the sessions; donated, so use the returned state afterwards.
          chunk: Inputs, on the device or as NumPy arrays, which are copied and transferred.

        Returns:
          The new state and the reply, possibly before their computation has ended.

        Raises:
          ValueError: In a single process: a field has a wrong shape or dtype, or is a NumPy array
            without usable values in any row. `state` has not changed and is still valid. If only
            some rows are unusable, these alone are refused, see `Reply.refused`. Or an earlier call
            took the state.
        """
        _check_alive(state)
        if self._rows.several:
            return self._step_together(state, chunk)
        check_chunk(self.config, chunk, state.clock.shape[0])
        # Transfers are asynchronous, and the caller may overwrite its buffers at once.
        chunk = jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, chunk)
        return self._program(state, chunk)(self._packed, state, chunk)

    def _program(self, state: session_state.StreamState, chunk: Chunk) -> Any:  # noqa: ANN401
        return self._compiled.get((len(state.clock), _fields(chunk)), self._step)

    def _step_together(
        self, state: session_state.StreamState, chunk: Chunk
    ) -> tuple[session_state.StreamState, Reply]:
        sessions = self._rows.count(state.clock.shape[0])
        try:
            check_form(self.config, chunk, sessions)
            chunk = jax.tree.map(np.array, chunk)  # reading an array may fail
        except Exception as error:  # any error, since this process alone must not stop
            text = "%s. All rows of process %d are refused"
            logs.warn(_log, text, str(error), jax.process_index())
            chunk = unusable_chunk(self.config, chunk, sessions)
        chunk = jax.tree.map(self._rows.spread, chunk)
        state, reply = self._program(state, chunk)(self._packed, state, chunk)
        return state, jax.tree.map(self._rows.collect, reply)

    def own_rows(self, sessions: int) -> np.ndarray:
        """Places int[rows] of this process's rows among `sessions` sessions of all processes.

        Raises:
          ValueError: The mesh does not divide the number of sessions.
        """
        self._rows.check(sessions)
        return self._rows.places(self._rows.count(sessions))

    @model_settings()
    def fingerprint(self) -> str:
        """Identity of the model, see `fingerprints.fingerprint`."""
        return fingerprints.fingerprint(self.config, self.params)

    @model_settings()
    def pack_row(self, one: session_state.StreamState) -> dict[str, Any]:
        """A session from `take_row` in a form for files, see `session_file.pack_state`."""
        return session_file.pack_state(one)

    def unpack_row(self, packed: Any, where: object) -> session_state.StreamState:  # noqa: ANN401
        """The session that `pack_row` packed, for `put_row`; see `session_file.unpack_state`.

        Raises:
          ValueError: It belongs to another model, is damaged, or is not finite.
        """
        return session_file.unpack_state(packed, self.init_row(0), where)

    def encode(self, text: str) -> np.ndarray:
        """Encodes text for the text-in slots of one micro-turn.

        Returns:
          int32[text_slots], PAD where empty.

        Raises:
          ValueError: The text does not fit; split it over several micro-turns.
        """
        ids = self.tokenizer.encode(text)
        slots = self.config.text_slots
        if len(ids) > slots:
            raise ValueError(
                f"text: got {len(ids)} tokens ({text!r}), wanted at most text_slots={slots} per "
                "micro-turn; send the rest with the next chunks"
            )
        return np.array(ids + [Special.PAD] * (slots - len(ids)), np.int32)

    def decode(self, ids: Any) -> str:  # noqa: ANN401
        """Decodes token ids of one session; special tokens are dropped."""
        return self.tokenizer.decode([int(i) for i in np.ravel(ids)])


def _check_alive(state: session_state.StreamState) -> None:
    """Refuses a state that was donated.

    Raises:
      ValueError: Its buffers are gone.
    """
    if isinstance(state.clock, jax.Array) and state.clock.is_deleted():
        raise ValueError(
            "state: got one that was donated to an earlier call, wanted the newest; use the state "
            "that this call returned, or keep a copy of it before"
        )


@model_settings()  # they belong to a thread
def _compile(run: Any, args: tuple) -> Any:  # noqa: ANN401
    return run.lower(*args).compile()


def _fields(chunk: Chunk) -> tuple[str, ...]:
    """Names of the fields that a chunk has, which select the compiled variant."""
    return tuple(name for name, leaf in zip(Chunk._fields, chunk, strict=True) if leaf is not None)


def _variants(config: ModelConfig, sessions: int, frames: bool) -> list[Chunk]:
    """The form of a chunk of every variant that a batch of sessions which come and go needs."""
    given: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, (shape, dtype) in chunk_forms(config, sessions).items()
    }
    names = [("audio", "active", "reset", "seed")]
    names += [(*one, "text") for one in names]
    names += [(*one, "frame", "has_frame") for one in names] if frames else []
    return [Chunk(**{name: given[name] for name in one}) for one in names]


@jax.jit
def _separate(params: Params) -> Params:
    return {
        **params,
        "backbone": separate_layers(params["backbone"]),
        "vocoder": vocoder.separate_layers(params["vocoder"]),
    }


@model_settings()
def load(name: str = "demo", mesh: Mesh | None = None) -> InteractionModel:
    """Loads a released model by name, or from a folder that `store.save_model` wrote.

    Compiled programs are kept between processes, see `compilation_cache`.

    Args:
      name: Name of the model, or its folder.
      mesh: Mesh to run on, from `sharding.make_mesh`; None takes the first device. Each process
        reads only the parts of its devices.

    Returns:
      The model, ready to stream.

    Raises:
      ValueError: There is no such model, or its files are damaged or of another format.
    """
    use_compilation_cache()
    folder = store.find_released(name)

    def abstract(config: ModelConfig) -> Params:
        return jax.eval_shape(functools.partial(init_model_params, config), jax.random.key(0))

    config, params = store.load_model(folder, abstract)
    return InteractionModel(config, params, load_tokenizer(folder / store.TOKENIZER), mesh)
