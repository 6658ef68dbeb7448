"""An engine whose model lies over several processes, against the same mesh in one process."""

import json
import pathlib
import signal
import time
from dataclasses import replace

import jax
import numpy as np

import interaction
from interaction.distributed import sharding
from interaction.engine.engine import Engine
from interaction.pretrained import store
from tests.multihost import lead
from tests.multihost.launch import LIMIT_S, ROOT, finish, start
from tests.support import SMALLEST, random_params

MESH = {"expert": 2, "tensor": 2}
DEVICES = 4
HEADS = replace(SMALLEST.transformer, kv_heads=2, sliding_kv_heads=2)
MODEL = replace(SMALLEST, transformer=HEADS)


def _compare(found: pathlib.Path, wanted: dict[str, np.ndarray]) -> None:
    got = np.load(found)
    assert sorted(got) == sorted(wanted)
    for name in got:
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)


def test_four_processes_are_one_until_one_is_lost_and_two_go_on(tmp_path: pathlib.Path) -> None:
    served, files = tmp_path / "model", tmp_path / "sessions"
    store.save_model(served, MODEL, random_params(MODEL), ROOT / "interaction/data/tokenizer.json")
    command = ["tests.multihost.lead", "talk", str(served), json.dumps(MESH), str(tmp_path)]
    running = start(command, 4, DEVICES)
    end = time.monotonic() + LIMIT_S
    while len(list(files.glob("*.conversation"))) < 2:
        assert time.monotonic() < end and running[0].poll() is None, running[0].communicate()[0]
        time.sleep(0.05)
    running[2].send_signal(signal.SIGKILL)
    lost = time.time()
    printed = [process.communicate(timeout=60)[0] for process in running]
    ends = json.loads((tmp_path / "ends.json").read_text())
    assert [process.returncode for process in running] == [lead.LOST, lead.LOST, -9, lead.LOST]
    for text, when in ends[:2]:
        assert "process 2 is gone; start all processes again and restore the sessions" in text
        assert when - lost < 5
    assert "the engine failed" in ends[2][0]
    for place in (1, 3):
        assert "process 2 is gone" in printed[place]

    mesh = sharding.make_mesh(MESH, jax.devices()[:DEVICES])
    alone = interaction.load(str(served), mesh=mesh)
    wanted = lead.talk(Engine(alone, lead.ROWS, rewind=4), tmp_path)
    assert sorted(wanted) == ["a", "b", "c", "d", "e"]
    assert not np.array_equal(wanted["a"][0], wanted["b"][0])
    _compare(tmp_path / "talk.npz", wanted)

    saved = sorted(files.glob("*.conversation"))
    assert len(saved) == 2  # the files of the lost sessions stay
    command[1] = "go_on"
    finish(start(command, 2, DEVICES))
    _compare(tmp_path / "went_on.npz", lead.go_on(alone, saved))
