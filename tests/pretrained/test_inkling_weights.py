"""Released Inkling weights in and out, against arrays that are written out by hand."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from safetensors.numpy import load_file

from interaction.distributed import sharding
from interaction.pretrained import array_file, backbone_folder, inkling
from interaction.pretrained.backbone_folder import load_backbone, save_backbone, save_released
from interaction.pretrained.inkling import open_released
from interaction.pretrained.inkling_config import read_config
from interaction.pretrained.lazy_array import Index, LazyArray
from interaction.pretrained.tree_paths import flatten
from interaction.types import Params
from tests.pretrained import inkling_checkpoint as checkpoint
from tests.pretrained.inkling_checkpoint import (
    DENSE,
    DIM,
    EXPERTS,
    FFN,
    LEVELS,
    MELS,
    SHARED,
    VOCAB,
)

pytestmark = pytest.mark.usefixtures("narrow_vision")


def _open(source: pathlib.Path) -> dict[str, LazyArray]:
    return flatten(open_released(source, read_config(source)))


def _filled(shape: tuple[int, ...], entry: Callable[..., Any]) -> np.ndarray:
    """The array whose entry at each place is said by a function of the place."""
    return np.array([entry(*at) for at in np.ndindex(shape)]).reshape(shape)


FFN_TENSORS = (*checkpoint.DENSE_FFN, *checkpoint.SPARSE_FFN)
# Numbers of the layers that lie in each stack of ours, along its leading axes
STACKS = {
    "first_dense": [0],
    "first_sliding": [1],
    "first_long": [2],
    "sliding": [[3, 4], [6, 7]],
    "long": [5, 8],
}


def _attention(found: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """What all layers have, entry by entry from the released tensors."""

    def same(name: str) -> np.ndarray:
        return found[f"model.llm.layers.{number}.{name}"]

    def linear(name: str) -> np.ndarray:
        return _filled(same(name).shape[::-1], lambda i, o: same(name)[o, i])

    def taps(name: str) -> np.ndarray:
        return _filled((4, len(same(name))), lambda tap, channel: same(name)[channel, 0, tap])

    return {
        "attention_norm": same("attn_norm.weight"),
        "query": linear("attn.wq_du.weight"),
        "key": linear("attn.wk_dv.weight"),
        "value": linear("attn.wv_dv.weight"),
        "relative": linear("attn.wr_du.weight"),
        "profiles": same("attn.rel_logits_proj.proj"),
        "attention_out": linear("attn.wo_ud.weight"),
        "query_norm": same("attn.q_norm.weight"),
        "key_norm": same("attn.k_norm.weight"),
        "key_conv": taps("attn.k_sconv.weight"),
        "value_conv": taps("attn.v_sconv.weight"),
        "attention_conv": taps("attn_sconv.weight"),
        "ffn_norm": same("mlp_norm.weight"),
        "ffn_conv": taps("mlp_sconv.weight"),
    }


def _ffn(found: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """The feed-forward of a layer, entry by entry from the released tensors."""
    mine = {name: found.get(f"model.llm.layers.{number}.mlp.{name}") for name in FFN_TENSORS}
    if number == 0:
        both, down = mine["w13_dn.weight"], mine["w2_md.weight"]
        return {
            "dense_gate": _filled((DIM, DENSE), lambda i, o: both[2 * o, i]),
            "dense_up": _filled((DIM, DENSE), lambda i, o: both[2 * o + 1, i]),
            "dense_down": _filled((DENSE, DIM), lambda i, o: down[o, i]),
            "ffn_scale": mine["global_scale"],
        }
    both, down = mine["experts.w13_weight"], mine["experts.w2_weight"]
    shared, out = (mine[f"shared_experts.shared_{name}_weight"] for name in ("w13", "w2"))
    beside, outputs = SHARED * FFN, EXPERTS + SHARED
    return {
        "router": _filled((DIM, outputs), lambda i, o: mine["gate.weight"][o, i]),
        "ffn_scale": mine["gate.global_scale"],
        "gate": _filled((EXPERTS, DIM, FFN), lambda e, i, o: both[e, 2 * o, i]),
        "up": _filled((EXPERTS, DIM, FFN), lambda e, i, o: both[e, 2 * o + 1, i]),
        "down": _filled((EXPERTS, FFN, DIM), lambda e, i, o: down[e, o, i]),
        "shared_gate": _filled((DIM, beside), lambda i, o: shared[o // FFN, 2 * (o % FFN), i]),
        "shared_up": _filled((DIM, beside), lambda i, o: shared[o // FFN, 2 * (o % FFN) + 1, i]),
        "shared_down": _filled((beside, DIM), lambda i, o: out[i // FFN, o, i % FFN]),
    }


def _others(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is outside the layers, entry by entry from the released tensors."""
    embed, head = found["model.llm.embed.weight"], found["model.llm.unembed.weight"]
    levels, vision = found["model.audio.encoder.weight"], "model.visual.layers"
    bias = np.zeros((9, EXPERTS), np.float32)
    for layer in range(1, 9):
        bias[layer] = found[f"model.llm.layers.{layer}.mlp.gate.bias"]
    return {
        "router_bias": bias,
        "backbone/text_in/table": _filled((VOCAB, DIM), lambda t, d: embed[(t - 8) % VOCAB, d]),
        "backbone/heads/text": _filled((DIM, VOCAB), lambda d, t: head[(t - 8) % VOCAB, d]),
        "backbone/text_in/norm": found["model.llm.embed_norm.weight"],
        "backbone/heads/norm": found["model.llm.norm.weight"],
        "backbone/audio_in/user_table": _filled(
            (MELS, LEVELS, DIM), lambda mel, level, d: levels[mel * LEVELS + level, d]
        ),
        "backbone/audio_in/norm": found["model.audio.final_norm.weight"],
        **{f"backbone/video_in/fold_{i}": found[f"{vision}.linear_{i}.weight"].T for i in range(4)},
        **{f"backbone/video_in/norm_{i}": found[f"{vision}.norm_{i}.weight"] for i in range(3)},
        "backbone/video_in/norm": found["model.visual.final_norm.weight"],
    }


