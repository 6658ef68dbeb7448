"""Training of the background model: what a fork reads, and its losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from interaction.model.heads import text_head
from interaction.model.sequence import encode
from interaction.pretrained.tree_paths import flatten
from interaction.training import reasoning_loss
from interaction.training.objective import Batch
from interaction.types import Special
from tests.support import SMALLEST, random_params

CONFIG = SMALLEST
LENGTH = 7  # tokens of a fork
KEYS = jax.random.split(jax.random.key(0), 3)


def _batch(turns: int = 8, seed: int = 0) -> Batch:
    """Three sessions, forked after two, after all and after five micro-turns."""
    rng = np.random.default_rng(seed)
    b, slots = 3, CONFIG.text_slots
    words = rng.integers(Special.COUNT, CONFIG.vocab, (b, turns, CONFIG.audio_positions))
    reasoning = rng.integers(Special.COUNT, CONFIG.vocab, (b, LENGTH))
    reasoning[:, 0], reasoning[1, -2:] = Special.DELEGATE, Special.PAD
    wanted = np.zeros((b, LENGTH))
    wanted[:, 3:5], wanted[0, 6] = 1, 1
    place = np.stack([rng.permutation(turns * slots)[:4] for _ in range(b)])
    fields = {
        "user": rng.integers(-9_000, 9_000, (b, turns * CONFIG.audio.turn_samples)),
        "text": rng.integers(0, CONFIG.vocab, (b, turns)),
        "user_transcript": np.where(words % 3 == 0, words, Special.NONE),
        "arrived": rng.integers(Special.COUNT, CONFIG.vocab, (b, 4)),
        "arrived_slot": place,
        "prefilled": np.array([2, turns, 5]),
        "reasoning": reasoning,
        "reasoning_wanted": wanted,
    }
    return {
        name: jnp.asarray(leaf, jnp.int16 if name == "user" else jnp.int32)
        for name, leaf in fields.items()
    }


ENCODE = jax.jit(encode, static_argnums=0)


def _reasoning(batch: Batch) -> jax.Array:
    """The last layer at the reasoning tokens, [3, LENGTH, d]."""
    params = random_params(CONFIG)
    inputs = reasoning_loss.reasoning_inputs(CONFIG, batch, KEYS)
    beside = reasoning_loss.reasoning_arrivals(CONFIG, batch)
    return ENCODE(CONFIG, params["backbone"], params["router_bias"], inputs, beside)[1][:, -LENGTH:]


LOSS = jax.jit(reasoning_loss.reasoning_objective(CONFIG).loss)


def _aux(batch: Batch) -> reasoning_loss.ReasoningAux:
    params = random_params(CONFIG)
    buffers = {"router_bias": params["router_bias"]}
    totals = reasoning_loss.reasoning_totals(CONFIG, batch)
    return LOSS({"backbone": params["backbone"]}, buffers, batch, totals, KEYS)[1]["aux"]


def test_micro_turns_after_the_fork_are_not_read() -> None:
    """Words and arrivals after it change nothing; words before it change their own session."""
    batch = _batch()
    after = ~reasoning_loss.prefilled_turns(batch)
    late = batch["arrived_slot"] // CONFIG.text_slots >= batch["prefilled"][:, None]
    assert np.any(late)
    other = {
        **batch,
        "text": jnp.where(after, 9, batch["text"]),
        "arrived": jnp.where(late, 9, batch["arrived"]),
    }
    np.testing.assert_array_equal(_reasoning(batch), _reasoning(other))
    before = {**batch, "text": batch["text"].at[0, 0].set(9)}  # read in the second micro-turn
    changed = np.any(_reasoning(batch) != _reasoning(before), axis=(1, 2))
    np.testing.assert_array_equal(changed, [True, False, False])


def test_micro_turns_after_the_fork_can_be_left_out() -> None:
    batch = {name: leaf[:1] for name, leaf in _batch().items()}
    params, beside = random_params(CONFIG), reasoning_loss.reasoning_arrivals(CONFIG, batch)
    inputs = reasoning_loss.reasoning_inputs(CONFIG, batch, KEYS[:1])
    found = [
        ENCODE(CONFIG, params["backbone"], params["router_bias"], turns, beside)[1][:, -LENGTH:]
        for turns in (inputs, jax.tree.map(lambda leaf: leaf[:, :3], inputs))
    ]
    np.testing.assert_allclose(*found, atol=2e-5)  # measured: 3.3e-6


def test_loss_is_a_mean_over_wanted_tokens() -> None:
    """Loss and accuracy equal a computation in NumPy, token by token."""
    batch = _batch()
    heads = random_params(CONFIG)["backbone"]["heads"]
    x = np.asarray(_reasoning(batch), np.float64)
    x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * np.asarray(heads["norm"])
    logits = x @ np.asarray(heads["text"], np.float64)
    logits -= np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    lost, right = [], []
    for row, wanted in enumerate(np.asarray(batch["reasoning_wanted"])):
        for place in np.flatnonzero(wanted):
            token = int(batch["reasoning"][row, place])
            lost.append(-logits[row, place - 1, token])
            right.append(int(np.argmax(logits[row, place - 1])) == token)
    assert len(lost) == 7
    aux = _aux(batch)
    np.testing.assert_allclose(aux.reasoning, np.mean(lost), rtol=1e-5)  # measured: 3e-8
    np.testing.assert_allclose(aux.reasoning_accuracy, np.mean(right))


def test_a_fork_is_exact_when_all_its_wanted_tokens_are_right() -> None:
    batch = _batch()
    weights = random_params(CONFIG)["backbone"]["heads"]
    right = jnp.argmax(text_head(CONFIG, weights, _reasoning(batch)), axis=-1)
    # Replacing tokens does not change the predictions before them.
    wanted = jnp.zeros_like(batch["reasoning"]).at[:, 4].set(1).at[2, 5].set(1)
    reasoning = batch["reasoning"].at[:, 4].set(right[:, 3]).at[2, 5].set(9)
    batch = {**batch, "reasoning": reasoning, "reasoning_wanted": wanted}
    aux = _aux(batch)
    np.testing.assert_allclose([aux.exact, aux.reasoning_accuracy], [2 / 3, 3 / 4], rtol=1e-6)
    aux = _aux({**batch, "reasoning_wanted": wanted.at[0].set(0)})  # a record without a fork
    np.testing.assert_allclose([aux.exact, aux.reasoning_accuracy], [1 / 2, 2 / 3], rtol=1e-6)


def test_shares_of_a_batch_add_up() -> None:
    batch = _batch()
    params = random_params(CONFIG)
    buffers, totals = {"router_bias": params["router_bias"]}, reasoning_loss.reasoning_totals
    given = {"backbone": params["backbone"]}, buffers
    whole = LOSS(*given, batch, totals(CONFIG, batch), KEYS)
    rows = [{name: leaf[i : i + 1] for name, leaf in batch.items()} for i in range(3)]
    shared = jax.tree.map(lambda *x: sum(x), *(totals(CONFIG, row) for row in rows))
    parts = [LOSS(*given, row, shared, KEYS[i : i + 1]) for i, row in enumerate(rows)]
    together = jax.tree.map(lambda *x: sum(x), *parts)
    for one, many in zip(jax.tree.leaves(whole), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-5)  # measured: 2e-7


def test_an_unknown_transcript_trains_nothing() -> None:
    batch = _batch()
    batch["user_transcript"] = jnp.full_like(batch["user_transcript"], Special.PAD)
    assert reasoning_loss.reasoning_totals(CONFIG, batch)["user_transcript"] == 0
    aux = _aux(batch)
    assert aux.user_transcript == aux.transcript_accuracy == 0 and aux.reasoning > 0


def test_a_few_steps_learn_a_fork() -> None:
    """Losses fall; only parts that the records do not use have no gradient."""
    batch = _batch()
    objective = reasoning_loss.reasoning_objective(CONFIG)
    params, buffers = jax.jit(objective.init)(jax.random.key(0))
    assert set(params) == {"backbone"} and set(buffers) == {"router_bias"}
    optimizer = optax.adam(1e-2)
    totals = objective.totals(batch)

    @jax.jit
    def step(params: dict, buffers: dict, moments: optax.OptState) -> tuple:
        grad = jax.grad(objective.loss, has_aux=True)
        grads, sums = grad(params, buffers, batch, totals, KEYS)
        metrics, buffers = objective.finish(buffers, sums)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), buffers, moments, metrics, grads

    moments, found = optimizer.init(params), []
    for _ in range(25):
        params, buffers, moments, metrics, grads = step(params, buffers, moments)
        found.append(jax.device_get(metrics))
    assert found[-1]["reasoning"] < 0.1 * found[0]["reasoning"], (found[0], found[-1])
    assert found[-1]["exact"] == found[-1]["reasoning_accuracy"] == 1
    assert found[-1]["user_transcript"] < found[0]["user_transcript"]
    assert np.any(buffers["router_bias"])
    idle = {name for name, leaf in flatten(grads).items() if not np.any(leaf)}
    absent = {name for name in flatten(grads) if name.startswith("backbone/video_in/")}
    assert idle == absent | {"backbone/audio_in/self_table"}


def test_stored_sessions_train_models_with_more_audio_positions() -> None:
    """Two slots a micro-turn, as sessions are stored, on four positions."""
    batch = _batch()
    placed = batch["user_transcript"].at[..., ::2].set(Special.NONE)
    found = [_aux({**batch, "user_transcript": heard}) for heard in (placed, placed[..., 1::2])]
    assert found[0].user_transcript > 0
    np.testing.assert_array_equal(*found)
