"""Which products are taken in which dtype: a policy, whatever the sharding rules say."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interaction
from interaction import dtype_policy, presets
from interaction.config import FirstTransformerConfig
from interaction.distributed import experts, sharding
from interaction.modules import vocoder
from interaction.modules.speech_out import generate_mel
from interaction.ops import dense
from interaction.pretrained.tree_paths import flatten
from interaction.training import vocoder_loss
from interaction.types import Special
from tests import golden, support

MATRICES = (  # of every part, and what must stay exact
    ("backbone/sliding/gate", "bfloat16"),
    ("backbone/long/attention_out", "bfloat16"),
    ("backbone/long/2/shared_up", "bfloat16"),
    ("backbone/first_dense/0/dense_down", "bfloat16"),
    ("backbone/first_long/relative", "bfloat16"),
    ("backbone/first_sliding/profiles", "bfloat16"),
    ("backbone/heads/text", "bfloat16"),
    ("backbone/text_in/table", "bfloat16"),
    ("backbone/video_in/fold_1", "bfloat16"),
    ("speech/condition/up_0", "bfloat16"),
    ("speech/flow/mix_in_1", "bfloat16"),
    ("vocoder/up", "bfloat16"),
    ("backbone/sliding/router", "float32"),
    ("backbone/sliding/ffn_scale", "float32"),
    ("backbone/long/attention_conv", "float32"),
    ("backbone/text_in/transcript_gain", "float32"),
    ("backbone/audio_in/user_table", "float32"),
    ("speech/flow/position", "float32"),
    ("vocoder/pitch", "float32"),
    ("vocoder/layers/3/norm", "float32"),
)


@pytest.mark.parametrize(("path", "wanted"), MATRICES)
def test_policy(path: str, wanted: str) -> None:
    assert dtype_policy.dtype_of(path, "bfloat16") == wanted
    assert dtype_policy.dtype_of(path, "float32") == "float32"


def test_every_entry_of_the_tables_has_a_parameter() -> None:
    """Of a model with layers of all forms, or of the pair that was released first."""
    tiny = presets.tiny()
    forms = dataclasses.replace(tiny.transformer, layers=6, long_every=3, dense_layers=1)
    both = (dataclasses.replace(tiny, transformer=cfg) for cfg in (forms, FirstTransformerConfig()))
    paths = {path for model in both for path in flatten(golden.abstract_params(model))}
    placed = {*paths, "backbone/sliding/query/lora_in", "backbone/sliding/query/lora_out"}
    for table, known in ((sharding._RULES, placed), (dtype_policy._COMPILED, paths)):
        for pattern, _ in table:
            assert any(pattern.search(path) for path in known), pattern.pattern


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(ValueError, match="'speech/flow/dawn_0'"):
        dtype_policy.dtype_of("speech/flow/dawn_0", "bfloat16")


def test_sharding_rules_change_no_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    params = golden.abstract_params(presets.base())

    def served() -> dict[str, str]:
        # A new function each time: a trace of an old one would be remembered.
        cast = jax.eval_shape(lambda params: sharding.cast_params(params, "bfloat16"), params)
        return {name: str(leaf.dtype) for name, leaf in flatten(cast).items()}

    before = served()
    assert set(before.values()) == {"bfloat16", "float32"}
    nowhere = tuple((pattern, (None,)) for pattern, _ in sharding._RULES)
    monkeypatch.setattr(sharding, "_RULES", nowhere)
    assert before == served()


def _products(jaxpr: jax.extend.core.Jaxpr, times: int) -> list[tuple[str, int]]:
    """(dtypes of the operands, multiply-adds) of all matrix products."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (left, _), (batch, _) = eqn.params["dimension_numbers"]
            a, b = (operand.aval for operand in eqn.invars)
            summed = math.prod(a.shape[i] for i in left)
            shared = math.prod(a.shape[i] for i in batch)
            size = a.size * b.size // (summed * shared)
            found.append((f"{a.dtype} {b.dtype}", times * size))
        trips = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += _products(inner, times * trips)
    return found


