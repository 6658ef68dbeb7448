"""Starts several processes on this machine, as if they were several hosts."""

import concurrent.futures
import os
import pathlib
import socket
import subprocess
import sys

DEVICES = 8
LIMIT_S = 200
_COUNT = "--xla_force_host_platform_device_count"
ROOT = pathlib.Path(__file__).parents[2]


def start(command: list[str], processes: int, devices: int = DEVICES) -> list[subprocess.Popen]:
    """Starts `python -m <command>` in several processes, over which the devices are divided."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {_COUNT}={devices // processes}",  # the last holds
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**env, "JAX_PROCESS_ID": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for place in range(processes)
    ]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """Waits for all processes, which must exit with 0; returns their output."""
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        printed = list(pool.map(_output, processes))  # one that failed may keep others waiting
    assert not any(process.returncode for process in processes), "\n\n".join(printed)
    return printed


def _output(process: subprocess.Popen) -> str:
    try:
        return process.communicate(timeout=LIMIT_S)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return f"{process.communicate()[0]}\nkilled after {LIMIT_S} s"
