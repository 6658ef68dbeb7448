"""What the config.json of a released Inkling model says, in both of its spellings.

The released files and transformers name some fields differently, and `intermediate_size` is the
width of an expert in the former and of a dense layer in the latter. What a file leaves out has the
default of the reference, `models/inkling/configuration_inkling.py` of transformers 5.24.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from interaction.config import TransformerConfig
from interaction.modules.video_in import FOLDS
from interaction.ops.norm import NORM_EPS
from interaction.ops.short_convolution import TAPS
from interaction.types import Special

CONFIG = "config.json"
MELS = 80  # channels of a dMel frame
LONG_WINDOW = 32_000  # newest keys that a query of a long layer sees; our choice
_NEVER = 1 << 30  # keys beyond which nothing is sharpened, where the file says none

# Field of TransformerConfig -> field of text_config
_SIZES = {
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "sliding_kv_heads": "swa_num_key_value_heads",
    "head_dim": "head_dim",
    "experts": "n_routed_experts",
    "experts_per_token": "num_experts_per_tok",
    "shared_experts": "n_shared_experts",
    "window": "sliding_window_size",
    "relative_states": "d_rel",
    "relative_extent": "rel_extent",
}
_FACTORS = {"route_scale": "route_scale", "logits_divisor": "logits_mup_width_multiplier"}
_ONE_SIZE = {"swa_num_attention_heads": "num_attention_heads", "swa_head_dim": "head_dim"}
# Fields that may be left out, and the one value that the decoder and its inputs can follow.
_FOLLOWED: dict[str, dict[str, Any]] = {
    "text_config": {
        "hidden_act": "silu",
        "conv_kernel_size": TAPS,
        "sconv_kernel_size": TAPS,
        "rms_norm_eps": NORM_EPS,
        "log_scaling_alpha": 0.1,
        "shared_expert_sink": True,
        "gate_activation": "sigmoid",
        "use_sconv": True,
        "use_embed_norm": True,
        "use_gate_bias": True,
        "use_global_scale": True,
        "norm_after_topk": True,
        "q_bias": False,
        "o_bias": False,
        "final_logit_softcapping": None,
        "tie_word_embeddings": False,
    },
    "audio_config": {
        "n_mel_bins": MELS,
        "audio_mode": "dmel",
        "dmel_min_value": -7.0,
        "dmel_max_value": 2.0,
        "use_audio_norm": True,
        "bias": False,
        "rms_norm_eps": NORM_EPS,
    },
    "vision_config": {
        "vision_encoder_type": "hmlp",
        "patch_size": math.prod(FOLDS),
        "temporal_patch_size": 2,
        "num_channels": 3,
        "n_channels": 3,
        "use_vision_norm": True,
        "rms_norm_eps": NORM_EPS,
    },
}


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """A backbone: the decoder, and what enters and leaves it."""

    decoder: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    vocab: int = 1_024  # rows of the table and of the head, our special tokens included
    used: int = 1_000  # released ids of tokens, 0..used - 1; ours are larger by `Special.COUNT`
    levels: int = 16  # dMel levels of a channel, >= 2

    def __post_init__(self) -> None:
        """Checks that the special tokens take ids that no token has."""
        if not 1 <= self.used <= self.vocab - Special.COUNT:
            raise ValueError(
                f"used: got {self.used} ids of tokens, wanted 1..{self.vocab - Special.COUNT}: the "
                f"last {Special.COUNT} of {self.vocab} rows become the special tokens; take a "
                "checkpoint with unused rows"
            )
        if self.levels < 2:
            raise ValueError(f"levels: got {self.levels}, wanted >= 2; correct it")


def read_config(folder: str | os.PathLike, long_window: int = LONG_WINDOW) -> BackboneConfig:
    """Reads the config.json of a released model.

    Args:
      folder: Folder of the released model.
      long_window: Newest keys that a query of a long layer sees, which the file does not say.

    Raises:
      ValueError: The file is missing, is not JSON, is not Inkling's, is of quantised weights, or
        has fields that the decoder cannot follow; all of them are named.
    """
    path = pathlib.Path(folder) / CONFIG
    fields = read_json(path)
    if fields.get("model_type") != "inkling_mm_model":
        raise ValueError(
            f"{path}: model_type: got {fields.get('model_type')!r}, wanted 'inkling_mm_model'; "
            "take the folder of a released Inkling model"
        )
    parts: dict[str, Any] = {name: fields.get(name) for name in _FOLLOWED}
    wrong = [
        f"{name}: got {part!r}, wanted a JSON object"
        for name, part in parts.items()
        if not isinstance(part, dict)
    ]
    if not wrong:
        wrong = [*_quantised(fields), *_not_followed(parts)]
    if not wrong:
        try:
            return _backbone_config(parts, long_window)
        except ValueError as error:
            wrong = [str(error)]
    raise ValueError(
        f"{path}: {'; '.join(wrong)}; take a released Inkling model whose weights are not quantised"
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
      ValueError: The file is missing or something else.
    """
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no JSON file ({error}); copy the folder again") from error
    if not isinstance(fields, dict):
        raise ValueError(
            f"{path}: got {type(fields).__name__}, wanted a JSON object; copy it again"
        )
    return fields


