"""Runs that are killed, resumed or stopped, and runs with damaged checkpoints."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from interaction.training.loop import NotFiniteError, train
from interaction.training.objective import find_objective
from interaction.training.train_config import TrainConfig
from tests.training import toy

CHAINS, KILLS, APART = 2, 3, 20  # runs, kills of each run, and fewest steps between two kills
STEPS = (KILLS + 1) * 3 * APART  # on busy cores a kill comes tens of steps late
CONFIG = """
from interaction.training.train_config import TrainConfig


def get_config():
    return TrainConfig(
        name="toy", objective="tests.training.toy:objective", data={data!r}, batch=4, warmup=3,
        steps={steps}, log_every=1, sample_every=0, save_every_s=0.15,
    )
"""


def _config(folder: pathlib.Path, name: str, **changes: object) -> TrainConfig:
    data = folder / "data"
    if not data.exists():
        toy.write_sessions(data)
    base = TrainConfig(
        name=name,
        objective="tests.training.toy:objective",
        data=str(data),
        workdir=str(folder / name),
        batch=4,
        steps=8,
        warmup=3,
        log_every=1,
        sample_every=4,
        save_every_s=0.0,
    )
    return dataclasses.replace(base, **changes)


def _train(config: TrainConfig, stop: threading.Event | None = None) -> object:
    return train(config, find_objective(config.objective, config.model), stop)


def _lines(run: pathlib.Path, *names: str) -> dict[int, tuple[float, ...]]:
    """The named figures of each step."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return {line["step"]: tuple(line[name] for name in names) for line in whole if names[0] in line}


def _losses(run: pathlib.Path) -> dict[int, tuple[float, ...]]:
    return _lines(run, "loss")


