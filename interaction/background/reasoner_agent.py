"""A background agent that reasons with a model of this library and calls tools.

Each delegation has a fork of the record's state. In it the model reads and writes text:

  read   <delegate> the request </delegate>, then corrections, <update> ... </delegate>
  write  reasoning: the request as understood, then <delegate> {"tool": name, ...} </delegate>
  read   <update> {"result": value} </delegate>, or {"error": text}
  write  further calls, then <hold> the words for the user <silent>

Code decides what is true: a call that failed, a result that the model was not trained on, and words
that are not those of the result fail the delegation.
"""

import dataclasses
import functools
import json
import os
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from interaction.background import reasoner, trained
from interaction.background.agent import DONE, FAILED, RESULT, TEXT, THINKING, MicroTurn
from interaction.background.reasoner import MicroTurns
from interaction.background.threaded import KEEP, ThreadedAgent
from interaction.background.toolbox import Toolbox, ToolCall, check_toolbox, error_json
from interaction.compiled.traced_objects import keep_traced
from interaction.config import PREFILL_TURNS, ModelConfig
from interaction.data.tokenizer import Tokenizer, load_tokenizer
from interaction.distributed import sharding
from interaction.distributed.collectives import SESSIONS
from interaction.distributed.jax_settings import model_settings
from interaction.distributed.packing import LIMITS, Packing
from interaction.model.parameters import init_params
from interaction.model.transformer import separate_layers
from interaction.pretrained import store
from interaction.types import Params, Special

READ = 16  # most tokens that are read at once
LIMIT = 256  # most tokens that a fork writes
_LONGEST = 500  # most tokens of a span that is read
State = Any  # of a record or a fork; only the model that made it knows what it is
_THINK, _CALL, _SAY = "think", "call", "say"  # what a fork writes: reasoning, a call, words


class NoFreeRowError(RuntimeError):
    """A model has no room for another record or fork."""


class Reasoner:
    """A loaded background model; it is immutable and serves any number of conversations."""

    @model_settings()
    def __init__(
        self, config: ModelConfig, params: Params, tokenizer: Tokenizer, mesh: Mesh | None = None
    ) -> None:
        """Puts the parameters on the devices; functions are compiled when first called.

        Args:
          config: Model configuration.
          params: Parameters; only backbone and router_bias are read, for a background model is
            without speech head.
          tokenizer: Tokenizer of the live model.
          mesh: Devices, which may differ from those of the live model; None takes the first device.

        Raises:
          ValueError: The tokenizer has more ids than the model, the mesh splits sessions, or it
            does not divide a parameter.
        """
        if tokenizer.vocab > config.vocab:
            raise ValueError(
                f"tokenizer: got {tokenizer.vocab} ids, wanted at most vocab={config.vocab}; "
                "load the tokenizer that the model was trained with"
            )
        mesh = sharding.make_mesh({}) if mesh is None else mesh
        sharding.check_heads(mesh, config.transformer)
        if sharding.size(mesh, *SESSIONS) > 1:
            raise ValueError(
                f"mesh: got {dict(mesh.shape)}, wanted size 1 along {SESSIONS}, which split "
                "sessions; a reasoner runs one conversation at a time, so leave these axes out"
            )
        self.config, self.tokenizer = config, tokenizer
        self.trained = trained.DEMO
        params = {part: params[part] for part in ("backbone", "router_bias")}
        params = sharding.cast_params(params, config.transformer.dtype)
        params = jax.tree.map(sharding.put, params, sharding.shardings(mesh, params))
        platform = sharding.platform(mesh)
        if platform == "cpu" and mesh.size == 1:  # see `ops.layers.run_stack`
            params = {**params, "backbone": jax.jit(separate_layers)(params["backbone"])}
        packing = Packing(params, sharding.param_specs(params), LIMITS[platform])
        self._packed = packing.join(params, mesh)
        self._parts = (config, mesh, packing.specs, packing.take_apart)
        self._run = reasoner.make_reasoner(*self._parts)
        self._warm = threading.Lock()
        self._compiled: set[bool] = set()

    def warm_up(self, frames: bool = False) -> None:
        """Compiles the functions of a conversation; with `frames` those for video."""
        with self._warm:
            if frames in self._compiled:
                return
            turn = silent_turn(self.config, frames)
            state = self.fork(self.prefill(self.start(), [turn]))
            for span in ([Special.DELEGATE, Special.END_DELEGATE], [Special.HOLD]):
                state, _ = self.read(state, span)
            self._compiled.add(frames)
            keep_traced()

    @model_settings()
    def start(self) -> State:
        """The state of a conversation before its first micro-turn."""
        return self._run.init(1)

    @model_settings()
    def prefill(self, state: State, turns: Sequence[MicroTurn]) -> State:
        """Reads at most PREFILL_TURNS micro-turns; the state is donated.

        Waits for the result, so that on a shared device the live model's next step waits for at
        most one prefill.
        """
        given = pack_turns(self.config, turns)
        return jax.block_until_ready(self._run.prefill(self._packed, state, given))

    @model_settings()
    def fork(self, state: State) -> State:
        """A copy of the state."""
        return self._run.fork(state)

    @model_settings()
    def read(self, state: State, ids: Sequence[int]) -> tuple[State, int]:
        """Reads at most READ tokens and returns the likeliest next one; the state is donated."""
        state, token = self._run.read(self._packed, state, pack_tokens(ids))
        return state, int(np.asarray(token)[0])


