"""`Snapshots`: saves an engine's sessions again and again, since its process may be killed."""

import logging
import os
import pathlib
import threading
import time
from typing import Self

from interaction import logs
from interaction.engine.engine import Engine
from interaction.engine.session import SUFFIX, Session

_log = logging.getLogger(__name__)


class Snapshots:
    """Keeps one file of each open session, `NAME.conversation`, in a folder.

    A file is replaced whole, so that there is a readable one at any moment. It disappears when its
    session closes, and stays when the engine fails or the process is killed: `Engine.restore` goes
    on from it, and its session keeps the file's name.
    """

    def __init__(self, engine: Engine, folder: str | os.PathLike, every_s: float = 2.0) -> None:
        """Starts to save, on a thread of its own.

        Args:
          engine: The engine.
          folder: Folder for the files, made if it is missing.
          every_s: Time between two files of a session, s.
        """
        self._engine, self._folder, self._every_s = engine, pathlib.Path(folder), every_s
        self._folder.mkdir(parents=True, exist_ok=True)
        self._saved: set[str] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after its current file; the files stay."""
        self._ending.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            sessions = self._engine.sessions
            for session in sessions:  # spread over the time, since each takes some of a core
                self._save(session.name, session)
                if self._ending.wait(0.5 * self._every_s / len(sessions)):
                    return
            if self._engine.error is not None:
                return
            for name in self._saved - {session.name for session in sessions}:
                (self._folder / f"{name}{SUFFIX}").unlink(missing_ok=True)
                self._saved.discard(name)
            self._ending.wait(max(0.01, began + self._every_s - time.monotonic()))

    def _save(self, name: str, session: Session) -> None:
        try:
            self._engine.save(session, self._folder / f"{name}{SUFFIX}")
            self._saved.add(name)
        except ValueError:
            pass  # closed in the meantime
        except (OSError, RuntimeError) as error:  # of the disk, or of the engine
            logs.warn(_log, "a session could not be saved: %s", str(error))
