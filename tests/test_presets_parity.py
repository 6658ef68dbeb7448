"""Counts of the released models, by part, equal those of the reference on its meta device."""

import collections
import re

import pytest

from interaction.presets import PRESETS
from tests.test_presets import REFERENCE

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

# Name of a parameter of the reference -> part; the first pattern that matches counts.
_PARTS = (
    (r"sconv", "short convolutions"),
    (r"self_attn", "attention"),
    (
        r"global_scale|embed_norm|layernorm|language_model\.norm|audio_tower\.norm",
        "norms and scales",
    ),
    (r"mlp\.(gate|up|down)_proj", "dense layers"),
    (r"mlp\.experts", "experts"),
    (r"mlp\.shared_experts", "shared experts"),
    (r"mlp\.gate\.weight", "router"),
    (r"embed_tokens", "token table"),
    (r"audio_tower", "audio table"),
    (r"vision_tower", "video in"),
    (r"lm_head", "text head"),
)


def reference(preset: str) -> torch.nn.Module:
    """The reference at the size of a preset, without arrays."""
    from transformers.models.inkling import configuration_inkling, modeling_inkling

    config = PRESETS[preset]()
    cfg = config.transformer
    heads = {"num_attention_heads": cfg.heads, "head_dim": cfg.head_dim}
    text = {
        **heads,
        **{f"swa_{name}": size for name, size in heads.items()},
        "vocab_size": config.vocab,
        "hidden_size": cfg.dim,
        "num_hidden_layers": cfg.layers,
        "num_key_value_heads": cfg.kv_heads,
        "swa_num_key_value_heads": cfg.sliding_kv_heads,
        "sliding_window_size": cfg.window,
        "mlp_layer_types": ["dense"] * cfg.dense_layers
        + ["sparse"] * (cfg.layers - cfg.dense_layers),
        "intermediate_size": cfg.dense_ffn,
        "moe_intermediate_size": cfg.expert_ffn,
    }
    with torch.device("meta"):
        return modeling_inkling.InklingForConditionalGeneration(
            configuration_inkling.InklingConfig(
                text_config=text,
                audio_config={"mel_vocab_size": config.audio.bins},
                vision_config={"num_hidden_layers": 4},
            )
        )


@pytest.mark.parametrize("preset", sorted(REFERENCE))
def test_counts_by_part(preset: str) -> None:
    counts: collections.Counter = collections.Counter()
    for name, parameter in reference(preset).named_parameters():
        part = next(part for pattern, part in _PARTS if re.search(pattern, name))
        counts[part] += parameter.numel()
    assert counts == REFERENCE[preset]
