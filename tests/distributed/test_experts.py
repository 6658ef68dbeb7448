"""The router, and the chosen experts with either dispatch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.distributed import experts
from interaction.ops import router
from interaction.ops.dense import dense

Array = jax.Array
D, F, E, K = 24, 12, 5, 2
RNG = np.random.default_rng(0)
WEIGHTS = [
    jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[1]), jnp.float32)
    for shape in ((E, D, F), (E, D, F), (E, F, D))
]


def inputs(tokens: int) -> tuple[Array, Array, Array]:
    x = jnp.asarray(RNG.normal(size=(tokens, D)), jnp.float32)
    logits = jnp.asarray(RNG.normal(size=(tokens, E)), jnp.float32)
    return x, *router.route(logits, jnp.zeros(E), K)


def every_expert_on_every_token(
    x: Array, chosen: Array, weights: Array, gate: Array, up: Array, down: Array
) -> Array:
    share = jnp.sum(jnp.where(chosen[..., None] == jnp.arange(E), weights[..., None], 0.0), axis=1)
    hidden = jax.nn.silu(jnp.einsum("td,edf->tef", x, gate)) * jnp.einsum("td,edf->tef", x, up)
    return jnp.einsum("tef,efd,te->td", hidden, down, share)


def chosen_experts(
    x: Array, chosen: Array, weights: Array, gate: Array, up: Array, down: Array
) -> Array:
    layer = experts.Experts(gate, up, down, len(gate))
    return experts.chosen_experts(x, chosen, weights, layer)


@pytest.mark.parametrize("tokens", [1, 3, 32, 33, 100])
def test_both_dispatches_equal_all_experts_on_all_tokens(tokens: int) -> None:
    arguments = (*inputs(tokens), *WEIGHTS)

    def gradients(run: object) -> tuple[Array, ...]:
        return jax.grad(lambda *a: jnp.sum(run(*a) ** 2), (0, 2, 3, 4, 5))(*arguments)

    wanted = every_expert_on_every_token(*arguments)
    slopes = gradients(every_expert_on_every_token)
    np.testing.assert_allclose(chosen_experts(*arguments), wanted, atol=2e-6)  # measured: 6e-7
    for got, goal in zip(gradients(chosen_experts), slopes, strict=True):
        size = float(jnp.max(jnp.abs(goal)))
        np.testing.assert_allclose(got, goal, atol=2e-6 * max(size, 1.0))  # measured: 5e-7


@pytest.mark.parametrize("tokens", [3, 40])
def test_a_layer_of_a_stack_is_the_layer_alone(tokens: int) -> None:
    others = [jnp.flip(weight, 0) for weight in WEIGHTS]
    stacks = [jnp.concatenate([a, b, a]) for a, b in zip(others, WEIGHTS, strict=True)]
    arguments = inputs(tokens)

    @jax.jit
    def of_the_stack(first: Array) -> Array:
        return experts.chosen_experts(*arguments, experts.Experts(*stacks, E, first))

    wanted = jax.jit(chosen_experts)(*arguments, *WEIGHTS)
    np.testing.assert_array_equal(of_the_stack(jnp.int32(E)), wanted)


def test_platform_and_number_of_tokens_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("gather_gemv", "_every_expert", "_sorted_by_expert"):
        monkeypatch.setattr(experts, name, lambda x, *_, name=name: taken.append(name) or x)
    for tokens in (1, 51, 52):  # on a CPU, with 5 experts
        chosen_experts(*inputs(tokens), *WEIGHTS)
    monkeypatch.setattr(experts, "platform", lambda: "tpu")
    for tokens in (33, 128, 129):
        chosen_experts(*inputs(tokens), *WEIGHTS)
    every, few, many = "_every_expert", "gather_gemv", "_sorted_by_expert"
    assert taken == [every, every, many, few, few, many]


def test_bias_selects_and_does_not_weigh() -> None:
    logits = jnp.asarray([[0.0, 1.0, 2.0, 3.0, 4.0]])
    chosen, weights = router.route(logits, jnp.zeros(E), K)
    assert chosen.tolist() == [[3, 4]]
    scores = jax.nn.sigmoid(logits[0])
    np.testing.assert_allclose(weights[0], scores[3:] / scores[3:].sum(), rtol=1e-6)
    chosen, weights = router.route(logits, jnp.zeros(E).at[0].set(9.0), K)
    assert chosen.tolist() == [[0, 4]]
    kept = scores[jnp.array([0, 4])]
    np.testing.assert_allclose(weights[0], kept / kept.sum(), rtol=1e-6)


def test_load_counts_what_exists() -> None:
    chosen = jnp.asarray([[0, 2], [2, 4], [0, 1]], jnp.int32)
    load = router.load(chosen, jnp.asarray([True, True, False]), E)
    assert load.tolist() == [1, 0, 2, 0, 1]


@pytest.mark.parametrize("sessions", [2, 3, 5, 8])
def test_a_session_s_bits_do_not_depend_on_its_row(sessions: int) -> None:
    weight = jnp.asarray(RNG.normal(size=(192, 48)), jnp.float32)
    one = RNG.normal(size=(1, 3, 192)).astype(np.float32)
    out = np.asarray(jax.jit(dense)(jnp.asarray(np.repeat(one, sessions, axis=0)), weight))
    np.testing.assert_array_equal(out, np.repeat(out[:1], sessions, axis=0))
