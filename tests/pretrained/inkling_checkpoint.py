"""A tiny checkpoint in the released form, written by hand: names, shapes and both spellings.

Every float32 number of it occurs once, so that a number says where it came from.
"""

import json
import pathlib

import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import save_file

DIM, HEADS, HEAD, EXPERTS, FFN, DENSE, SHARED = 8, 2, 4, 4, 6, 12, 2
VOCAB, USED, MELS, LEVELS, WINDOW, EXTENT, STATES = 40, 30, 80, 3, 5, 7, 4
LAYERS, EVERY = 9, 3  # layers 2, 5 and 8 are long, layer 0 is dense
WIDTHS = (2, 3, 4)  # of the vision layers; the released ones take 50 MB
INDEX, CONFIG, TOKENIZER = "model.safetensors.index.json", "config.json", "tokenizer.json"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
IN_BFLOAT16 = ("mlp.global_scale", "attn.wo_ud.weight", "model.llm.embed.weight")

DENSE_FFN = {
    "w13_dn.weight": (2 * DENSE, DIM),
    "w2_md.weight": (DIM, DENSE),
    "global_scale": (1,),
}
SPARSE_FFN = {
    "experts.w13_weight": (EXPERTS, 2 * FFN, DIM),
    "experts.w2_weight": (EXPERTS, DIM, FFN),
    "gate.weight": (EXPERTS + SHARED, DIM),
    "gate.bias": (EXPERTS,),
    "gate.global_scale": (1,),
    "shared_experts.shared_w13_weight": (SHARED, 2 * FFN, DIM),
    "shared_experts.shared_w2_weight": (SHARED, DIM, FFN),
}
_COMMON = {
    "hidden_size": DIM,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCAB,
    "unpadded_vocab_size": USED,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "head_dim": HEAD,
    "swa_num_attention_heads": HEADS,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": HEAD,
    "sliding_window_size": WINDOW,
    "d_rel": STATES,
    "rel_extent": EXTENT,
    "log_scaling_n_floor": 1_000,
    "log_scaling_alpha": 0.1,
    "rms_norm_eps": 1e-6,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "n_shared_experts": SHARED,
    "shared_expert_sink": True,
    "route_scale": 8.0,
    "logits_mup_width_multiplier": 3.0,
}
RELEASED_TEXT = _COMMON | {
    "model_max_length": 1_048_576,
    "torch_dtype": "bfloat16",
    "q_bias": False,
    "o_bias": False,
    "use_embed_norm": True,
    "local_layer_ids": [0, 1, 3, 4, 6, 7],
    "dense_mlp_idx": 1,
    "use_sconv": True,
    "sconv_kernel_size": 4,
    "final_logit_softcapping": None,
    "dense_intermediate_size": DENSE,
    "intermediate_size": FFN,
    "use_gate_bias": True,
    "gate_activation": "sigmoid",
    "norm_after_topk": True,
    "use_global_scale": True,
}
RELEASED = {
    "architectures": ["InklingForConditionalGeneration"],
    "model_type": "inkling_mm_model",
    "eos_token_id": 26,
    "text_config": RELEASED_TEXT,
    "audio_config": {
        "decoder_dmodel": DIM,
        "n_mel_bins": MELS,
        "mel_vocab_size": LEVELS,
        "bias": False,
        "dmel_min_value": -7.0,
        "dmel_max_value": 2.0,
        "use_audio_norm": True,
        "audio_mode": "dmel",
    },
    "vision_config": {
        "vision_encoder_type": "hmlp",
        "decoder_dmodel": DIM,
        "patch_size": 40,
        "temporal_patch_size": 2,
        "n_channels": 3,
        "n_layers": 4,
        "use_vision_norm": True,
    },
    "mtp_config": {"num_nextn_predict_layers": 8, "local_layer_ids": [0, 2]},
}
TRANSFORMERS = {
    "model_type": "inkling_mm_model",
    "image_token_id": 27,
    "text_config": _COMMON
    | {
        "hidden_act": "silu",
        "conv_kernel_size": 4,
        "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid"] * 3,
        "local_layer_ids": None,
        "mlp_layer_types": ["dense"] + ["sparse"] * 8,
        "intermediate_size": DENSE,
        "moe_intermediate_size": FFN,
    },
    "audio_config": {"mel_vocab_size": LEVELS, "text_hidden_size": DIM},
    "vision_config": {"n_layers": 4, "num_channels": 3, "hidden_size": 1024},
}


