"""Losses of a tiny batch, computed a second time in NumPy from logits and hidden states.

Counts stand here as they are counted by hand; the flow head is written out in float64. Draws are
made with the same keys.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.model.sequence import forward
from interaction.ops import sampling
from interaction.training import conversation_loss, features
from interaction.types import Params, Special
from tests.support import FINE, random_params

# Short windows, so that another row's older tokens show in a short session.
CONFIG = dataclasses.replace(FINE, speech=dataclasses.replace(FINE.speech, token_window=4))
SILENT, HOLD, NONE, PAD = Special.SILENT, Special.HOLD, Special.NONE, Special.PAD
TEXT = np.array(
    [
        [SILENT, 20, HOLD, SILENT, Special.DELEGATE, 22, Special.END_DELEGATE, SILENT],
        [SILENT, 29, 30, 31, 32, SILENT, Special.CANCEL, SILENT],
    ]
)
ALOUD = np.array([[SILENT, 20, HOLD, *[SILENT] * 5], [SILENT, 29, 30, 31, 32, *[SILENT] * 3]])
WORD = np.array([[0, 1, 0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0, 1, 0]], bool)
SWITCH = np.array([[0, 1, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1, 0, 0]], bool)
# Of 2 sessions with 8 micro-turns of 3 positions each, 3 tokens arrive. A session has room for
# 3 micro-turns that are spoken, of which 1 trains the flow; the sessions speak in 2 and 4.
COUNTS = {
    "words": 9,
    "switches": 4,
    "events": 11,
    "user_transcript": 5,
    "positions": 2 * 8 * 3 + 3,
    "guessed": 2 + 3,
    "flowed": 1 + 1,
}


def _batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    samples = (2, 8 * CONFIG.audio.turn_samples)
    transcript = np.full((2, 8, 2), NONE)
    transcript[[0, 0, 0, 1, 1], [1, 2, 5, 0, 6], [0, 1, 1, 0, 1]] = [50, 51, 52, 53, 54]
    arrived = [[40, PAD, PAD], [41, 42, PAD]]
    batch = {
        "user": rng.integers(-9_000, 9_000, samples).astype(np.int16),
        "model": rng.integers(-9_000, 9_000, samples).astype(np.int16),
        "text": TEXT,
        "user_transcript": transcript,
        "arrived": np.array(arrived),
        "arrived_slot": np.array([[5, 0, 0], [2, 3, 0]]),
    }
    return {
        name: leaf if leaf.dtype == np.int16 else np.int32(leaf) for name, leaf in batch.items()
    }


@pytest.fixture(scope="module")
def params() -> Params:
    """Random; the routers' logits are large, so that their loss is seen in the whole."""
    params = random_params(CONFIG)
    backbone = dict(params["backbone"])
    for kind in ("sliding", "long"):
        backbone[kind] = {**backbone[kind], "router": 30 * backbone[kind]["router"]}
    return {**params, "backbone": backbone}


@pytest.fixture(scope="module")
def found(params: Params) -> dict:
    """The joint loss with what it returns, and what `forward` makes of the same inputs."""
    task, batch = conversation_loss.joint_objective(CONFIG), _batch()
    learnt = {name: params[name] for name in ("backbone", "speech")}
    buffers = {"router_bias": params["router_bias"]}

    @jax.jit
    def run(keys: jax.Array) -> dict:
        loss, sums = task.loss(learnt, buffers, batch, task.totals(batch), keys)
        mel = features.speech_mel(batch, CONFIG)
        inputs = conversation_loss.turn_inputs(CONFIG, batch, mel, sampling.split_keys(keys, 2)[0])
        arrived = features.arrivals(batch, CONFIG)
        outputs = forward(CONFIG, learnt["backbone"], buffers["router_bias"], inputs, arrived)
        return {"loss": loss, "sums": sums, "outputs": outputs, "mel": mel}

    return jax.device_get(run(_keys()))


def _keys() -> jax.Array:
    return jax.random.split(jax.random.key(18), 2)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    return wide - top - np.log(np.sum(np.exp(wide - top), axis=-1, keepdims=True))