def _start(config: pathlib.Path, run: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.train", f"--config={config}", f"--workdir={run}"]
    root = pathlib.Path(__file__).parents[2]
    env = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(config.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(command, cwd=root, env=env, stderr=subprocess.PIPE, text=True)


def _wait_for_step(process: subprocess.Popen, run: pathlib.Path, step: int) -> None:
    path = run / "metrics.jsonl"
    while process.poll() is None:
        *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"training ended before step {step}: {process.stderr.read()}")


def _kill_again_and_again(config: pathlib.Path, run: pathlib.Path) -> list[int]:
    """Trains by the same command, killed at random steps; returns these steps."""
    rng, killed = random.Random(run.name), [0]
    for _ in range(KILLS):
        process = _start(config, run)
        _wait_for_step(process, run, killed[-1] + APART + rng.randrange(APART // 2))
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        killed.append(max(_losses(run)))
    process = _start(config, run)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return killed[1:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with data and a finished run named "run"."""
    folder = tmp_path_factory.mktemp("trained")
    _train(_config(folder, "run", keep=1))
    return folder


def test_killed_runs_equal_an_uninterrupted_run_bit_for_bit(
    tmp_path: pathlib.Path,
) -> None:
    toy.write_sessions(tmp_path / "data")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(data=str(tmp_path / "data"), steps=STEPS))
    runs = [tmp_path / f"killed{number}" for number in range(CHAINS)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        chains = [pool.submit(_kill_again_and_again, config, run) for run in runs]
        whole = _train(_config(tmp_path, "whole", steps=STEPS, sample_every=0, save_every_s=1e9))
        kills = [chain.result() for chain in chains]
    assert sum(map(len, kills)) == CHAINS * KILLS
    assert all(step < STEPS - APART for chain in kills for step in chain)
    wanted = _lines(tmp_path / "whole", "loss", "error", "grad_norm", "batch_crc")
    assert sorted(wanted) == list(range(1, STEPS + 1))
    for run in runs:
        assert _lines(run, "loss", "error", "grad_norm", "batch_crc") == wanted
        # Already at its last step, so this only restores.
        state = _train(_config(tmp_path, run.name, steps=STEPS))
        assert toy.digest(state) == toy.digest(whole)


def test_stopping_saves_and_the_same_call_continues(trained: pathlib.Path) -> None:
    whole = _train(_config(trained, "run"))

    class AfterThree(threading.Event):
        calls = 0

        def is_set(self) -> bool:
            self.calls += 1
            return self.calls > 3  # called once a step

    config = _config(trained, "parts", save_every_s=1e9)
    stopped = _train(config, AfterThree())
    assert int(stopped.step) == 4
    assert toy.digest(_train(config)) == toy.digest(whole)
    assert _losses(trained / "parts") == _losses(trained / "run")


def test_time_limit_stops_and_saves(tmp_path: pathlib.Path) -> None:
    state = _train(_config(tmp_path, "short", minutes=1e-6))
    assert int(state.step) == 1
    assert (tmp_path / "short/checkpoints/1").is_dir()


@pytest.mark.parametrize(
    ("objective", "found"),
    [
        (
            "broken",
            r"step 4: not finite: loss; gradients of backbone/heads/norm, backbone/heads/text, sp",
        ),
        ("broken_part", r"step 4: not finite: error; gradients of"),
        ("broken_gradient", r"step 4: not finite: gradients of speech/flow/w; by .* parameters"),
    ],
)
def test_divergence_names_the_first_values_and_keeps_a_finite_checkpoint(
    tmp_path: pathlib.Path, objective: str, found: str
) -> None:
    config = _config(tmp_path, "broken", objective=f"tests.training.toy:{objective}")
    with pytest.raises(NotFiniteError, match=found):
        _train(dataclasses.replace(config, log_every=3))
    steps = sorted(int(place.name) for place in (tmp_path / "broken/checkpoints").iterdir())
    assert steps[-1] == 3


def test_damaged_checkpoint_is_named(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    config = _config(tmp_path / "copy", "run")
    place = tmp_path / "copy/run/checkpoints/8"
    for victim in place.glob("state/**/d/*"):
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"checkpoints/8: .* damaged"):
        _train(config)
    shutil.rmtree(place / "pipeline")
    with pytest.raises(ValueError, match="checkpoints/8"):
        _train(config)


def test_another_model_is_named(trained: pathlib.Path) -> None:
    config = _config(trained, "run")
    foreign = dataclasses.replace(config, objective="tests.training.toy:broken")
    with pytest.raises(ValueError, match=r"checkpoints/8: .*buffers/count is missing"):
        _train(foreign)


def test_another_config_of_the_model_is_named(trained: pathlib.Path) -> None:
    config = _config(trained, "run")
    model = dataclasses.replace(config.model, self_audio=False)
    with pytest.raises(ValueError, match=r"config\.json does not describe the model"):
        _train(dataclasses.replace(config, model=model))


def test_other_data_is_refused(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = _config(trained, "run")
    other = toy.write_sessions(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="input pipeline first"):
        _train(dataclasses.replace(config, data=str(other)))
    with pytest.raises(ValueError, match="input pipeline batch: got 5"):
        _train(dataclasses.replace(config, batch=5))


def test_a_part_starts_from_another_run(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = _train(_config(trained, "run"))
    sources = {"speech": str(trained / "run"), "router_bias": str(trained / "run")}
    config = _config(tmp_path, "second", seed=1, steps=1, learning_rate=1e-12, init_from=sources)
    second = _train(config)
    wanted, got = jax.device_get(
        (first.ema["speech"]["flow"]["w"], second.params["speech"]["flow"]["w"])
    )
    np.testing.assert_allclose(got, wanted, atol=1e-9)  # one step at a rate of 1e-12
    assert not np.allclose(
        first.params["backbone"]["heads"]["text"], second.params["backbone"]["heads"]["text"]
    )
    config = _config(tmp_path, "third", init_from={"voice": sources["speech"]})
    with pytest.raises(ValueError, match=r"no part 'voice', wanted one of .*speech"):
        _train(config)
