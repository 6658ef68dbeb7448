r"""Trains one part of a model; the same command resumes it.

python -m experiments.train --config=experiments/configs/demo.py

On several hosts run it on each, with a `--workdir` that all of them see. On TPU pods with GKE and
with Slurm the environment describes the hosts. On TPU VMs set JAX_COORDINATOR_ADDRESS (host:port of
the first host); on other machines also set JAX_NUM_PROCESSES and JAX_PROCESS_ID. SIGTERM to any
process stops all of them, after a checkpoint.
"""

import dataclasses
import os
import signal
import threading
from typing import Any

import jax
from absl import app, flags, logging

from interaction.compiled.compilation_cache import use_compilation_cache
from interaction.training import hosts
from interaction.training.loop import train
from interaction.training.objective import find_objective
from interaction.training.train_config import load_config

_CONFIG = flags.DEFINE_string("config", None, "Python file with get_config().", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<name>.")
_DATA = flags.DEFINE_string("data", None, "ArrayRecord file or folder.")
_STEPS = flags.DEFINE_integer("steps", None, "Total number of steps.")
_MINUTES = flags.DEFINE_float("minutes", None, "Saves and stops after so many minutes.")


def join_hosts() -> None:
    """Connects the processes of a run if the environment describes several.

    Raises:
      ValueError: JAX_NUM_PROCESSES is set without JAX_PROCESS_ID or JAX_COORDINATOR_ADDRESS.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, place = (os.environ.get(name) for name in names)
    if count is not None:
        if not (address and count.isdecimal() and (place or "").isdecimal()):
            raise ValueError(
                f"environment: got {count=}, {place=}, {address=}, wanted {names}; set all of them"
            )
        # Collectives between processes on CPUs need it; other devices have their own.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(count), int(place or 0))
    elif address or _launched():
        jax.distributed.initialize()


def _launched() -> bool:
    """Whether a TPU pod or Slurm's srun started this process as one of several."""
    workers = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES", ""))
    slices = "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
    return slices or "," in workers or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def main(argv: list[str]) -> None:
    """Reads flags and config, and trains."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # the progress bar is the log
    config = load_config(_CONFIG.value)
    flags_given = (flag for flag in (_WORKDIR, _DATA, _STEPS, _MINUTES) if flag.value is not None)
    changes: dict[str, Any] = {flag.name: flag.value for flag in flags_given}
    config = dataclasses.replace(config, **changes)
    join_hosts()
    use_compilation_cache()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    state = train(config, find_objective(config.objective, config.model), stop)
    if hosts.is_first():
        print(f"{config.run_dir}: stopped and saved at step {int(state.step)} of {config.steps}")


if __name__ == "__main__":
    app.run(main)