def _lost(logits: np.ndarray, target: np.ndarray) -> float:
    """Cross-entropy in nats, summed over all entries."""
    return -np.take_along_axis(_log_softmax(logits), target[..., None], axis=-1).sum()


def test_denominators_are_counted_by_hand() -> None:
    counted = conversation_loss.joint_objective(CONFIG).totals(_batch())
    assert {name: float(value) for name, value in counted.items()} == COUNTS
    alone = conversation_loss.conversation_objective(CONFIG).totals(_batch())
    assert alone == {name: COUNTS[name] for name in alone}
    assert set(COUNTS) - set(alone) == {"guessed", "flowed"}


def test_text_and_transcript_equal_cross_entropies_of_their_logits(found: dict) -> None:
    aux, outputs, heard = found["sums"]["aux"], found["outputs"], _batch()["user_transcript"]
    text, transcript = outputs.text_logits, outputs.transcript_logits
    # Largest relative difference measured: 4e-8.
    np.testing.assert_allclose(aux.text, _lost(text, TEXT) / 11, rtol=1e-6)
    np.testing.assert_allclose(aux.user_transcript, _lost(transcript, heard) / 5, rtol=1e-6)
    best, best_heard = text.argmax(axis=-1), transcript.argmax(axis=-1)
    right = {
        "text_accuracy": (WORD & (best == TEXT)).sum() / 9,
        "switch_accuracy": (SWITCH & ((best == SILENT) == (TEXT == SILENT))).sum() / 4,
        "transcript_accuracy": ((heard != NONE) & (best_heard == heard)).sum() / 5,
    }
    for name, wanted in right.items():
        np.testing.assert_allclose(getattr(aux, name), wanted, rtol=1e-6, err_msg=name)


def test_an_unknown_transcript_trains_nothing(params: Params) -> None:
    """The second session's transcript is unknown: losses are those of the first one's logits."""
    task, batch = conversation_loss.conversation_objective(CONFIG), _batch()
    batch["user_transcript"][1] = PAD
    buffers = {"router_bias": params["router_bias"]}

    @jax.jit
    def run(keys: jax.Array) -> dict:
        learnt = {"backbone": params["backbone"]}
        loss, sums = task.loss(learnt, buffers, batch, task.totals(batch), keys)
        mel = features.speech_mel(batch, CONFIG)
        inputs = conversation_loss.turn_inputs(CONFIG, batch, mel, sampling.split_keys(keys, 2)[0])
        arrived = features.arrivals(batch, CONFIG)
        outputs = forward(CONFIG, learnt["backbone"], buffers["router_bias"], inputs, arrived)
        return {"loss": loss, "aux": sums["aux"], "outputs": outputs, "read": inputs}

    got = jax.device_get(run(_keys()))
    assert task.totals(batch)["user_transcript"] == 3
    lost = _lost(got["outputs"].transcript_logits[:1], _batch()["user_transcript"][:1])
    np.testing.assert_allclose(got["aux"].user_transcript, lost / 3, rtol=1e-6)
    assert (got["read"].user_transcript[1] == NONE).all()
    right = got["outputs"].transcript_logits.argmax(axis=-1)[0] == batch["user_transcript"][0]
    words = batch["user_transcript"][0] != NONE
    np.testing.assert_allclose(got["aux"].transcript_accuracy, (right & words).sum() / 3)


def test_router_is_reported_for_positions_that_exist(found: dict) -> None:
    """Two experts a position; the z-loss is a mean over the same positions, summed over layers."""
    load = found["sums"]["load"]
    np.testing.assert_array_equal(load.sum(axis=-1), np.full(4, 2 * COUNTS["positions"]))
    z = found["outputs"].aux.router_z.astype(np.float64)
    np.testing.assert_allclose(found["sums"]["aux"].router_z, z.sum() / 51, rtol=1e-6)


