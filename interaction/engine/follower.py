"""What each process of a model does for the leader, see `leader`."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import jax

from interaction.engine.live_model import InteractionModel
from interaction.engine.process_links import END, HostLostError, check_role, connect, decode, encode
from interaction.types import Chunk


def follow(model: InteractionModel) -> None:
    """Makes the calls of the `Leader` of process 0 until it closes.

    Args:
      model: The same model, on the same mesh.

    Raises:
      ValueError: The mesh leaves out a process, or this is process 0.
      HostLostError: The leader or another process is gone.
    """
    check_role(model, leads=False)
    leader = connect()
    own = Worker(model, lambda answer: leader.send_bytes(encode(answer)))
    while True:  # beside the worker, which may wait for the devices of a lost process
        try:
            call = decode(leader.recv_bytes())
        except (EOFError, OSError) as error:
            raise HostLostError("the leader is gone; start all processes again") from error
        if call["name"] == END:
            break
        own.calls.put(call)
    if call["reason"]:
        raise HostLostError(call["reason"])


class Worker:
    """Makes calls on this process's part of the model, in order, on a thread of its own."""

    def __init__(self, model: InteractionModel, answer: Callable[[dict], object]) -> None:
        """Starts the thread.

        Args:
          model: The model.
          answer: Function that takes the answer to each call of `calls`.
        """
        self.calls: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()  # None: the end
        self.held: dict[int, Any] = {}
        self._model, self._answer = model, answer
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (call := self.calls.get()) is not None:
            result, refused, wrong = None, False, ""
            try:
                result = self._make(call)
            except Exception as error:  # the leader decides
                refused = isinstance(error, ValueError)
                wrong = str(error) if refused else f"{type(error).__name__}: {error}"
            try:
                self._answer({"result": result, "error": wrong, "refused": refused})
            except OSError:
                return  # the leader is gone

    def _make(self, call: dict[str, Any]) -> Any:  # noqa: ANN401
        """Makes a call; returns what is for the leader."""
        for number in call["dropped"]:
            self.held.pop(number, None)
        name, given = call["name"], dict(call["given"])
        held = {key: self.held[number] for key, number in call["held"].items()}
        result = None
        if name in ("compile", "init_state"):
            result = self._model.own_rows(given["sessions"])
            given["sessions"] = len(result)
        if name == "step":
            given = {"chunk": Chunk(**given)}
        made = getattr(self._model, name)(**held, **given)
        if name == "step":
            made, reply = made
            result = jax.device_get(reply)._asdict()
        if name == "fingerprint":
            return made
        self.held[call["number"]] = made
        return result
