"""What is no released Inkling model is refused by name, and nothing is written."""

import copy
import functools
import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from interaction.pretrained.array_file import open_arrays
from interaction.pretrained.backbone_folder import load_backbone, save_backbone, save_released
from interaction.pretrained.inkling import open_released
from interaction.pretrained.inkling_config import BackboneConfig, read_config
from tests.pretrained import inkling_checkpoint as checkpoint
from tests.pretrained.inkling_checkpoint import CONFIG, INDEX, SHARDS, TOKENIZER, write_tokenizer

pytestmark = pytest.mark.usefixtures("narrow_vision")
_EMBED = "model.llm.embed.weight"
_BIAS = "model.llm.layers.4.mlp.gate.bias"


def _refused(source: pathlib.Path, match: str) -> str:
    """Imports a folder; returns the error, after which nothing was written."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(ValueError, match=match) as caught:
        config = read_config(source)
        params = open_released(source, config)
        save_backbone(source.parent / "backbone", source, config, params, lambda size: None)
    assert sorted(source.parent.rglob("*")) == before
    return str(caught.value)


def _changed(config: dict, changes: dict[str, Any]) -> dict:
    """A config with other fields; "" removes a field."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parts, field = path.split(".")
        part = functools.reduce(lambda one, name: one[name], parts, config)
        part[field] = value
        if value == "":
            del part[field]
    return config


def test_both_spellings_say_the_same(source: pathlib.Path) -> None:
    released = read_config(source, 123)
    (source / CONFIG).write_text(json.dumps(checkpoint.TRANSFORMERS))
    assert read_config(source, 123) == released
    decoder = released.decoder
    assert (decoder.expert_ffn, decoder.dense_ffn) == (checkpoint.FFN, checkpoint.DENSE)
    assert (decoder.layers, decoder.long_every, decoder.dense_layers) == (9, 3, 1)
    assert (decoder.kv_heads, decoder.sliding_kv_heads, decoder.heads) == (1, 2, 2)
    assert (decoder.long_window, decoder.window, decoder.log_scaling_from) == (123, 5, 1_000)
    assert (decoder.logits_divisor, decoder.route_scale) == (3.0, 8.0)
    assert (released.vocab, released.used, released.levels) == (40, 30, 3)


def test_what_is_left_out_has_the_default_of_the_reference(source: pathlib.Path) -> None:
    layers = {"num_hidden_layers": 12, "local_layer_ids": None, "dense_mlp_idx": ""}
    changes = {f"text_config.{name}": value for name, value in layers.items()}
    changes["text_config.log_scaling_n_floor"] = None
    (source / CONFIG).write_text(json.dumps(_changed(checkpoint.RELEASED, changes)))
    decoder = read_config(source).decoder
    assert (decoder.long_every, decoder.dense_layers) == (6, 0)
    assert decoder.log_scaling_from > decoder.long_window + 16  # never


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("text_config.hidden_act", "gelu", "'silu'"),
        ("text_config.sconv_kernel_size", 3, "4"),
        ("text_config.rms_norm_eps", 1e-5, "1e-06"),
        ("text_config.log_scaling_alpha", 0.2, "0.1"),
        ("text_config.log_scaling_n_floor", "far", "null or an integer"),
        ("text_config.swa_head_dim", 8, "head_dim=4"),
        ("text_config.swa_num_attention_heads", 4, "num_attention_heads=2"),
        ("text_config.shared_expert_sink", False, "True"),
        ("text_config.use_sconv", False, "True"),
        ("text_config.use_embed_norm", False, "True"),
        ("text_config.use_gate_bias", False, "True"),
        ("text_config.use_global_scale", False, "True"),
        ("text_config.norm_after_topk", False, "True"),
        ("text_config.gate_activation", "softmax", "'sigmoid'"),
        ("text_config.q_bias", True, "False"),
        ("text_config.o_bias", True, "False"),
        ("text_config.final_logit_softcapping", 30.0, "None"),
        ("text_config.tie_word_embeddings", True, "False"),
        ("text_config.n_shared_experts", 0, "an integer >= 1"),
        ("text_config.hidden_size", "", "an integer >= 1"),
        ("text_config.hidden_size", 8.5, "an integer >= 1"),
        ("text_config.dense_intermediate_size", 0, "an integer >= 1"),
        ("text_config.unpadded_vocab_size", None, "an integer >= 1"),
        ("text_config.route_scale", "8", "a number"),
        ("text_config.local_layer_ids", [0, 1, 3, 4, 6, 7, 8], "every n-th one"),
        ("text_config.local_layer_ids", [0, 1, 4, 6, 7], "every n-th one"),
        ("text_config.local_layer_ids", [], "every n-th one"),
        ("text_config.local_layer_ids", 5, "a list"),
        ("text_config.layer_types", ["hybrid_sliding"] * 9, "every n-th one"),
        ("text_config.layer_types", ["hybrid_sliding", "hybrid"] * 2, "9"),
        ("text_config.layer_types", "hybrid", "a list"),
        ("text_config.mlp_layer_types", ["sparse", "dense"] + ["sparse"] * 7, "the first ones"),
        ("text_config.dense_mlp_idx", 3, "the first ones, all before the first long layer"),
        ("text_config.dense_mlp_idx", -1, "an integer >= 0"),
        ("audio_config.n_mel_bins", 64, "80"),
        ("audio_config.mel_vocab_size", "", "an integer >= 2"),
        ("audio_config.audio_mode", "wave", "'dmel'"),
        ("audio_config.dmel_max_value", 3.0, "2.0"),
        ("audio_config.use_audio_norm", False, "True"),
        ("audio_config.decoder_dmodel", 16, "hidden_size=8"),
        ("vision_config.n_layers", 24, "4"),
        ("vision_config.n_layers", "", "4"),
        ("vision_config.patch_size", 16, "40"),
        ("vision_config.temporal_patch_size", 1, "2"),
        ("vision_config.n_channels", 1, "3"),
        ("vision_config.use_vision_norm", False, "True"),
        ("vision_config.decoder_dmodel", 16, "hidden_size=8"),
        ("vision_config", None, "a JSON object"),
        ("quantization_config", {"quant_method": "mxfp8"}, "none"),
    ],
)
def test_a_field_that_cannot_be_followed_is_named(
    source: pathlib.Path, field: str, value: object, wanted: str
) -> None:
    (source / CONFIG).write_text(json.dumps(_changed(checkpoint.RELEASED, {field: value})))
    error = _refused(source, CONFIG)
    assert f"{field}: got" in error and f"wanted {wanted}" in error
    assert error.count("wanted") == 1  # and no other field