def test_whole_loss_is_the_weighted_sum(found: dict) -> None:
    aux = jax.tree.map(np.float64, found["sums"]["aux"])
    wanted = aux.text + 0.5 * aux.user_transcript + 0.5 * aux.flow + 1e-4 * aux.router_z
    parts = (aux.text, 0.5 * aux.user_transcript, 0.5 * aux.flow, 1e-4 * aux.router_z)
    assert min(parts) > 1e-3 * wanted, "each part is seen"
    np.testing.assert_allclose(found["loss"], wanted, rtol=1e-6)


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def _condition(p: Params, hidden: np.ndarray, tokens: np.ndarray, prefix: np.ndarray) -> tuple:
    """Features and guess of a micro-turn, [frames, ...] each."""
    x = p["table"][tokens].reshape(-1) @ p["tokens_in"] + prefix.reshape(-1) @ p["prefix_in"]
    x = _silu(x + hidden @ p["hidden_in"] + p["bias_in"])
    for n in range(CONFIG.speech.condition_layers):
        x = x + _silu(_norm(x, p[f"norm_{n}"]) @ p[f"up_{n}"]) @ p[f"down_{n}"]
    x = _norm(x, p["norm"])
    frames = CONFIG.audio.speech_frames
    return (x @ p["features"]).reshape(frames, -1), (x @ p["guess"]).reshape(frames, -1)


def _estimate(p: Params, point: np.ndarray, time: float, known: tuple) -> np.ndarray:
    """The flow network's estimate of the mel at the path's end, [frames, m]."""
    feature, guess = known
    phase = time * np.exp(np.linspace(0, np.log(200.0), 32))
    clock = _silu(np.concatenate([np.sin(phase), np.cos(phase)]) @ p["time_in"])
    x = np.concatenate([point, guess, feature], axis=1) @ p["in"] + p["position"]
    for n in range(CONFIG.speech.layers):
        shift, scale, gate, *second = np.einsum("t,tsd->sd", clock, p[f"adapt_{n}"])
        normed = _norm(x, p[f"mix_norm_{n}"]) * (1 + scale) + shift
        x = x + (1 + gate) * (_gelu(normed.T @ p[f"mix_in_{n}"]) @ p[f"mix_out_{n}"]).T
        shift, scale, gate = second
        normed = _norm(x, p[f"norm_{n}"]) * (1 + scale) + shift
        x = x + (1 + gate) * (_gelu(normed @ p[f"up_{n}"]) @ p[f"down_{n}"])
    return guess + _norm(x, p["norm"]) @ p["out"]


def _draws(key: jax.Array) -> dict[str, np.ndarray]:
    """A session's, by what they are for; three micro-turns are picked, the first for the flow."""
    pick, prefixes, levels, selves, noises, times, splices = jax.random.split(key, 7)
    share, cut = jax.random.split(splices)
    frames = (CONFIG.audio.speech_frames, CONFIG.audio.mels)
    found = {
        "chance": jax.random.uniform(pick, (8,)),
        "prefix": jax.random.normal(prefixes, (3, CONFIG.speech.prefix_frames, frames[1])),
        "level": 0.4 * jax.random.uniform(levels, (3,)) ** 2,
        "self_fed": jax.random.uniform(selves, (3,)) < 0.6,
        "noise": jax.random.normal(noises, (1, *frames))[0],
        "time": jax.random.uniform(times, (1,))[0],
        "spliced": jax.random.bernoulli(share, 0.5, (3, 1))[:, 0],
        "cut": jax.random.randint(cut, (3, 1), 1, 3)[:, 0],
    }
    return {name: np.asarray(value) for name, value in found.items()}


