"""Connections between the leader and the other processes of a model, see `leader`.

They are TCP connections that both sides prove with a secret, which is sent over the mesh. Messages
are maps of MessagePack, with arrays.
"""

import contextlib
import os
import queue
import secrets
import socket
import threading
import time
from multiprocessing.connection import (
    Client,
    Connection,
    Listener,
    answer_challenge,
    deliver_challenge,
)
from typing import Any

import jax
import numpy as np
from flax import serialization
from jax.experimental import multihost_utils

from interaction.engine.live_model import InteractionModel

END = "end"  # name of the message that ends `follow`
_JOIN_S = 120.0  # s in which all processes must be there
_ADDRESS, _SECRET = 256, 32  # bytes


class HostLostError(RuntimeError):
    """A process of the mesh is gone."""


def check_role(model: InteractionModel, leads: bool) -> None:
    """Refuses a mesh that leaves out a process, and the wrong role.

    Raises:
      ValueError: See above.
    """
    found = {device.process_index for device in model.mesh.devices.flat}
    if found != set(range(jax.process_count())):
        raise ValueError(
            f"model: got a mesh of processes {sorted(found)}, wanted one of all "
            f"{jax.process_count()}; make it from jax.devices()"
        )
    if (jax.process_index() == 0) != leads:
        raise ValueError(
            f"process {jax.process_index()}: got {'Leader' if leads else 'follow'}, wanted "
            "Leader in process 0 and follow in all others"
        )


def accept_all(host: str) -> list[Connection]:
    """Connects the leader with all other processes, in their order.

    Args:
      host: Name or address of this host that the others reach.

    Raises:
      HostLostError: Some process did not come.
    """
    count, secret = jax.process_count(), secrets.token_bytes(_SECRET)
    joined: queue.SimpleQueue[tuple[int, Connection]] = queue.SimpleQueue()
    found: dict[int, Connection] = {}
    with Listener((host, 0), backlog=count) as listener:
        address, port = listener.address

        def greet(other: Connection) -> None:
            try:
                deliver_challenge(other, secret)
                answer_challenge(other, secret)
                _set_options(other)
                joined.put((decode(other.recv_bytes())["process"], other))
            except Exception:  # a stranger, such as a scan of ports
                other.close()

        def accept() -> None:
            with contextlib.suppress(OSError):  # the listener is closed
                while True:
                    threading.Thread(target=greet, args=(listener.accept(),), daemon=True).start()

        _share((address, port, secret))
        threading.Thread(target=accept, daemon=True).start()
        end = time.monotonic() + _JOIN_S
        while len(found) < count - 1:
            try:
                process, other = joined.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                absent = sorted(set(range(1, count)) - set(found))
                raise HostLostError(
                    f"processes {absent} did not come within {_JOIN_S:.0f} s; start all again"
                ) from None
            found[process] = other
    return [found[process] for process in range(1, count)]


def connect() -> Connection:
    """Connects another process with the leader.

    Raises:
      HostLostError: The leader cannot be reached.
    """
    address, port, secret = _share(None)
    try:
        leader = Client((address, port), authkey=secret)
    except OSError as error:
        raise HostLostError(
            f"the leader cannot be reached at {address}:{port} ({error}); pass it the address at "
            "which this host reaches it"
        ) from error
    _set_options(leader)
    leader.send_bytes(encode({"process": jax.process_index()}))
    return leader


def _share(mine: tuple[str, int, bytes] | None) -> tuple[str, int, bytes]:
    """Sends the leader's address, port and secret to all processes; the others pass None."""
    sent = np.zeros(_ADDRESS + 4 + _SECRET, np.uint8)
    if mine is not None:
        address, port, secret = mine
        data = address.encode().ljust(_ADDRESS, b"\0") + port.to_bytes(4, "big") + secret
        sent = np.frombuffer(data, np.uint8)
    data = np.asarray(multihost_utils.broadcast_one_to_all(sent)).astype(np.uint8).tobytes()
    address, rest = data[:_ADDRESS].rstrip(b"\0").decode(), data[_ADDRESS:]
    return address, int.from_bytes(rest[:4], "big"), rest[4:]


def _set_options(connection: Connection) -> None:
    """Sends small messages at once, and notices a host that is gone without a word."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):  # on Linux
                same.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def encode(message: dict[str, Any]) -> bytes:
    """A message as bytes."""
    return serialization.msgpack_serialize(message)


def decode(data: bytes) -> Any:  # noqa: ANN401
    """The message of `encode`."""
    return serialization.msgpack_restore(data)
