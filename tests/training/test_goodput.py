"""Figures of a run: its speed and lost time; and its profiler traces."""

import json
import pathlib
import shutil
import time

import pytest

from interaction.config import ModelConfig
from interaction.training import run_log
from interaction.training.goodput import CAUSES, Goodput
from interaction.training.loop import train
from interaction.training.objective import find_objective
from interaction.training.train_config import TrainConfig
from tests.training import toy


def _kept(run: pathlib.Path) -> dict[str, float]:
    return json.loads((run / "goodput.json").read_text())


def test_seconds_are_counted_once_and_over_restarts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0] + 1e6)

    def work(clock: Goodput, steps: int) -> dict[str, float]:
        for _ in range(steps):
            with clock.lost("data"):
                now[0] += 1
            with clock.lost(None):
                now[0] += 3
        return clock.figures(steps)

    clock = Goodput(tmp_path, {}, writes=True)
    with clock.lost("compile"):
        now[0] += 10
    saved = work(clock, 5)
    assert saved == {"step_s": 4.0, "data_share": 0.25, "goodput": 15 / 30, "good_s": 15.0}
    work(clock, 5)  # after the checkpoint, so these steps are lost
    now[0] += 20
    clock = Goodput(tmp_path, saved, writes=True)
    with clock.lost("save"):
        now[0] += 10
    again = work(clock, 5)
    assert again["good_s"] == 30.0
    assert again["goodput"] == pytest.approx(30 / 100)
    kept = _kept(tmp_path)
    assert kept["wall"] == 100
    assert {cause: kept[cause] for cause in CAUSES} == {
        "compile": 10,
        "data": 15,
        "save": 10,
        "samples": 0,
    }
    assert kept["other"] == 35  # 15 s of repeated steps, 20 s without a process


def _config(folder: pathlib.Path, **changes: object) -> TrainConfig:
    return TrainConfig(
        name="toy",
        objective="tests.training.toy:objective",
        data=str(folder / "data"),
        workdir=str(folder / "run"),
        batch=4,
        steps=12,
        log_every=2,
        sample_every=6,
        save_every_s=1e9,
        **changes,
    )


def test_a_run_reports_its_speed_and_is_traced_on_request(tmp_path: pathlib.Path) -> None:
    toy.write_sessions(tmp_path / "data")
    run, config = tmp_path / "run", _config(tmp_path)
    run.mkdir()
    (run / "profile").touch()
    objective = find_objective(config.objective, config.model)
    began = time.monotonic()
    train(config, objective)
    wall = time.monotonic() - began
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    for line in steps:
        assert line["step_s"] > 0
        assert 0 < line["goodput"] < 1
        assert line["audio_s_per_s"] == pytest.approx(4 * toy.TURNS * 0.2 / line["step_s"])
        assert line["positions_per_s"] == pytest.approx(4 * toy.TURNS * 3 / line["step_s"])
        assert "mfu" not in line  # the peak of a CPU is not known
    kept = _kept(run)
    spent = kept["good"] + kept["other"] + sum(kept[cause] for cause in CAUSES)
    assert spent == pytest.approx(kept["wall"], abs=0.1)
    assert kept["wall"] <= wall + 0.1
    assert min(kept["compile"], kept["save"], kept["samples"]) > 0
    assert not (run / "profile").exists()
    assert len(list((run / "profiles").glob("**/*.xplane.pb"))) == 1
    assert "good_s" not in lines[-1]  # figures of samples
    assert run_log.Report(run, 12).last["good_s"] == steps[-1]["good_s"]
    shutil.rmtree(run / "profiles")
    train(_config(tmp_path, ema_decay=0.9), objective)  # nothing left to do
    assert not (run / "profiles").exists()


def test_mfu_counts_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaf:
        shape, size, dtype = (4, 50), 200, "int32"

        class sharding:
            device_set = (type("Device", (), {"device_kind": "TPU v5 lite"}),) * 2

    config = TrainConfig(name="x", objective="x", data="x", model=ModelConfig())
    flops = run_log.train_flops(config.model, 50)
    speech = sum(count for name, count in flops.items() if name.startswith("speech"))
    both = run_log.speeds(config, {"text": Leaf}, {"backbone": 0, "speech": 0}, 0.5)
    backbone = run_log.speeds(config, {"text": Leaf}, {"backbone": 0}, 0.5)
    assert both["mfu"] == pytest.approx(4 * sum(flops.values()) / 0.5 / (2 * 197e12))
    assert both["mfu"] - backbone["mfu"] == pytest.approx(4 * speech / 0.5 / (2 * 197e12))
    assert "mfu" not in run_log.speeds(config, {"text": Leaf}, {"vocoder": 0}, 0.5)
    monkeypatch.setattr(Leaf.sharding.device_set[0], "device_kind", "new")
    assert "mfu" not in run_log.speeds(config, {"text": Leaf}, {"backbone": 0}, 0.5)