def test_hardly_any_product_of_a_large_step_is_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the experts, which are kernels: router, mel front end, pitch and filters are."""
    config = presets.small()
    for module in (dense, experts):
        monkeypatch.setattr(module, "platform", lambda: "tpu")
    traced = golden.trace_step(config, {}, 1)
    products = _products(traced.jaxpr, 1)
    exact = sum(size for kinds, size in products if "float32" in kinds)
    assert exact < 0.02 * sum(size for _, size in products)  # measured: 0.0069


def test_rounding_the_speech_head_is_not_heard() -> None:
    """Mel and PCM of the released flow head and vocoder, in the dtypes of a bfloat16 model."""
    model = interaction.load("demo")
    config, rng = model.config, np.random.default_rng(0)
    rounded = sharding.cast_params(model.params, "bfloat16")
    words = model.tokenizer.encode("one two three four five six seven eight nine")
    tokens = np.full((1, config.speech.token_window), Special.SILENT, np.int32)
    tokens[0, -len(words) :] = words
    shape = (1, config.audio.speech_frames, config.audio.mels)
    noise = rng.standard_normal(shape).astype(np.float32)
    prefix = np.full((1, config.speech.prefix_frames, config.audio.mels), -5.0, np.float32)
    hidden = np.zeros((1, config.transformer.dim), np.float32)
    speak = jax.jit(functools.partial(generate_mel, config))
    render = jax.jit(
        functools.partial(vocoder.vocoder_full, cfg=config.vocoder, audio=config.audio)
    )
    exact, made = (
        speak(params["speech"], hidden, tokens, prefix, noise) for params in (model.params, rounded)
    )
    assert np.mean(np.abs(exact - made)) < 0.005  # log10 magnitude; measured: 0.0014
    wanted, pcm = (render(params["vocoder"], exact) for params in (model.params, rounded))
    assert np.linalg.norm(wanted - pcm) < 0.01 * np.linalg.norm(wanted)  # measured: 0.0035


def test_training_multiplies_in_the_dtypes_that_serving_keeps() -> None:
    """Each part's weights as training casts them equal those of a served model, bit for bit."""
    params = support.random_params(presets.tiny())
    served = sharding.cast_params(params, "bfloat16")
    parts = ("heads", "audio_in", "video_in", "sliding", "long")
    pairs = {part: (params["backbone"][part], served["backbone"][part]) for part in parts}
    pairs["flow"] = params["speech"]["flow"], served["speech"]["flow"]
    pairs["vocoder"] = params["vocoder"], served["vocoder"]
    for part, (mine, theirs) in pairs.items():
        cast = sharding.gather_and_cast(mine, part, "bfloat16")
        for name, leaf in cast.items():
            assert leaf.dtype == theirs[name].dtype, f"{part}/{name}"
            np.testing.assert_array_equal(leaf, theirs[name], err_msg=f"{part}/{name}")


def test_hardly_any_product_of_training_is_in_float32() -> None:
    """Backbone and flow head of a bfloat16 model, and the vocoder's own objective."""
    config = presets.base()
    products = _products(golden.trace_train(config, {}, 2).jaxpr, 1)
    # Gradients of float32 logits are float32; they meet bfloat16 operands. Gradients of the dMel
    # tables, which are sums over rows, are 0.021 of all products.
    exact = sum(size for kinds, size in products if kinds == "float32 float32")
    assert exact < 0.03 * sum(size for _, size in products)  # measured: 0.0257
    objective = vocoder_loss.vocoder_objective(config)
    params, _ = jax.eval_shape(objective.init, jax.random.key(0))
    batch = {"model": jax.ShapeDtypeStruct((2, 80_000), jnp.int16)}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    traced = jax.make_jaxpr(objective.loss)(params, {}, batch, {"sessions": 2.0}, keys)
    blocks = 3 * config.vocoder.layers * 4 * config.vocoder.dim**2  # forward of a frame
    rounded = sum(size for kinds, size in _products(traced.jaxpr, 1) if "bfloat16" in kinds)
    assert rounded > blocks
