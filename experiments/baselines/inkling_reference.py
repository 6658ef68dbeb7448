"""The reference of the Inkling models, transformers' own class, tiny and random.

No weights are downloaded. `save` writes a checkpoint with the names and forms of the released ones.
"""

import os
import pathlib

import numpy as np
import torch
from transformers.models.inkling import configuration_inkling, modeling_inkling
from transformers.utils import logging

IMAGE, AUDIO = 1000, 1001  # ids of the placeholders of patches and of dMel frames
VOCAB, USED_ROWS = 1_024, 1_010  # rows of the table, and those that have a token
USED = 900  # ids that text has here
# CLIP's means and deviations of RGB in [0, 1], which the reference's image processor uses
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711])

FULL_WIDTH = {  # a sliding and a global layer of Inkling-Small's width
    "dense": 0,
    "hidden_size": 4_096,
    "num_hidden_layers": 2,
    "local_layer_ids": [0],
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "swa_num_attention_heads": 32,
    "swa_num_key_value_heads": 8,
    "swa_head_dim": 128,
    "sliding_window_size": 64,
    "d_rel": 16,
    "rel_extent": 1_024,
    "moe_intermediate_size": 2_048,
}

Model = modeling_inkling.InklingForConditionalGeneration

logging.disable_progress_bar()


def reference(seed: int = 0, dense: int = 2, gain: float = 1.0, **text: object) -> Model:
    """A random model in float32 whose parts all matter.

    Args:
      seed: Seed of the weights.
      dense: Number of dense layers.
      gain: Factor of the matrices' weights, whose variance is 1 / fan-in without it; with 0.16
        their deviation is 0.02, as the reference draws them.
      **text: Fields of the text configuration that differ from a tiny one.
    """
    layers = int(str(text.get("num_hidden_layers", 6)))
    fields: dict[str, object] = {
        "vocab_size": VOCAB,
        "unpadded_vocab_size": USED_ROWS,
        "hidden_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 16,
        "sliding_window_size": 32,
        "d_rel": 4,
        "rel_extent": 64,
        "mlp_layer_types": ["dense"] * dense + ["sparse"] * (layers - dense),
        "intermediate_size": 128,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "logits_mup_width_multiplier": 2.0,
    }
    config = configuration_inkling.InklingConfig(
        text_config={**fields, **text},
        audio_config={"mel_vocab_size": 16},
        vision_config={"num_hidden_layers": 4},
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
        image_bos_token_id=1002,
        audio_bos_token_id=1003,
    )
    torch.manual_seed(seed)
    model = Model(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "global_scale" in name:
                weight.mul_(1 + 0.2 * torch.randn_like(weight))
            elif "conv" in name:
                weight.normal_(0, 0.3)
            else:
                weight.normal_(0, gain * weight.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if "correction" in name:
                buffer.normal_(0, 0.1)
    return model


def save(model: Model, folder: str | os.PathLike) -> pathlib.Path:
    """Writes the model as it would be released; returns the folder."""
    model.save_pretrained(folder, max_shard_size="60MB")
    return pathlib.Path(folder)


def logits(model: Model, ids: np.ndarray, **given: np.ndarray) -> np.ndarray:
    """Text logits float32[b, t, v] of int[b, t] tokens, in one pass.

    Args:
      model: The model.
      ids: Tokens; placeholders where patches or dMel frames are.
      **given: Further inputs of the model by name: pixel_values, audio_input_ids, attention_mask.
    """
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in given.items()}
    for name in ("pixel_values",):
        if name in tensors:
            tensors[name] = tensors[name].to(next(model.parameters()).dtype)
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids), use_cache=False, **tensors)
    return out.logits.float().numpy()


def chosen_experts(model: Model, ids: np.ndarray) -> list[np.ndarray]:
    """The experts int[tokens, k] that each sparse layer chooses, ascending."""
    found: list[np.ndarray] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, __, out: found.append(np.sort(out[2].numpy(), axis=-1))
        )
        for layer in model.modules()
        if isinstance(layer, modeling_inkling.InklingTopkRouter)
    ]
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    return found