def test_all_fields_are_named_in_one_error(source: pathlib.Path) -> None:
    changes = {
        "text_config.hidden_act": "gelu",
        "text_config.sconv_kernel_size": 3,
        "audio_config.n_mel_bins": 64,
        "vision_config.n_layers": 24,
        "text_config.quantization_config": {"quant_algo": "NVFP4"},
    }
    (source / CONFIG).write_text(json.dumps(_changed(checkpoint.RELEASED, changes)))
    error = _refused(source, "NVFP4")
    assert all(f"{field}: got" in error for field in changes) and error.count("wanted") == 5


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        (
            "unpadded_vocab_size",
            33,
            r"used: got 33 ids of tokens, wanted 1\.\.32: the last 8 of 40",
        ),
        ("num_key_value_heads", 3, r"heads: got 2, wanted a multiple of kv_heads=3"),
        ("num_experts_per_tok", 5, r"experts_per_token: got 5, wanted 1\.\.experts=4"),
    ],
)
def test_fields_that_contradict_each_other(
    source: pathlib.Path, field: str, value: int, match: str
) -> None:
    changed = _changed(checkpoint.RELEASED, {f"text_config.{field}": value})
    (source / CONFIG).write_text(json.dumps(changed))
    _refused(source, match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "no JSON file"),
        ("{", "no JSON file"),
        ("[]", "got list, wanted a JSON object"),
        ('{"model_type": "llama"}', "model_type: got 'llama', wanted 'inkling_mm_model'"),
    ],
)
def test_a_folder_that_is_not_inkling(source: pathlib.Path, text: str | None, match: str) -> None:
    (source / CONFIG).unlink()
    if text is not None:
        (source / CONFIG).write_text(text)
    _refused(source, f"{CONFIG}: .*{match}")


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        (_EMBED, None, f"{_EMBED} is missing"),
        ("model.llm.rope", np.zeros(3, np.float32), "model.llm.rope is unknown"),
        ("model.llm.norm.weight", np.zeros(9, np.float32), r"norm.weight is float32\[9\], wanted"),
        (
            "model.llm.norm.weight",
            np.zeros(8, np.float16),
            r"norm.weight is F16\[8\], wanted F32 or",
        ),
        (
            "model.llm.layers.3.mlp.experts.w13_weight",
            np.zeros((4, 12, 4), np.uint8),
            r"w13_weight is U8\[4, 12, 4\], wanted F32 or BF16: quantised weights \(NVFP4",
        ),
        (
            "model.llm.layers.3.mlp.experts.w13_weight",
            np.zeros((4, 12, 8), ml_dtypes.float8_e4m3fn),
            r"w13_weight is F8_E4M3\[4, 12, 8\], wanted F32 or BF16: quantised weights \(NVFP4",
        ),
        (
            "model.llm.layers.3.mlp.gate.weight",
            np.zeros((6, 8), ml_dtypes.bfloat16),
            "3.mlp.gate.weight is bfloat16, .* is float32, wanted one dtype in all layers",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: pathlib.Path, name: str, tensor: np.ndarray | None, match: str
) -> None:
    tensors = checkpoint.tensors()
    tensors[name] = tensor
    kept = {name: one for name, one in tensors.items() if one is not None}
    _refused(checkpoint.write(tmp_path / "released", kept), match)


def test_a_rounded_selection_bias(tmp_path: pathlib.Path) -> None:
    tensors = checkpoint.tensors()
    for name in tensors:
        if name.endswith("gate.bias"):
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
    source = checkpoint.write(tmp_path / "released", tensors)
    _refused(source, "mlp.gate.bias is bfloat16, wanted float32, not rounded")


