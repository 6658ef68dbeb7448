"""Two processes, whose devices alternate on a mesh, serve a model like one device."""

import json
import pathlib
from functools import partial

import jax
import numpy as np
import pytest

from experiments.check_mesh import prepare_stream
from interaction.distributed import sharding
from interaction.pretrained import store
from interaction.types import Reply
from tests.multihost import serve
from tests.multihost.launch import ROOT, finish, start
from tests.support import random_params

TOKENIZER = ROOT / "interaction/data/tokenizer.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("served") / "model"
    store.save_model(place, serve.MODEL, random_params(serve.MODEL), TOKENIZER)
    return place


@pytest.fixture(scope="module")
def wanted() -> dict[str, np.ndarray]:
    """Replies of one device of this process."""
    alone, params = sharding.make_mesh({}), random_params(serve.MODEL)
    step, params, state = prepare_stream(alone, serve.MODEL, params, serve.SESSIONS)
    return serve.stream(partial(step, params), state, np.arange(serve.SESSIONS))


@pytest.mark.parametrize(
    ("mesh", "rows", "share"),
    [
        # measured: 0.663, half of the routed experts, which are 0.674 of the parameters, and all
        # others: shared experts 0.169, tables and the text head 0.067, speech and the rest 0.091
        ({"expert": 8}, [[0, 2, 4, 6], [1, 3, 5, 7]], 0.67),
        # measured: 0.556, half of what `tensor` splits, 0.888; it splits no tables and no speech
        ({"fsdp": 2, "expert": 2, "tensor": 2}, [list(range(8))] * 2, 0.57),
    ],
)
def test_two_processes_serve_as_one_device(
    folder: pathlib.Path,
    wanted: dict[str, np.ndarray],
    tmp_path: pathlib.Path,
    mesh: dict[str, int],
    rows: list[list[int]],
    share: float,
) -> None:
    """A row belongs to one process, or to both if `tensor` spans processes."""
    command = ["tests.multihost.serve", str(folder), json.dumps(mesh), str(tmp_path)]
    printed = finish(start(command, 2))
    total = sum(leaf.size for leaf in jax.tree.leaves(random_params(serve.MODEL)))
    for process, mine in enumerate(rows):
        got = np.load(tmp_path / f"{process}.npz")
        assert got["rows"].tolist() == mine
        for name in Reply._fields:
            np.testing.assert_array_equal(got[name], wanted[name][:, mine], err_msg=name)
        assert got["read"] == got["held"]
        assert got["held"] < share * total
        assert f"1 devices, none of them of process {process}" in str(got["named"])
        shared = len(mine) == serve.SESSIONS  # both processes refuse a shared session
        assert np.all(got["mistaken"] == (shared or bool(process)))
        assert np.all(got["clocks"] == (0 if shared or process else 1))
        assert (f"chunk.audio: got float32[{len(mine)}, 3199]" in printed[process]) == bool(process)
        assert "from one process" in str(got["others"])
        assert ("a mistake from another" if process else "sessions: got 0") in str(got["none"])
        assert "devices of several processes" in str(got["alone"])
    assert np.any(wanted["refused"]) and np.any(wanted["audio"])
