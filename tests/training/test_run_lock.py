"""Two runs in one folder: the second is refused, and a run that was killed is no obstacle."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from interaction.training import run_lock
from interaction.training.loop import train
from interaction.training.objective import find_objective
from interaction.training.train_config import TrainConfig

HOLD = """
import pathlib, sys, time
from interaction.training import run_lock
with run_lock.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_told_who_is_there(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "toy")]
    (tmp_path / "toy").mkdir()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            who = rf"process {other.pid} on {re.escape(socket.gethostname())}, since 20\d\d-\d\d-"
            objective = "tests.training.toy:objective"
            config = TrainConfig(
                name="toy", objective=objective, workdir=str(tmp_path / "toy"), data="x"
            )
            with pytest.raises(ValueError, match=rf"toy: another run is training .*: {who}"):
                train(config, find_objective(objective, config.model))
        finally:
            other.send_signal(signal.SIGKILL)
    with run_lock.hold(tmp_path / "toy"):
        text = (tmp_path / "toy" / "lock").read_text()
        assert text.startswith(f"process {os.getpid()} on ") and text.count("\n") == 1
        with (
            pytest.raises(ValueError, match=f"process {os.getpid()} on"),
            run_lock.hold(tmp_path / "toy"),
        ):
            pass
    with run_lock.hold(tmp_path / "toy"):
        pass


def test_a_folder_without_locks_is_used_with_a_warning(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    with run_lock.hold(tmp_path):
        assert "cannot be locked ([Errno 95] Operation not supported)" in caplog.text