def _bits_equal(got: np.ndarray, wanted: np.ndarray) -> bool:
    return (got.dtype, got.shape, got.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


def test_arrays_have_the_numbers_of_the_released_ones(source: pathlib.Path) -> None:
    found, wanted = checkpoint.tensors(), _others(checkpoint.tensors())
    for stack, numbers in STACKS.items():
        layers = [_attention(found, n) | _ffn(found, n) for n in np.ravel(numbers)]
        for name, first in layers[0].items():
            stacked = np.stack([layer[name] for layer in layers])
            wanted[f"backbone/{stack}/{name}"] = stacked.reshape(*np.shape(numbers), *first.shape)
    got = _open(source)
    assert sorted(got) == sorted(wanted)
    for name, array in wanted.items():
        assert _bits_equal(np.asarray(got[name]), array), name


def test_the_special_tokens_take_the_last_rows(source: pathlib.Path) -> None:
    got, embed = _open(source), checkpoint.tensors()["model.llm.embed.weight"]
    table = np.asarray(got["backbone/text_in/table"])
    np.testing.assert_array_equal(table[:8], embed[32:])
    np.testing.assert_array_equal(table[8], embed[0])
    np.testing.assert_array_equal(table[8 + 29], embed[29])  # the last id that is used


def test_parts_are_parts_of_the_whole(source: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for name, leaf in _open(source).items():
        whole = np.asarray(leaf)
        for _ in range(4):
            ends = [sorted(rng.choice(size + 1, 2, replace=False)) for size in leaf.shape]
            index = tuple(slice(int(start), int(stop)) for start, stop in ends)
            assert _bits_equal(leaf[index], whole[index]), (name, index)


@pytest.mark.parametrize("piece", [1, 100, 1 << 27])
@pytest.mark.parametrize("shard", [3_000, 10**10])
def test_what_is_exported_was_imported(
    source: pathlib.Path, monkeypatch: pytest.MonkeyPatch, piece: int, shard: int
) -> None:
    monkeypatch.setattr(inkling, "PIECE", piece)
    monkeypatch.setattr(backbone_folder, "_SHARD", shard)
    backbone, copy, done = source.parent / "backbone", source.parent / "copy", []
    config = read_config(source, 77)
    save_backbone(backbone, source, config, open_released(source, config), done.append)
    stored, params = load_backbone(backbone)
    assert stored == config and stored.decoder.long_window == 77
    assert sum(done) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    save_released(copy, backbone, stored, params, done.append)
    got = _load(copy)
    wanted = {name: one for name, one in checkpoint.tensors().items() if ".mtp." not in name}
    assert sorted(got) == sorted(wanted)
    for name, tensor in wanted.items():
        assert _bits_equal(got[name], tensor), name
    for name in (checkpoint.CONFIG, checkpoint.TOKENIZER):
        assert (copy / name).read_bytes() == (source / name).read_bytes()
    shards = sorted(path.name for path in copy.glob("*.safetensors"))
    assert len(shards) > 10 if shard == 3_000 else len(shards) == 1
    again = _open(copy)  # the index names the right shards
    assert all(
        _bits_equal(np.asarray(again[n]), np.asarray(one)) for n, one in _open(source).items()
    )
    assert sorted(path.name for path in source.parent.iterdir()) == ["backbone", "copy", "released"]


def _load(folder: pathlib.Path) -> dict[str, np.ndarray]:
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("axes", [{"expert": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "tensor": 4}])
def test_a_mesh_reads_what_its_devices_hold(
    source: pathlib.Path, monkeypatch: pytest.MonkeyPatch, axes: dict[str, int]
) -> None:
    read, sizes = array_file._read, []

    def counted(path: pathlib.Path, name: str, index: Index) -> np.ndarray:
        part = read(path, name, index)
        sizes.append(part.nbytes)
        return part

    monkeypatch.setattr(array_file, "_read", counted)
    params: Params = open_released(source, read_config(source))
    assert not sizes  # nothing is read before it is asked for
    mesh = sharding.make_mesh(axes)
    places: dict[str, NamedSharding] = flatten(sharding.shardings(mesh, params))
    split = 0
    for name, leaf in flatten(params).items():
        whole, asked = np.asarray(leaf), []

        def part(index: Index, leaf: LazyArray = leaf, asked: list = asked) -> np.ndarray:
            sizes.clear()
            part = leaf.read(index)
            asked.append((part.shape, sum(sizes) / part.nbytes))
            return part

        watched = LazyArray(leaf.shape, leaf.dtype, leaf.piece, part)
        got = sharding.put(watched, places[name])
        assert _bits_equal(np.asarray(got), whole), name
        mine = places[name].shard_shape(leaf.shape)
        parts = int(np.prod(leaf.shape)) // int(np.prod(mine))
        assert [shape for shape, _ in asked] == [mine] * parts, name
        # Gate and up are interleaved in the files: both are read.
        most = 2 if name.endswith(("gate", "up")) else 1
        assert all(share <= most for _, share in asked), (name, asked)
        split += parts > 1
    assert split > 20
