"""`InteractionModel`: a loaded model, its tokenizer, and the jitted step behind checked inputs."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from interaction import logs
from interaction.config import ModelConfig
from interaction.data.tokenizer import Tokenizer, load_tokenizer
from interaction.distributed import sharding
from interaction.distributed.local_rows import LocalRows
from interaction.distributed.packing import LIMITS, Packing
from interaction.engine.chunk_checks import check_chunk, check_form, unusable_chunk
from interaction.model import session_state, streaming
from interaction.model.backbone import separate_layers
from interaction.model.parameters import init_model_params
from interaction.modules import vocoder
from interaction.pretrained import store
from interaction.types import Array, Chunk, Params, Reply, Special

_log = logging.getLogger(__name__)


class InteractionModel:
    """A model ready to stream; immutable, so one serves any number of states.

    On a mesh that spans processes each of them makes the same model and calls the same methods in
    the same order. `sessions`, `Chunk` and `Reply` then are of the sessions that its own devices
    hold, equally many on each; state spans the mesh. A session whose devices belong to several
    processes (along `tensor` or `sequence`) is a row in each of these, and all must feed it the
    same.
    """

    def __init__(
        self, config: ModelConfig, params: Params, tokenizer: Tokenizer, mesh: Mesh | None = None
    ) -> None:
        """Puts the parameters on the devices; the step is compiled when first called.

        Args:
          config: The model's.
          params: As `init_model_params` lays them out: on the host, in files (`LazyArray`), of which
            each process reads what its devices need, or wherever devices hold them.
          tokenizer: With `config.vocab` ids at most.
          mesh: From `sharding.make_mesh`; None takes the first device. It may span processes.

        Raises:
          ValueError: The tokenizer has more ids than the model, or the mesh does not divide it, or
            has no device of this process.
        """
        if tokenizer.vocab > config.vocab:
            raise ValueError(
                f"tokenizer: got {tokenizer.vocab} ids, wanted at most vocab={config.vocab}; "
                "load the tokenizer that the model was trained with"
            )
        self.config = config
        self.mesh = sharding.make_mesh({}) if mesh is None else mesh
        sharding.check_heads(self.mesh, config.transformer.kv_heads)
        self._rows = LocalRows(self.mesh)
        params = sharding.cast_params(params, config.transformer.dtype)
        self.params = jax.tree.map(sharding.put, params, sharding.shardings(self.mesh, params))
        self.tokenizer = tokenizer
        platform, alone = sharding.platform(self.mesh), self.mesh.size == 1
        # What the step reads: the same, on one CPU copied layer by layer, see `run_stack`.
        arranged = _separate(self.params) if platform == "cpu" and alone else self.params
        packing = Packing(arranged, sharding.param_specs(arranged), LIMITS[platform])
        self._packed = packing.join(arranged, self.mesh)
        self._step = streaming.make_step(config, self.mesh, packing.specs, packing.take_apart)
        self._init = jax.jit(
            lambda seeds: session_state.init_state(config, session_state.session_keys(seeds)),
            out_shardings=self._place(session_state.state_specs(config)),
        )

    def _place(self, specs: Any) -> Any:  # noqa: ANN401
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)

    def init_state(self, sessions: int, seed: int | Sequence[int] = 0) -> session_state.StreamState:
        """Fresh sessions.

        Args:
          sessions: How many, of this process.
          seed: One for each session, or one number from which row i of all takes seed + i.

        Returns:
          The state before the first micro-turn.

        Raises:
          ValueError: Not as many seeds as sessions, no session, a number of sessions that the
            mesh does not divide, a seed beyond int32, or, of several processes, another number
            for each share of the mesh than others ask for, or a mistake of another one.
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
                f"{'a mistake' if low < 0 else low} from another, wanted as many from each; ask "
                "for the same"
            )
        return self._init(seeds)

    def _seeds(self, sessions: int, seed: int | Sequence[int]) -> Array:
        """A seed for each session, checked, on the mesh."""
        shares = self._rows.shares
        if sessions < 1 or sessions % shares:
            raise ValueError(
                f"sessions: got {sessions}, wanted a multiple of {shares}, the devices that share "
                "them out, and at least one; ask for more"
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
        whole = np.issubdtype(seeds.dtype, np.integer)
        if not whole or np.any(seeds < limits.min) or np.any(seeds > limits.max - last):
            raise ValueError(f"seed: got {seed!r}, wanted integers of 32 bits; pass other ones")
        return self._rows.spread((seeds.astype(np.int64) + rows).astype(np.int32))

    def step(
        self, state: session_state.StreamState, chunk: Chunk
    ) -> tuple[session_state.StreamState, Reply]:
        """Takes one micro-turn of every session; inside a `jax.jit` of yours use `streaming.step`.

        With several processes a step begins when all have called it, with the same fields of the
        chunk. One that raised alone would leave the others waiting, so there a chunk of wrong
        shapes or dtypes is logged, and all rows of its process are refused.

        Args:
          state: Donated: use the one that is returned.
          chunk: Inputs, on the device, or numpy: copied and transferred here.

        Returns:
          The new state and the reply; both may still be being computed.

        Raises:
          ValueError: In a single process: a field has the wrong shape or dtype, or it came as
            numpy and no row of it holds usable numbers. Nothing was done and `state` is still
            good. A bad row beside good ones is refused alone, see `Reply.refused`.
        """
        if self._rows.several:
            return self._step_together(state, chunk)
        check_chunk(self.config, chunk, state.clock.shape[0])
        # Transfers are asynchronous, and the caller may refill its buffers at once.
        chunk = jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, chunk)
        return self._step(self._packed, state, chunk)

    def _step_together(
        self, state: session_state.StreamState, chunk: Chunk
    ) -> tuple[session_state.StreamState, Reply]:
        sessions = self._rows.count(state.clock.shape[0])
        try:
            check_form(self.config, chunk, sessions)
            chunk = jax.tree.map(np.array, chunk)  # what cannot be read shows here
        except Exception as error:  # whatever it is: this process alone must not stop
            text = "%s. All rows of process %d are refused"
            logs.warn(_log, text, str(error), jax.process_index())
            chunk = unusable_chunk(self.config, chunk, sessions)
        chunk = jax.tree.map(self._rows.spread, chunk)
        state, reply = self._step(self._packed, state, chunk)
        return state, jax.tree.map(self._rows.collect, reply)

    def encode(self, text: str) -> np.ndarray:
        """Text as one micro-turn's text-in slots.

        Returns:
          int32[text_slots], PAD where empty.

        Raises:
          ValueError: It does not fit; send it over several micro-turns.
        """
        ids = self.tokenizer.encode(text)
        slots = self.config.text_slots
        if len(ids) > slots:
            raise ValueError(
                f"text: got {len(ids)} tokens ({text!r}), wanted at most text_slots={slots} a "
                "micro-turn; send the rest with the next chunks"
            )
        return np.array(ids + [Special.PAD] * (slots - len(ids)), np.int32)

    def decode(self, ids: Any) -> str:  # noqa: ANN401
        """Words behind ids of one session, in order; special tokens are dropped."""
        return self.tokenizer.decode([int(i) for i in np.ravel(ids)])


@jax.jit
def _separate(params: Params) -> Params:
    return {
        **params,
        "backbone": separate_layers(params["backbone"]),
        "vocoder": vocoder.separate_layers(params["vocoder"]),
    }


def load(name: str = "demo", mesh: Mesh | None = None) -> InteractionModel:
    """Loads a released model by name, or from a folder that `store.save_model` wrote.

    Args:
      name: Of the model, or its folder.
      mesh: Devices to run on, from `sharding.make_mesh`; None takes the first. Each process reads
        what its own devices need.

    Returns:
      The model, ready to stream.

    Raises:
      ValueError: There is no such model, or its files are damaged or foreign.
    """
    folder = store.find_released(name)

    def abstract(config: ModelConfig) -> Params:
        return jax.eval_shape(functools.partial(init_model_params, config), jax.random.key(0))

    config, params = store.load_model(folder, abstract)
    return InteractionModel(config, params, load_tokenizer(folder / store.TOKENIZER), mesh)
