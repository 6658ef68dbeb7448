"""A caller's JAX settings: models work under them, with the same bits."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from interaction.background.agent import MicroTurn
from interaction.background.reasoner_agent import Reasoner
from interaction.data.tokenizer import load_tokenizer
from interaction.engine.conversation import Conversation
from interaction.engine.live_model import InteractionModel
from interaction.types import Special
from tests.background.fake_reasoner import CONFIG
from tests.support import SMALLEST, random_params

STRICT = {
    "jax_enable_x64": True,
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_transfer_guard": "disallow",
    "jax_default_prng_impl": "rbg",
    "jax_default_matmul_precision": "highest",
}


@pytest.fixture
def strict() -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in STRICT}
    for name, value in STRICT.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def pcm(seed: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(3_200)).astype(np.float32)


def live(params: dict) -> list[bytes]:
    """Outputs of a live model in a conversation."""
    model, found = InteractionModel(SMALLEST, params, load_tokenizer()), []
    conversation = Conversation(model, seed=3)
    for at in range(3):
        reply = conversation.step(pcm(at), "one" if at == 1 else None)
        found += [np.asarray(leaf).tobytes() for leaf in reply]
    conversation.close()
    return found


def behind(params: dict) -> list[int]:
    """Tokens of a background model."""
    model = Reasoner(CONFIG, params, load_tokenizer())
    none = np.full(CONFIG.audio_positions, Special.NONE, np.int32)
    turn = MicroTurn(pcm(0), pcm(1), none, Special.SILENT)
    state, token = model.read(model.fork(model.prefill(model.start(), [turn])), [9, 10, 11])
    return [token, model.read(state, [token])[1]]


def test_models_work_under_the_settings_of_the_caller(request: pytest.FixtureRequest) -> None:
    params = [jax.device_get(random_params(config)) for config in (SMALLEST, CONFIG)]
    wanted = live(params[0]), behind(params[1])
    request.getfixturevalue("strict")
    assert (live(params[0]), behind(params[1])) == wanted