def shapes(widths: tuple[int, int, int] = WIDTHS) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors by their released names."""
    first, second, third = widths
    found: dict[str, tuple[int, ...]] = {
        "model.llm.embed.weight": (VOCAB, DIM),
        "model.llm.embed_norm.weight": (DIM,),
        "model.llm.norm.weight": (DIM,),
        "model.llm.unembed.weight": (VOCAB, DIM),
        "model.audio.encoder.weight": (MELS * LEVELS, DIM),
        "model.audio.final_norm.weight": (DIM,),
        "model.visual.layers.linear_0.weight": (first, 3 * 25),
        "model.visual.layers.linear_1.weight": (second, first * 4),
        "model.visual.layers.linear_2.weight": (third, second * 16),
        "model.visual.layers.linear_3.weight": (DIM, third * 2),
        "model.visual.layers.norm_0.weight": (first,),
        "model.visual.layers.norm_1.weight": (second,),
        "model.visual.layers.norm_2.weight": (third,),
        "model.visual.final_norm.weight": (DIM,),
        "model.mtp.layers.0.input_proj.weight": (DIM, 2 * DIM),
    }
    for layer in range(LAYERS):
        long = layer % EVERY == EVERY - 1
        keys = HEAD * (1 if long else 2)
        named = {
            "attn_norm.weight": (DIM,),
            "attn.wq_du.weight": (HEADS * HEAD, DIM),
            "attn.wk_dv.weight": (keys, DIM),
            "attn.wv_dv.weight": (keys, DIM),
            "attn.wr_du.weight": (HEADS * STATES, DIM),
            "attn.rel_logits_proj.proj": (STATES, EXTENT if long else WINDOW),
            "attn.wo_ud.weight": (DIM, HEADS * HEAD),
            "attn.q_norm.weight": (HEAD,),
            "attn.k_norm.weight": (HEAD,),
            "attn.k_sconv.weight": (keys, 1, 4),
            "attn.v_sconv.weight": (keys, 1, 4),
            "attn_sconv.weight": (DIM, 1, 4),
            "mlp_norm.weight": (DIM,),
            "mlp_sconv.weight": (DIM, 1, 4),
        }
        ffn = DENSE_FFN if layer == 0 else SPARSE_FFN
        named |= {f"mlp.{name}": shape for name, shape in ffn.items()}
        found |= {f"model.llm.layers.{layer}.{name}": shape for name, shape in named.items()}
    return found


def tensors(widths: tuple[int, int, int] = WIDTHS) -> dict[str, np.ndarray]:
    """All tensors by their released names, in two dtypes."""
    found, first = {}, 0
    for name, shape in shapes(widths).items():
        size = int(np.prod(shape))
        values = np.arange(first, first + size, dtype=np.float32).reshape(shape)
        first += size
        if name.endswith(IN_BFLOAT16):  # whole numbers below 256 are exact
            values = (values % 251).astype(ml_dtypes.bfloat16)
        found[name] = values
    return found


def write(
    folder: pathlib.Path, tensors: dict[str, np.ndarray], config: dict | None = None
) -> pathlib.Path:
    """Writes a checkpoint in three shards; returns its folder."""
    folder.mkdir()
    names = sorted(tensors)
    index = {}
    for number, shard in enumerate(SHARDS):
        mine = names[number::3]
        save_file({name: tensors[name] for name in mine}, folder / shard, {"format": "pt"})
        index |= dict.fromkeys(mine, shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / CONFIG).write_text(json.dumps(RELEASED if config is None else config))
    write_tokenizer(folder, USED)
    return folder


def write_tokenizer(folder: pathlib.Path, ids: int) -> None:
    """Writes a tokenizer.json with so many ids."""
    model = tokenizers.models.WordLevel({f"w{i}": i for i in range(ids)}, unk_token="w0")
    tokenizers.Tokenizer(model).save(str(folder / TOKENIZER))
