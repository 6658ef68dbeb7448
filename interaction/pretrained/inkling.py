"""The weights of the released Inkling models (Thinking Machines Lab, Apache-2.0), in and out.

A released model is a folder of safetensors shards. Names and forms of its tensors are those that
transformers 5.24 reads (`models/inkling/`). Arrays are read in parts: the experts of one layer of
Inkling-Small have 13 GB.
"""

import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util

from interaction.config import TransformerConfig
from interaction.model.layer_stacks import (
    FIRST_DENSE,
    FIRST_LONG,
    FIRST_SLIDING,
    init_layers,
)
from interaction.modules.memory import LONG, SLIDING
from interaction.modules.video_in import FOLDS
from interaction.pretrained import released_arrays as forms
from interaction.pretrained.inkling_config import MELS, BackboneConfig
from interaction.pretrained.inkling_files import PIECE, open_tensors
from interaction.pretrained.lazy_array import Index, LazyArray
from interaction.pretrained.released_arrays import Form, Shape
from interaction.pretrained.tree_paths import differences, flatten
from interaction.types import Params

VISION_WIDTHS = (128, 320, 4_800)  # after each fold of 40x40 patches of two frames
_LAYER = "model.llm.layers.{}."
_Names = Mapping[str, tuple[str, Form]]  # our name -> released name and form
_ATTENTION: _Names = {
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
_DENSE: _Names = {
    "dense_gate": ("mlp.w13_dn.weight", forms.Half(0)),
    "dense_up": ("mlp.w13_dn.weight", forms.Half(1)),
    "dense_down": ("mlp.w2_md.weight", forms.TRANSPOSED),
    "ffn_scale": ("mlp.global_scale", forms.SAME_1),
}
_ROUTER_BIAS = "mlp.gate.bias"
_OTHERS: _Names = {
    "text_in/table": ("model.llm.embed.weight", forms.Tokens(forms.SAME_2)),
    "text_in/norm": ("model.llm.embed_norm.weight", forms.SAME_1),
    "audio_in/user_table": ("model.audio.encoder.weight", forms.Levels(MELS)),
    "audio_in/norm": ("model.audio.final_norm.weight", forms.SAME_1),
    **{
        f"video_in/fold_{level}": (f"model.visual.layers.linear_{level}.weight", forms.TRANSPOSED)
        for level in range(len(VISION_WIDTHS) + 1)
    },
    **{
        f"video_in/norm_{level}": (f"model.visual.layers.norm_{level}.weight", forms.SAME_1)
        for level in range(len(VISION_WIDTHS))
    },
    "video_in/norm": ("model.visual.final_norm.weight", forms.SAME_1),
    "heads/norm": ("model.llm.norm.weight", forms.SAME_1),
    "heads/text": ("model.llm.unembed.weight", forms.Tokens(forms.TRANSPOSED)),
}


def _sparse(shared: int) -> _Names:
    return {
        "router": ("mlp.gate.weight", forms.TRANSPOSED),
        "ffn_scale": ("mlp.gate.global_scale", forms.SAME_1),
        "gate": ("mlp.experts.w13_weight", forms.Half(0)),
        "up": ("mlp.experts.w13_weight", forms.Half(1)),
        "down": ("mlp.experts.w2_weight", forms.EXPERTS),
        "shared_gate": ("mlp.shared_experts.shared_w13_weight", forms.SharedHalf(0, shared)),
        "shared_up": ("mlp.shared_experts.shared_w13_weight", forms.SharedHalf(1, shared)),
        "shared_down": ("mlp.shared_experts.shared_w2_weight", forms.SharedDown(shared)),
    }


class _Place(NamedTuple):
    """Where an array of ours lies: in a released one, or in one for each of its layers."""

    names: np.ndarray  # object[...], released names along our leading axes; "" for zeros
    form: Form  # of each of them


def _stacks(cfg: TransformerConfig) -> Iterator[tuple[str, np.ndarray, bool]]:
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


def _places(cfg: TransformerConfig) -> dict[str, _Place]:
    """Where each of our arrays lies, by its path."""

    def layered(numbers: np.ndarray, name: str) -> np.ndarray:
        names = np.empty(numbers.shape, object)
        for at, number in np.ndenumerate(numbers):
            names[at] = _LAYER.format(number) + name
        return names

    found = {}
    for stack, numbers, dense in _stacks(cfg):
        ffn = _DENSE if dense else _sparse(cfg.shared_experts)
        for ours, (name, form) in {**_ATTENTION, **ffn}.items():
            found[f"backbone/{stack}/{ours}"] = _Place(layered(numbers, name), form)
    for ours, (name, form) in _OTHERS.items():
        found[f"backbone/{ours}"] = _Place(np.array(name, object), form)
    bias = layered(np.arange(cfg.layers), _ROUTER_BIAS)
    bias[: cfg.dense_layers] = ""
    return {**found, "router_bias": _Place(bias, forms.SAME_1)}


def abstract_backbone(config: BackboneConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the arrays of a backbone by path, "backbone/text_in/table", in float32."""
    decoder, dim, vocab = config.decoder, config.decoder.dim, config.vocab
    shapes: dict[str, Shape] = {
        "text_in/table": (vocab, dim),
        "audio_in/user_table": (MELS, config.levels, dim),
        "heads/text": (dim, vocab),
    }
    shapes |= {f"{part}/norm": (dim,) for part in ("text_in", "audio_in", "video_in", "heads")}
    joined = *(side * side for side in FOLDS), 2  # neighbours, and at last the two frames
    widths = (3, *VISION_WIDTHS, dim)
    for level, (count, width, after) in enumerate(zip(joined, widths, widths[1:], strict=False)):
        shapes[f"video_in/fold_{level}"] = count * width, after
        if level < len(FOLDS):
            shapes[f"video_in/norm_{level}"] = (after,)
    layers = flatten(jax.eval_shape(partial(init_layers, decoder), jax.random.key(0)))
    found = {f"backbone/{path}": leaf for path, leaf in layers.items()}
    others = {f"backbone/{path}": shape for path, shape in shapes.items()}
    others["router_bias"] = decoder.layers, decoder.experts
    return found | {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in others.items()}


def open_released(folder: str | os.PathLike, config: BackboneConfig) -> Params:
    """Opens the weights of a released model.

    Args:
      folder: Folder of the model.
      config: What `read_config` said of it.

    Returns:
      Nested dict of `LazyArray` with our paths and shapes, in the stored dtypes. Our token i is the
      released token i - 8, and the special tokens take the last 8 rows, which no token uses.

    Raises:
      ValueError: A tensor is missing, unknown, or of another shape or dtype; a shard is missing or
        cut off.
    """
    tensors = open_tensors(folder)
    places = _places(config.decoder)
    shapes = {path: leaf.shape for path, leaf in abstract_backbone(config).items()}
    wanted = {
        name: place.form.released(shapes[path][place.names.ndim :])
        for path, place in places.items()
        for name in place.names.ravel()
        if name
    }
    _check_tensors(folder, tensors, wanted)
    _check_dtypes(folder, places, tensors)
    flat = {path: _ours(place, shapes[path], tensors) for path, place in places.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _check_tensors(
    folder: str | os.PathLike, tensors: Mapping[str, LazyArray], shapes: Mapping[str, Shape]
) -> None:
    wanted = {
        name: jax.ShapeDtypeStruct(shape, tensors[name].dtype if name in tensors else np.float32)
        for name, shape in shapes.items()
    }
    wrong = differences(tensors, wanted, limit=8)
    if wrong:
        raise ValueError(
            f"{folder}: the tensors do not fit config.json: {'; '.join(wrong)}; take files that "
            "were released together"
        )


def _check_dtypes(
    folder: str | os.PathLike, places: Mapping[str, _Place], tensors: Mapping[str, LazyArray]
) -> None:
    wrong = []
    for path, place in places.items():
        names = [name for name in place.names.ravel() if name]
        kinds = {tensors[name].dtype.name: name for name in names}
        if len(kinds) > 1:
            told = ", ".join(f"{name} is {kind}" for kind, name in kinds.items())
            wrong.append(f"{told}, wanted one dtype in all layers")
        elif path == "router_bias" and "float32" not in kinds:
            wrong.append(f"{names[0]} is {next(iter(kinds))}, wanted float32, not rounded")
    if wrong:
        raise ValueError(f"{folder}: {'; '.join(wrong)}; take the files as they were released")


def _ours(place: _Place, shape: Shape, tensors: Mapping[str, LazyArray]) -> LazyArray:
    dtype = next(tensors[name].dtype for name in place.names.ravel() if name)
    lead = place.names.ndim
    piece = list(shape)
    piece[:lead] = [1] * lead
    axis = lead + place.form.first_axis(shape[lead:])
    _cut(piece, axis, dtype)
    return LazyArray(shape, dtype, tuple(piece), partial(_read_ours, place, tensors, dtype))


def _cut(piece: list[int], axis: int, dtype: np.dtype) -> None:
    """Makes a piece shorter along an axis, so that it has at most `PIECE` bytes if it can."""
    entry = dtype.itemsize * math.prod(piece) // max(1, piece[axis])
    piece[axis] = max(1, min(piece[axis], PIECE // max(1, entry)))


def _read_ours(
    place: _Place, tensors: Mapping[str, LazyArray], dtype: np.dtype, index: Index
) -> np.ndarray:
    lead = place.names.ndim
    names, inner = place.names[(*index[:lead], ...)], index[lead:]
    part = np.zeros((*names.shape, *(one.stop - one.start for one in inner)), dtype)
    for at, name in np.ndenumerate(names):
        if name:
            tensor = tensors[name]
            part[at] = place.form.read(tensor.__getitem__, tensor.shape, inner)
    return part


class _Share(NamedTuple):
    """An array of ours, or one layer of it, that lies in a released one."""

    leaf: LazyArray
    layer: tuple[slice, ...]  # its index along the leading axes
    form: Form

    def fetch(self, index: Index) -> np.ndarray:
        """Reads a part."""
        return self.leaf[(*self.layer, *index)][(0,) * len(self.layer)]


def to_released(config: BackboneConfig, params: Params) -> dict[str, LazyArray]:
    """The released tensors of a backbone, by name, layer by layer.

    Args:
      config: Configuration of the backbone.
      params: Nested dict of `LazyArray`, as from `open_released`.
    """
    flat = flatten(params)
    shares: dict[str, list[_Share]] = {}
    for path, place in _places(config.decoder).items():
        for at, name in np.ndenumerate(place.names):
            if name:
                layer = tuple(slice(number, number + 1) for number in at)
                shares.setdefault(name, []).append(_Share(flat[path], layer, place.form))
    return {name: _theirs(shares[name]) for name in sorted(shares, key=_layer_order)}


def _layer_order(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in name.split(".")]


def _theirs(shares: list[_Share]) -> LazyArray:
    leaf, layer, form = shares[0]
    shape, dtype = form.released(leaf.shape[len(layer) :]), leaf.dtype
    piece = list(shape)
    _cut(piece, 0, dtype)

    def read(index: Index) -> np.ndarray:
        part = np.empty([one.stop - one.start for one in index], dtype)
        for share in shares:
            share.form.write(share.fetch, shape, index, part)
        return part

    return LazyArray(shape, dtype, tuple(piece), read)