def pack_turns(config: ModelConfig, turns: Sequence[MicroTurn]) -> MicroTurns:
    """At most PREFILL_TURNS micro-turns of one session as NumPy arrays, padded to that number."""
    count, samples, positions = len(turns), config.audio.turn_samples, config.audio_positions
    given: dict[str, Any] = {
        "audio": np.zeros((1, PREFILL_TURNS, samples), np.float32),
        "user_transcript": np.full((1, PREFILL_TURNS, positions), Special.NONE, np.int32),
        "text": np.full((1, PREFILL_TURNS), Special.SILENT, np.int32),
        "arrived": np.full((1, PREFILL_TURNS, config.text_slots), Special.PAD, np.int32),
    }
    if any(turn.frame is not None for turn in turns):
        size = config.frame_size
        given["frame"] = np.zeros((1, PREFILL_TURNS, size, size, 3), np.float32)
    for place, turn in enumerate(turns):
        for name, rows in given.items():
            if getattr(turn, name) is not None:
                rows[0, place] = getattr(turn, name)
    if "frame" in given:
        given["has_frame"] = np.zeros((1, PREFILL_TURNS), bool)
        given["has_frame"][0, :count] = [turn.frame is not None for turn in turns]
    given["count"] = np.array([count], np.int32)
    return MicroTurns(**given)


def pack_tokens(ids: Sequence[int]) -> np.ndarray:
    """Tokens of one fork, int32[1, m]: one, or at most READ, padded to that number."""
    tokens = np.full((1, 1 if len(ids) == 1 else READ), Special.PAD, np.int32)
    tokens[0, : len(ids)] = ids
    return tokens


def silent_turn(config: ModelConfig, frame: bool) -> MicroTurn:
    """A micro-turn in which nothing happens, with a black frame or none."""
    silence = np.zeros(config.audio.turn_samples, np.float32)
    picture = np.zeros((config.frame_size, config.frame_size, 3), np.float32) if frame else None
    user_transcript = np.full(config.audio_positions, Special.NONE, np.int32)
    return MicroTurn(silence, silence, user_transcript, Special.SILENT, None, picture)


@model_settings()
def load_reasoner(
    name: str | os.PathLike = "demo_background", mesh: Mesh | None = None
) -> Reasoner:
    """Loads a released background model by name, or from a folder of `store.save_model`.

    Args:
      name: Name of the model, or its folder; its weights are only backbone and router_bias.
      mesh: See `Reasoner`.

    Raises:
      ValueError: There is no such model, or its files are damaged or foreign.
    """
    folder = store.find_released(name)

    def abstract(config: ModelConfig) -> Params:
        key = jax.random.key(0)
        backbone, _, bias = jax.eval_shape(functools.partial(init_params, config), key)
        return {"backbone": backbone, "router_bias": bias}

    config, params = store.load_model(folder, abstract)
    return Reasoner(config, params, load_tokenizer(folder / store.TOKENIZER), mesh)


@dataclasses.dataclass
class _Fork:
    """The fork of one delegation."""

    state: State
    unread: list[int]  # tokens that the model has to read next
    token: int = Special.PAD  # the likeliest token after those that were read
    writes: str = _THINK
    part: list[int] = dataclasses.field(default_factory=list)  # word tokens of this kind so far
    call: ToolCall | None = None  # the running call
    called: dict[str, Any] = dataclasses.field(default_factory=dict)  # the last call
    answers: tuple[str, ...] = ()  # the right words for its result
    text: str = ""  # words for the user that were emitted
    written: int = 0  # tokens that the model wrote
    mistakes: int = 0


