"""The Python examples of the README and of docs/ run as they stand, with small models.

Those of docs/background.md stand in `tests/background/test_docs_examples.py`.
"""

import pathlib
import re
import socket
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interaction
from interaction.data import records
from interaction.data.conversation_data import Conversation, Word
from interaction.data.readers.moshi_folder import write_moshi
from interaction.data.tokenizer import load_tokenizer
from interaction.distributed import sharding
from interaction.engine.session_record import SessionReader
from tests.support import SMALLEST, random_params

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = SMALLEST
PCM = np.zeros(3_200, np.float32)


def _blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(), flags=re.M | re.S)


@pytest.fixture(scope="module")
def model() -> interaction.InteractionModel:
    return interaction.InteractionModel(CONFIG, random_params(CONFIG), load_tokenizer())


@pytest.fixture(autouse=True)
def small(
    model: interaction.InteractionModel, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every model is a tiny one of this process, which is the only host."""
    one_process = sharding.make_mesh({})
    monkeypatch.setattr(interaction, "load", lambda name, mesh=None: model)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    monkeypatch.setattr(sharding, "make_mesh", lambda axes: one_process)
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    monkeypatch.chdir(tmp_path)


def test_every_example_is_run() -> None:
    names = [path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md")]
    found = {str(name): len(_blocks(str(name))) for name in names if _blocks(str(name))}
    found["README.md"] = len(_blocks("README.md"))
    assert found.pop("docs/background.md")
    assert found == {
        **{"README.md": 2, "docs/kernels.md": 1},
        **{"docs/sessions.md": 2, "docs/tpu_pods.md": 2, "docs/own_data.md": 1},
        "docs/serving.md": 2,  # see tests/serve/test_docs_example.py
    }


def test_the_readme() -> None:
    played, taken = [], []

    def microphone() -> Iterator[np.ndarray]:
        for _ in range(3):
            yield PCM

    names: dict[str, Any] = {
        **{"chunks": [PCM[None]] * 2, "play": played.append},
        **{"microphone": microphone(), "speaker": taken.append},
    }
    for block in _blocks("README.md"):
        exec(block, names)
    assert len(played) == 2 and len(taken) >= 3
    with SessionReader("talk.session") as record:
        assert len(list(record)) >= 3


def test_sessions() -> None:
    names: dict[str, Any] = {"pcm": PCM}
    one, several = _blocks("docs/sessions.md")
    exec(one, names)
    assert names["session"].closed == "closed"
    assert names["again"].closed == names["copy"].closed == "the engine stopped"
    assert names["again"].stats.turns >= 4
    with SessionReader("talk.session") as record:
        assert len(list(record)) >= 4
    served = []
    exec(several, {"serve": lambda engine: served.append(engine.open(seed=1).stats.turns)})
    assert served == [0]


def test_pods(tmp_path: pathlib.Path) -> None:
    run, serve = _blocks("docs/tpu_pods.md")
    names: dict[str, Any] = {}
    exec(run, names)
    assert names["get_config"]().mesh == {"fsdp": 16, "expert": 32}
    saved = tmp_path / "sessions"
    served = []
    exec(
        serve.replace("/bucket/sessions", str(saved)),
        {"serve": lambda engine: served.append(engine.open(seed=1).stats.turns)},
    )
    assert served == [0] and saved.is_dir()


def test_own_data(tmp_path: pathlib.Path) -> None:
    talk = Conversation(
        user=np.full(32_000, 5, np.int16),
        model=np.full(32_000, 7, np.int16),
        user_words=None,
        model_words=(Word("five", 1.0, 1.2),),
    )
    write_moshi(tmp_path / "calls", [talk, talk])
    exec(_blocks("docs/own_data.md")[0], {})
    sessions = records.source(tmp_path / "data" / "calls")
    assert len(sessions) == 2
    stored = sessions.decode(1)
    (five,) = load_tokenizer().encode("five")
    assert stored["text"].shape == (300,) and stored["text"][4] == five
    assert (stored["user"][:28_800] == 5).all() and (stored["model"][:28_800] == 7).all()


def test_kernels() -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    names: dict[str, Any] = {
        **{"x": normal(3, 16), "experts": jnp.array([[0, 1], [2, 0], [1, 2]])},
        **{"weights": jnp.full((3, 2), 0.5), "rows": normal(6, 16)},
        **{"gate": normal(4, 16, 8), "up": normal(4, 16, 8), "down": normal(4, 8, 16)},
        "group_sizes": jnp.array([2, 1, 3, 0]),
    }
    exec(_blocks("docs/kernels.md")[0], names)
    rows, gate = np.asarray(names["rows"]), np.asarray(names["gate"])
    wanted = np.stack([rows[i] @ gate[e] for i, e in enumerate([0, 0, 1, 2, 2, 2])])
    np.testing.assert_allclose(names["out"], wanted, rtol=1e-4, atol=1e-5)