def test_a_missing_shard(source: pathlib.Path) -> None:
    (source / SHARDS[1]).unlink()
    _refused(source, f"has no {SHARDS[1]} \\(1 of 3 shards")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_shard_that_is_cut_off(source: pathlib.Path, kept: float) -> None:
    content = (source / SHARDS[2]).read_bytes()
    (source / SHARDS[2]).write_bytes(content[: int(len(content) * kept)])
    _refused(source, f"{SHARDS[2]}: got a file that is missing, cut off or not safetensors")


def test_no_weights(source: pathlib.Path) -> None:
    (source / INDEX).unlink()
    _refused(source, "model.safetensors: got a file that is missing")


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ("{", "no JSON file"),
        ("{}", "weight_map: wanted the name of a file"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "weight_map: wanted the name of a file"),
        ('{"weight_map": {"a": 3}}', "weight_map: wanted the name of a file"),
    ],
)
def test_an_index_that_is_none(source: pathlib.Path, index: str, match: str) -> None:
    (source / INDEX).write_text(index)
    _refused(source, f"{INDEX}: {match}")


def test_an_index_of_other_shards(source: pathlib.Path) -> None:
    index = json.loads((source / INDEX).read_text())
    index["weight_map"][_BIAS] = next(s for s in SHARDS if s != index["weight_map"][_BIAS])
    (source / INDEX).write_text(json.dumps(index))
    _refused(source, f"names other files than those that have {_BIAS}")


def test_one_file_needs_no_index(source: pathlib.Path) -> None:
    config, found = read_config(source), {}
    for shard in SHARDS:
        found |= load_file(source / shard)
        (source / shard).unlink()
    (source / INDEX).unlink()
    save_file(found, source / "model.safetensors")
    got = open_released(source, config)["backbone"]["text_in"]["norm"]
    np.testing.assert_array_equal(got, found["model.llm.embed_norm.weight"])


@pytest.mark.parametrize("ids", [0, 26, 31, 40])
def test_a_tokenizer_of_another_head(source: pathlib.Path, ids: int) -> None:
    write_tokenizer(source, ids)
    _refused(
        source, f"got ids up to {ids - 1}, wanted at least 26, which config.json names, and less"
    )


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_no_tokenizer(source: pathlib.Path, text: str | None) -> None:
    (source / TOKENIZER).unlink()
    if text is not None:
        (source / TOKENIZER).write_text(text)
    _refused(source, f"{TOKENIZER}: no tokenizer")


def test_weights_that_are_not_finite_leave_nothing(tmp_path: pathlib.Path) -> None:
    tensors = checkpoint.tensors()
    tensors[_BIAS][2] = np.nan
    _refused(checkpoint.write(tmp_path / "released", tensors), r"NaN or Inf in \['router_bias'\]")


def test_nothing_is_overwritten(source: pathlib.Path) -> None:
    (source.parent / "backbone").mkdir()
    _refused(source, "backbone: exists already, wanted a new folder")


@pytest.fixture
def backbone(source: pathlib.Path) -> pathlib.Path:
    config = read_config(source)
    folder = source.parent / "backbone"
    save_backbone(folder, source, config, open_released(source, config), lambda size: None)
    return folder


def _export(backbone: pathlib.Path) -> None:
    config, params = load_backbone(backbone)
    save_released(backbone.parent / "copy", backbone, config, params, lambda size: None)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("config.json", "no JSON file"),
        ("model.safetensors", "got a file that is missing"),
        ("inkling_tokenizer.json", "has no inkling_tokenizer.json"),
        ("inkling_config.json", "has no inkling_config.json"),
    ],
)
def test_a_backbone_that_lacks_a_file(backbone: pathlib.Path, name: str, match: str) -> None:
    (backbone / name).unlink()
    with pytest.raises(ValueError, match=match):
        _export(backbone)
    assert not (backbone.parent / "copy").exists()


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("format_version", 1, "format_version: got 1, wanted 2"),
        ("format_version", "", "format_version: got None, wanted 2"),
        ("levels", 4, r"audio_in/user_table is float32\[80, 3, 8\], wanted float32\[80, 4, 8\]"),
        ("used", 33, "used: got 33"),
        ("colour", 3, "config.colour: unknown field"),
    ],
)
def test_a_backbone_of_another_config(
    backbone: pathlib.Path, field: str, value: object, match: str
) -> None:
    path = backbone / CONFIG
    path.write_text(json.dumps(_changed(json.loads(path.read_text()), {field: value})))
    with pytest.raises(ValueError, match=match):
        load_backbone(backbone)


def test_a_config_of_a_backbone_has_room_for_the_special_tokens() -> None:
    with pytest.raises(ValueError, match="levels: got 1, wanted >= 2"):
        BackboneConfig(levels=1)


def test_a_file_of_arrays_that_is_missing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.safetensors: got a file that is missing"):
        open_arrays(tmp_path / "nowhere.safetensors", 100)