def _quantised(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, part in (("", fields), ("text_config.", fields["text_config"])):
        found = part.get("quantization_config")
        if found is not None:
            kinds = found if isinstance(found, dict) else {}
            kind = [kinds[key] for key in ("quant_method", "quant_algo") if key in kinds]
            yield f"{name}quantization_config: got quantised weights, {kind or found}, wanted none"


def _not_followed(parts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What the decoder and its inputs cannot follow, a line for each field."""
    for name, followed in _FOLLOWED.items():
        for field, wanted in followed.items():
            got = parts[name].get(field, wanted)
            if got != wanted:
                yield f"{name}.{field}: got {got!r}, wanted {wanted!r}"
    text, audio, vision = (parts[name] for name in _FOLLOWED)
    for field in (*_SIZES.values(), *_widths(text), "vocab_size", "unpadded_vocab_size"):
        if not _is_size(text.get(field)):
            yield f"text_config.{field}: got {text.get(field)!r}, wanted an integer >= 1"
    for field in _FACTORS.values():
        if not isinstance(text.get(field), int | float):
            yield f"text_config.{field}: got {text.get(field)!r}, wanted a number"
    start = text.get("log_scaling_n_floor")
    if start is not None and not _is_size(start):
        yield f"text_config.log_scaling_n_floor: got {start!r}, wanted null or an integer >= 1"
    for field, other in _ONE_SIZE.items():
        got, wanted = text.get(field), text.get(other)
        if got != wanted:
            yield f"text_config.{field}: got {got!r}, wanted {other}={wanted!r}"
    dim = text.get("hidden_size")
    for name in ("audio_config", "vision_config") if _is_size(dim) else ():
        for field in ("text_hidden_size", "decoder_dmodel"):
            got = parts[name].get(field, dim)
            if got != dim:
                yield f"{name}.{field}: got {got!r}, wanted hidden_size={dim}"
    levels, folds = audio.get("mel_vocab_size"), len(FOLDS) + 1
    if not _is_size(levels, 2):
        yield f"audio_config.mel_vocab_size: got {levels!r}, wanted an integer >= 2"
    layers = vision.get("num_hidden_layers", vision.get("n_layers"))
    if layers != folds:
        yield f"vision_config.n_layers: got {layers!r}, wanted {folds}"
    if _is_size(text.get("num_hidden_layers")):
        yield from _other_patterns(text)


def _is_size(value: Any, least: int = 1) -> bool:  # noqa: ANN401
    return type(value) is int and value >= least


def _widths(text: Mapping[str, Any]) -> tuple[str, str]:
    """The fields that hold the widths of an expert and of a dense layer."""
    if text.get("dense_intermediate_size") is not None:
        return "intermediate_size", "dense_intermediate_size"
    return "moe_intermediate_size", "intermediate_size"


def _long_layers(text: Mapping[str, Any]) -> tuple[str, list[int]]:
    """The field that tells long layers from sliding ones, and the numbers of the long ones."""
    layers = range(text["num_hidden_layers"])
    if text.get("layer_types") is not None:
        kinds = text["layer_types"]
        return "layer_types", [i for i, kind in enumerate(kinds) if kind != "hybrid_sliding"]
    local = text.get("local_layer_ids")
    if local is not None:
        return "local_layer_ids", [number for number in layers if number not in local]
    return "local_layer_ids", list(layers[5::6])


def _dense_layers(text: Mapping[str, Any]) -> tuple[str, list[int]]:
    """The field that tells which layers are dense, and their numbers."""
    kinds = text.get("mlp_layer_types")
    if kinds is not None:
        return "mlp_layer_types", [i for i, kind in enumerate(kinds) if kind != "sparse"]
    return "dense_mlp_idx", list(range(text.get("dense_mlp_idx", 0)))


def _other_patterns(text: Mapping[str, Any]) -> Iterator[str]:
    """The orders of layers that the decoder cannot follow."""
    layers, unread = text["num_hidden_layers"], []
    for field in ("layer_types", "mlp_layer_types", "local_layer_ids"):
        got = text.get(field)
        if got is not None and not isinstance(got, list):
            unread.append(f"text_config.{field}: got {got!r}, wanted a list")
        elif got is not None and field != "local_layer_ids" and len(got) != layers:
            unread.append(f"text_config.{field}: got {len(got)} layers, wanted {layers}")
    if not _is_size(text.get("dense_mlp_idx", 0), 0):
        got = text["dense_mlp_idx"]
        unread.append(f"text_config.dense_mlp_idx: got {got!r}, wanted an integer >= 0")
    if unread:
        yield from unread
        return
    field, long = _long_layers(text)
    every = long[0] + 1 if long else layers + 1
    regular = every > 1 and layers % every == 0 and long == list(range(every - 1, layers, every))
    if not regular:
        yield (
            f"text_config.{field}: got long layers {long} of {layers}, wanted every n-th one, the "
            "last one included, with sliding layers between them"
        )
    field, dense = _dense_layers(text)
    if dense != list(range(len(dense))) or (regular and len(dense) >= every):
        yield (
            f"text_config.{field}: got dense layers {dense}, wanted the first ones, all before the "
            "first long layer"
        )


def _backbone_config(parts: Mapping[str, Mapping[str, Any]], long_window: int) -> BackboneConfig:
    text = parts["text_config"]
    expert, dense = _widths(text)
    _, long = _long_layers(text)
    same: dict[str, Any] = {ours: text[field] for ours, field in _SIZES.items()}
    same |= {ours: float(text[field]) for ours, field in _FACTORS.items()}
    decoder = TransformerConfig(
        **same,
        dense_layers=len(_dense_layers(text)[1]),
        expert_ffn=text[expert],
        dense_ffn=text[dense],
        long_window=long_window,
        long_every=long[0] + 1,
        log_scaling_from=text.get("log_scaling_n_floor") or _NEVER,
    )
    levels = parts["audio_config"]["mel_vocab_size"]
    return BackboneConfig(decoder, text["vocab_size"], text["unpadded_vocab_size"], levels)
