"""A run that one, then two, then four processes continue: the same data, order and state.

Each reads the saved state bit for bit, which fingerprints check. Afterwards gloo sums over
processes in another order, so the last bits differ.
"""

import dataclasses
import json
import pathlib
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from interaction.training.loop import NotFiniteError, train
from interaction.training.objective import find_objective
from interaction.training.state import TrainState
from interaction.training.train_config import TrainConfig
from tests.multihost.launch import finish, start
from tests.training import toy

MESH, OTHER = {"data": 4, "fsdp": 2}, {"data": 2, "expert": 2, "tensor": 2}
CONFIG = """
from interaction.training.train_config import TrainConfig


def get_config():
    return TrainConfig(**{fields!r})
"""


def _config(folder: pathlib.Path, run: str, **changes: object) -> TrainConfig:
    base = TrainConfig(
        name="toy",
        objective="tests.training.toy:objective",
        data=str(folder / "data"),
        workdir=str(folder / run),
        batch=8,
        mesh=MESH,
        warmup=3,
        schedule="constant",  # the number of steps differs between stages
        log_every=1,
        sample_every=5,
        save_every_s=1e9,
    )
    return dataclasses.replace(base, **changes)


def _train(config: TrainConfig) -> TrainState:
    return train(config, find_objective(config.objective, config.model))


def _start(config: TrainConfig, processes: int) -> list[subprocess.Popen]:
    """Starts `experiments.train` in several processes, over which the devices are divided."""
    run = pathlib.Path(config.run_dir)
    path = run.parent / "config.py"
    fields = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name != "model"
    }
    path.write_text(CONFIG.format(fields=fields))
    return start(["experiments.train", f"--config={path}"], processes)


def _figures(run: pathlib.Path, *names: str) -> dict[int, list]:
    full = [line for line in (run / "metrics.jsonl").read_text().splitlines(True) if "\n" in line]
    lines = [line for line in map(json.loads, full) if "loss" in line]
    steps = [line["step"] for line in lines]
    assert steps == list(range(1, len(steps) + 1))  # each step is logged once, by one process
    return {line["step"]: [line[name] for name in names] for line in lines}


def _wait_for_step(processes: list[subprocess.Popen], run: pathlib.Path, step: int) -> None:
    while all(process.poll() is None for process in processes):
        if len(_figures(run)) >= step:
            return
        time.sleep(0.02)
    pytest.fail(finish(processes)[0])


def test_one_two_and_four_processes_make_one_run(tmp_path: pathlib.Path) -> None:
    toy.write_sessions(tmp_path / "data")
    run = tmp_path / "run"
    _train(_config(tmp_path, "run", steps=5))

    two = _start(_config(tmp_path, "run", steps=10**6), 2)
    _wait_for_step(two, run, 12)
    two[1].send_signal(signal.SIGTERM)  # to one process only
    printed = finish(two)
    stopped = len(_figures(run))
    assert 12 <= stopped < 10**6
    assert f"stopped and saved at step {stopped} of" in printed[0]
    assert "stopped and saved" not in printed[1]
    assert (run / f"checkpoints/{stopped}").is_dir()

    steps = stopped + 6
    finish(_start(_config(tmp_path, "run", steps=steps), 4))

    full = _train(_config(tmp_path, "full", steps=steps))
    _compare(tmp_path, full, _train(_config(tmp_path, "run", steps=steps, mesh={})))  # restores

    full = _train(_config(tmp_path, "full", steps=steps + 4))
    other = _train(_config(tmp_path, "run", steps=steps + 4, mesh=OTHER))
    _compare(tmp_path, full, other)


def _compare(folder: pathlib.Path, full: TrainState, parts: TrainState) -> None:
    """Compares data, losses and states of the runs "full" and "run"."""
    assert _figures(folder / "run", "batch_crc") == _figures(folder / "full", "batch_crc")
    names = ("loss", "error", "grad_norm")
    losses = [np.array(list(_figures(folder / run, *names).values())) for run in ("run", "full")]
    np.testing.assert_allclose(*losses, rtol=1e-6)  # measured 1.9e-7
    for got, wanted in zip(jax.tree.leaves(parts), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)  # measured 7.5e-9


def test_divergence_is_found_in_what_is_split(tmp_path: pathlib.Path) -> None:
    toy.write_sessions(tmp_path / "data")
    config = _config(tmp_path, "broken", steps=8, objective="tests.training.toy:broken_gradient")
    with pytest.raises(NotFiniteError, match=r"step 4: not finite: gradients of speech/flow/w; by"):
        _train(dataclasses.replace(config, log_every=8))


def test_a_mesh_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    toy.write_sessions(tmp_path / "data")
    with pytest.raises(ValueError, match="mesh: got"):
        _train(_config(tmp_path, "run", steps=1, mesh={"data": 3}))
