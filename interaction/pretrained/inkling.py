"""The weights of the released Inkling models (Thinking Machines Lab, Apache-2.0), in and out.

The checkpoint is a folder of safetensors shards. Names and forms are those of the reference,
`models/inkling/` of transformers 5.24. Arrays are read in parts: a layer's experts have 9 GB.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from interaction.config import TransformerConfig
from interaction.model.decoder import FIRST_DENSE, FIRST_LONG, FIRST_SLIDING, LONG, SLIDING
from interaction.pretrained import released_arrays as forms
from interaction.pretrained.released_arrays import Form

_LAYER = "model.llm.layers.{}."
_ATTENTION: dict[str, tuple[str, Form]] = {
    "attention_norm": ("attn_norm.weight", forms.SAME_1),
    "query": ("attn.wq_du.weight", forms.TRANSPOSED),
    "key": ("attn.wk_dv.weight", forms.TRANSPOSED),
    "value": ("attn.wv_dv.weight", forms.TRANSPOSED),
    "relative": ("attn.wr_du.weight", forms.TRANSPOSED),
    "profiles": ("attn.rel_logits_proj.proj", forms.SAME_2),
    "attention_out": ("attn.wo_ud.weight", forms.TRANSPOSED),
    "query_norm": ("attn.q_norm.weight", forms.SAME_1),
    "key_norm": ("attn.k_norm.weight", forms.SAME_1),
    "key_conv": ("attn.k_sconv.weight", forms.TAPS),
    "value_conv": ("attn.v_sconv.weight", forms.TAPS),
    "attention_conv": ("attn_sconv.weight", forms.TAPS),
    "ffn_norm": ("mlp_norm.weight", forms.SAME_1),
    "ffn_conv": ("mlp_sconv.weight", forms.TAPS),
}
_DENSE: dict[str, tuple[str, Form]] = {
    "dense_gate": ("mlp.w13_dn.weight", forms.Half(0)),
    "dense_up": ("mlp.w13_dn.weight", forms.Half(1)),
    "dense_down": ("mlp.w2_md.weight", forms.TRANSPOSED),
    "ffn_scale": ("mlp.global_scale", forms.SAME_1),
}
_SPARSE: dict[str, tuple[str, Form]] = {
    "router": ("mlp.gate.weight", forms.TRANSPOSED),
    "ffn_scale": ("mlp.gate.global_scale", forms.SAME_1),
    "gate": ("mlp.experts.w13_weight", forms.Half(0)),
    "up": ("mlp.experts.w13_weight", forms.Half(1)),
    "down": ("mlp.experts.w2_weight", forms.EXPERTS),
    "shared_gate": ("mlp.shared_experts.shared_w13_weight", forms.Shared(0)),
    "shared_up": ("mlp.shared_experts.shared_w13_weight", forms.Shared(1)),
    "shared_down": ("mlp.shared_experts.shared_w2_weight", forms.SharedDown()),
}
_ROUTER_BIAS = "mlp.gate.bias"
_OTHERS: dict[str, tuple[str, Form]] = {
    "text_in/table": ("model.llm.embed.weight", forms.SAME_2),
    "text_in/norm": ("model.llm.embed_norm.weight", forms.SAME_1),
    "audio_in/table": ("model.audio.encoder.weight", forms.Levels(80)),
    "audio_in/norm": ("model.audio.final_norm.weight", forms.SAME_1),
    **{
        f"video_in/fold_{i}": (f"model.visual.layers.linear_{i}.weight", forms.TRANSPOSED)
        for i in range(4)
    },
    **{
        f"video_in/norm_{i}": (f"model.visual.layers.norm_{i}.weight", forms.SAME_1)
        for i in range(3)
    },
    "video_in/norm": ("model.visual.final_norm.weight", forms.SAME_1),
    "heads/norm": ("model.llm.norm.weight", forms.SAME_1),
    "heads/text": ("model.llm.unembed.weight", forms.TRANSPOSED),
}


class Placed(NamedTuple):
    """Where one of our arrays comes from: a released array for each layer, stacked in order."""

    names: np.ndarray  # object[...], names of the released arrays along the leading axes
    form: Form  # of each of them; None fills with zeros


def stacks(cfg: TransformerConfig) -> Iterator[tuple[str, np.ndarray, bool]]:
    """The stacks of layers: name, numbers of their layers int[...], whether they are dense."""
    numbers = np.arange(cfg.layers).reshape(-1, cfg.long_every)
    begin = 0
    if cfg.dense_layers:
        begin = 1
        yield FIRST_DENSE, numbers[0, : cfg.dense_layers], True
        if cfg.dense_layers < cfg.long_every - 1:
            yield FIRST_SLIDING, numbers[0, cfg.dense_layers : -1], False
        yield FIRST_LONG, numbers[0, -1:], False
    if len(numbers) > begin:
        yield SLIDING, numbers[begin:, :-1], False
        yield LONG, numbers[begin:, -1], False


def places(cfg: TransformerConfig) -> dict[str, Placed]:
    """Where each of our arrays comes from, by its path in the backbone."""

    def layered(numbers: np.ndarray, name: str) -> np.ndarray:
        names = np.empty(numbers.shape, object)
        for at in np.ndindex(numbers.shape):
            names[at] = _LAYER.format(numbers[at]) + name
        return names

    found: dict[str, Placed] = {}
    for stack, numbers, dense in stacks(cfg):
        for ours, (name, form) in {**_ATTENTION, **(_DENSE if dense else _SPARSE)}.items():
            found[f"{stack}/{ours}"] = Placed(layered(numbers, name), form)
    for ours, (name, form) in _OTHERS.items():
        found[ours] = Placed(np.array(name, object), form)
    return found


def load_eagerly(cfg: TransformerConfig, tensors: dict[str, np.ndarray]) -> tuple[Any, np.ndarray]:
    tree: dict[str, Any] = {}
    for path, placed in places(cfg).items():
        def one(name):
            released = tensors[name]
            fetch = lambda index, released=released: released[index]
            return placed.form.read(fetch, released.shape, forms.whole(placed.form.shape(released.shape)))
        parts = [one(name) for name in placed.names.ravel()]
        array = np.stack(parts).reshape(*placed.names.shape, *parts[0].shape) if placed.names.ndim else parts[0]
        part, leaf = path.split("/")
        tree.setdefault(part, {})[leaf] = array
    bias = np.stack([tensors.get(_LAYER.format(i) + _ROUTER_BIAS, np.zeros(cfg.experts, np.float32)) for i in range(cfg.layers)])
    return tree, bias
