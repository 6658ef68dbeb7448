"""One run at a time in a folder.

The first process of a run holds a lock of the operating system, which ends with the process however
it ends. The file `lock` says who holds it.
"""

import contextlib
import fcntl
import logging
import os
import pathlib
import socket
import time
from collections.abc import Generator
from typing import TextIO

from interaction.training import hosts

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(run_dir: pathlib.Path) -> Generator[None]:
    """Holds the folder of a run; every process of the run calls it.

    Args:
      run_dir: The folder.

    Raises:
      ValueError: Another run holds it; the message says where that runs, and since when.
    """
    mistake, file = None, None
    if hosts.is_first():
        try:
            file = _lock(run_dir)
        except ValueError as error:
            mistake = error
    if not hosts.all_agree(mistake is None):
        raise mistake or ValueError(
            f"{run_dir}: another run is training in this folder, see the message of process 0"
        )
    with file or contextlib.nullcontext():
        yield


def _lock(run_dir: pathlib.Path) -> TextIO:
    file = (run_dir / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read(500).strip() or "an unknown process"
        file.close()
        raise ValueError(
            f"{run_dir}: another run is training in this folder: {who}; stop it, wait for its end, "
            "or start a new --workdir"
        ) from None
    except OSError as error:  # some network file systems have no locks
        _log.warning("%s cannot be locked (%s): start no second run there", run_dir, error)
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
    file.flush()
    return file