class ReasonerAgent(ThreadedAgent):
    """Observes one conversation and works on its delegations, several at once.

    A fork that writes neither a call nor an answer reads an error once; after a second mistake the
    delegation fails.
    """

    def __init__(
        self, model: Reasoner, toolbox: Toolbox, *, frames: bool = False, keep: int = KEEP
    ) -> None:
        """Compiles the functions that the conversation needs.

        Args:
          model: A loaded background model.
          toolbox: Tools that it can call.
          frames: Whether the conversation has video.
          keep: See `ThreadedAgent`.

        Raises:
          ValueError: It was not trained to call one of the tools, or an argument is something else.
        """
        super().__init__(keep)
        _check(model, toolbox)
        model.warm_up()
        if frames:
            model.warm_up(frames)
        self._model = model
        self._toolbox = toolbox
        self._forks: dict[int, _Fork] = {}
        self._record: State = None
        self.reset()

    def reset(self) -> None:
        """See `ThreadedAgent`."""
        for number in list(self._forks):
            self._drop(number)
        self._record = None  # may have to make room for the next one
        self._record = self._model.start()
        self._pending: list[MicroTurn] = []

    def close(self) -> None:
        """See `ThreadedAgent`; running calls are cancelled."""
        super().close()
        for fork in list(self._forks.values()):
            if fork.call is not None:
                fork.call.cancel()
        self._forks.clear()
        self._record = None

    def on_turns(self, turns: list[MicroTurn]) -> None:
        """See `ThreadedAgent`; `work` prefills them when there are enough."""
        self._pending += turns

    def on_ask(self, delegation: int, request: str) -> None:
        """See `ThreadedAgent`."""
        self._open(delegation, self._span(Special.DELEGATE, request))

    def on_update(self, delegation: int, request: str, updates: Sequence[str]) -> None:
        """See `ThreadedAgent`; a new fork of the record replaces the old one."""
        call = self._drop(delegation)
        if call is not None:
            self.emit(delegation, RESULT, call.result())
        known = self._model.trained.corrections(request, updates) or updates
        spans = [self._span(Special.UPDATE, words) for words in known]
        self._open(delegation, sum(spans, self._span(Special.DELEGATE, request)))

    def fits(self, request: str, correction: str) -> bool:
        """See `BackgroundAgent`."""
        return self._model.trained.corrections(request, [correction]) is not None

    def on_cancel(self, delegation: int) -> None:
        """See `ThreadedAgent`."""
        self._drop(delegation)

    def work(self) -> bool:
        """Prefills some micro-turns, or advances each fork by a token or a piece of a span."""
        if len(self._pending) >= PREFILL_TURNS:
            self._prefill_some()
            return True
        going = [self._advance(*one) for one in list(self._forks.items())]
        return any(going)

    def _prefill_some(self) -> None:
        turns, self._pending = self._pending[:PREFILL_TURNS], self._pending[PREFILL_TURNS:]
        self._record = self._model.prefill(self._record, turns)

    def _open(self, number: int, unread: list[int]) -> None:
        while self._pending:
            self._prefill_some()
        try:
            self._forks[number] = _Fork(self._model.fork(self._record), unread)
        except NoFreeRowError as error:
            self.emit(number, FAILED, str(error))

    def _drop(self, number: int) -> ToolCall | None:
        """Ends a fork and cancels its running call, which is returned."""
        fork = self._forks.pop(number, None)
        call = None if fork is None else fork.call
        if call is not None:
            call.cancel()
        return call

    def _span(self, opening: int, text: str) -> list[int]:
        ids = [one for one in self._model.tokenizer.encode(text) if one >= Special.COUNT]
        return [opening, *ids[:_LONGEST], Special.END_DELEGATE]

    def _advance(self, number: int, fork: _Fork) -> bool:
        """Advances a fork; returns False while it waits for a call, and at its end."""
        if fork.call is not None:
            if not fork.call.done():
                return False
            result, fork.call = fork.call.result(), None
            self.emit(number, RESULT, result)
            if not self._take(number, fork, result):
                return True
        if not fork.unread:
            self._write(number, fork, fork.token)
        if number not in self._forks or fork.call is not None:
            return number in self._forks
        ids, fork.unread = fork.unread[:READ], fork.unread[READ:]
        fork.state, fork.token = self._model.read(fork.state, ids)
        return True

    def _take(self, number: int, fork: _Fork, result: str) -> bool:
        """Lets a fork read a result that has right words; otherwise fails and returns False."""
        name, found = fork.called["tool"], json.loads(result)
        if "error" in found:
            self._give_up(number, f"{name} failed: {found['error']}")
            return False
        fork.answers = self._model.trained.answers(fork.called, found["result"])
        if not fork.answers:
            self._give_up(number, f"{name}: a result that cannot be said: {result}")
            return False
        fork.unread += self._span(Special.UPDATE, result)
        return True

    def _write(self, number: int, fork: _Fork, token: int) -> None:
        """Acts on a token that the model wrote."""
        fork.written += 1
        if fork.written > LIMIT:
            self._give_up(number, f"no end after {LIMIT} tokens")
            return
        fork.unread = [token]
        if token >= Special.COUNT:
            fork.part.append(token)
            if fork.writes == _SAY:
                self._say(number, fork, last=False)
        elif fork.writes == _THINK and token in (Special.DELEGATE, Special.HOLD):
            if fork.part:
                self.emit(number, THINKING, self._model.tokenizer.decode(fork.part))
            fork.part = []
            fork.writes = _CALL if token == Special.DELEGATE else _SAY
        elif fork.writes == _CALL and token == Special.END_DELEGATE:
            self._call(number, fork)
        elif fork.writes == _SAY and token == Special.SILENT:
            self._say(number, fork, last=True)
        else:
            fork.unread = []
            self._correct(number, fork, f"{Special.NAMES[token]} where it was to {fork.writes}")

    def _say(self, number: int, fork: _Fork, last: bool) -> None:
        """Emits complete words; before the end, the last word may still be incomplete."""
        text = self._model.tokenizer.decode(fork.part)
        if not last:
            text, more, _ = text.rpartition(" ")
            fork.part = fork.part[-1:] if more else fork.part
        whole = f"{fork.text} {text}".strip()
        right = (
            one == whole if last else f"{one} ".startswith(f"{whole} ") for one in fork.answers
        )
        if whole and not any(right):
            wanted = " or ".join(fork.answers) or "a call before any words"
            self._give_up(number, f"the model says {whole!r}, wanted {wanted}")
            return
        if text:
            fork.text = whole
            self.emit(number, TEXT, text)
        if last:
            del self._forks[number]
            self.emit(number, DONE)

    def _call(self, number: int, fork: _Fork) -> None:
        text = self._model.tokenizer.decode(fork.part)
        fork.part, fork.writes = [], _THINK
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            call = None
        if not isinstance(call, dict) or not isinstance(call.get("tool"), str):
            self._correct(number, fork, "call: wanted JSON of a tool and its arguments")
            return
        fork.called, fork.answers = call, ()
        fork.call = self.call(number, self._toolbox, text)

    def _correct(self, number: int, fork: _Fork, why: str) -> None:
        fork.mistakes += 1
        if fork.mistakes > 1 or fork.text:
            self._give_up(number, f"the model wrote {why}")
            return
        fork.part, fork.writes = [], _THINK
        fork.unread += self._span(Special.UPDATE, error_json(why))

    def _give_up(self, number: int, why: str) -> None:
        self._drop(number)
        self.emit(number, FAILED, why)


def _check(model: Reasoner, toolbox: Toolbox) -> None:
    """Checks that a model can call the tools of a toolbox."""
    if not isinstance(model, Reasoner):
        raise ValueError(
            f"model: got a {type(model).__name__}, wanted a Reasoner; load one with load_reasoner"
        )
    calls: dict[str, list[dict[str, Any]]] = {}
    for call in model.trained.calls:
        arguments = {name: value for name, value in call.items() if name != "tool"}
        calls.setdefault(call["tool"], []).append(arguments)
    for name, tool in check_toolbox(toolbox).tools.items():
        if name not in calls:
            raise ValueError(
                f"toolbox: got the tool {name!r}, wanted some of {list(calls)}, the tools that the "
                "model was trained to call; leave it out, or use an agent that can call it"
            )
        for arguments in calls[name]:
            try:
                tool.check(arguments)
            except ValueError as error:
                raise ValueError(
                    f"toolbox: got a tool that cannot take {arguments}, as the model calls it "
                    f"({error}); give it the parameters of the demo's tool"
                ) from None