def _session_flow(
    params: Params, hidden: np.ndarray, aloud: np.ndarray, mel: np.ndarray, draws: dict
) -> tuple[float, float, int, int]:
    """Squared errors of a session: of its guesses, and of the flow's estimate.

    Also counts spoken micro-turns that go on from the head's own guess, and that see other tokens.
    """
    floor = (-5.0 + 2.5) / 1.1
    target = (mel.astype(np.float64) + 2.5) / 1.1
    before = np.concatenate([np.full((2, *mel.shape[1:]), floor), target])  # [t]: two before t
    padded = np.concatenate([np.full(5, SILENT), aloud])
    tokens = np.stack([padded[t : t + 4] for t in range(10)])  # [t + 1]: the last 4 at t - 1
    state = np.concatenate([np.zeros((1, hidden.shape[1])), hidden])  # [t]: at t - 1
    speaking = aloud != SILENT
    picked = np.argsort(-(speaking + draws["chance"]))[:3]
    windows = tokens[picked + 2]
    assert np.all(windows[:, -1] == aloud[picked])
    guessed, flowed, own_fed, mixed = 0.0, 0.0, 0, 0
    for row, t in enumerate(picked):
        prefix = before[t + 1]
        if draws["self_fed"][row] and t > 0 and speaking[t - 1]:
            own = _condition(params["condition"], state[t], tokens[t + 1], before[t])[1]
            prefix = np.maximum(own, floor)
            own_fed += speaking[t]
        prefix = prefix + draws["level"][row] * draws["prefix"][row]
        older = np.arange(4) < draws["cut"][row] * draws["spliced"][row]
        window = np.where(older, windows[row - 1], windows[row])
        mixed += speaking[t] and np.any(window != windows[row])
        known = _condition(params["condition"], hidden[t], window, prefix)
        guessed += speaking[t] * np.mean((known[1] - target[t]) ** 2)
        if row == 0:
            point = (1 - draws["time"]) * draws["noise"] + draws["time"] * target[t]
            made = _estimate(params["flow"], point, float(draws["time"]), known)
            flowed += speaking[t] * np.mean((made - target[t]) ** 2)
    return guessed, flowed, own_fed, mixed


def test_flow_equals_its_formula(params: Params, found: dict) -> None:
    """(guesses' errors) / 5 + (flow's errors) / 2, conditioned on the same micro-turn's state."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["speech"])
    keys = [jax.random.split(key, 2)[1] for key in _keys()]
    draws = [_draws(key) for key in keys]
    errors = [
        _session_flow(wide, hidden.astype(np.float64), *rest)
        for hidden, *rest in zip(found["outputs"].hidden, ALOUD, found["mel"], draws, strict=True)
    ]
    guessed, flowed, own_fed, mixed = np.sum(errors, axis=0)
    assert own_fed and mixed and 0.1 < guessed / flowed < 10
    # Relative difference measured: 1e-7.
    np.testing.assert_allclose(found["sums"]["aux"].flow, guessed / 5 + flowed / 2, rtol=2e-6)


def test_finish_moves_the_bias_against_the_load() -> None:
    """By hand: mean load 3; what took more is chosen less from now on."""
    load = jnp.asarray([[6.0, 2.0, 1.0, 3.0]])
    aux = conversation_loss.ConversationAux(*[jnp.float32(n) for n in range(7)])
    start = {"router_bias": jnp.asarray([[0.0, 0.5, 0.0, 0.25]])}
    metrics, buffers = conversation_loss.conversation_finish(start, {"aux": aux, "load": load})
    wanted = np.array([[-1e-3, 0.501, 1e-3, 0.25]])
    np.testing.assert_allclose(buffers["router_bias"], wanted, rtol=1e-6)
    assert float(metrics["largest_load_fraction"]) == 0.5
    assert {name: float(metrics[name]) for name in ("text", "flow")} == {"text": 0.0, "flow": 2.0}


def test_a_dense_layer_has_no_load() -> None:
    """Of two layers the first is dense; of the other's six assignments one expert took three."""
    sums = {
        "aux": conversation_loss.ConversationAux(
            *range(len(conversation_loss.ConversationAux._fields))
        )
    }
    sums["load"] = jnp.array([[0.0, 0, 0, 0], [1, 2, 3, 0]])
    metrics, buffers = conversation_loss.conversation_finish(
        {"router_bias": jnp.zeros((2, 4))}, sums
    )
    assert float(metrics["largest_load_fraction"]) == 0.5
    np.testing.assert_array_equal(buffers["router_bias"][0], 0)
