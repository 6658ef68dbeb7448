"""Released models: equal after a round trip, with damage and mismatches refused."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import interaction
from interaction.background import load_reasoner
from interaction.config import ModelConfig, TransformerConfig
from interaction.pretrained.lazy_array import Index, LazyArray
from interaction.pretrained.store import (
    CONFIG,
    RELEASED,
    TOKENIZER,
    WEIGHTS,
    load_model,
    save_model,
)
from interaction.types import Params

MODEL = ModelConfig(transformer=TransformerConfig(expert_ffn=40, route_scale=5.0))


def _params(shape: tuple[int, ...] = (3, 5)) -> Params:
    table = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return {"backbone": {"table": table}, "router_bias": np.zeros((2, 4), np.float32)}


def _abstract(config: ModelConfig) -> Params:
    del config
    return _params()


@pytest.fixture
def released(tmp_path: pathlib.Path) -> pathlib.Path:
    tokenizer = tmp_path / "words.json"
    tokenizer.write_text("{}")
    save_model(tmp_path / "model", MODEL, _params(), tokenizer)
    return tmp_path / "model"


def test_round_trip(released: pathlib.Path) -> None:
    config, params = load_model(released, _abstract)
    assert config == MODEL
    np.testing.assert_array_equal(params["backbone"]["table"], _params()["backbone"]["table"])
    assert sorted(file.name for file in released.iterdir()) == sorted((CONFIG, WEIGHTS, TOKENIZER))


def test_bfloat16_halves_the_file(released: pathlib.Path) -> None:
    save_model(released, MODEL, _params((300, 50)), released.parent / "words.json")
    size = (released / WEIGHTS).stat().st_size
    save_model(released, MODEL, _params((300, 50)), released.parent / "words.json", "bfloat16")
    assert (released / WEIGHTS).stat().st_size < 0.51 * size
    _, params = load_model(released)
    wanted = _params((300, 50))["backbone"]["table"]
    assert params["backbone"]["table"].dtype == np.float32
    np.testing.assert_allclose(
        params["backbone"]["table"], wanted, rtol=2**-8
    )  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("piece", [(4, 3, 5, 6), (1, 3, 5, 6), (3, 2, 2, 6), (4, 3, 5, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_make_the_same_file(
    released: pathlib.Path, piece: tuple[int, ...], dtype: str
) -> None:
    tokenizer = released.parent / "words.json"
    table = _params((4, 3, 5, 6))["backbone"]["table"]
    sizes = []

    def read(index: Index) -> np.ndarray:
        sizes.append(table[index].size)
        return table[index]

    stored = {
        "backbone": {"table": LazyArray(table.shape, table.dtype, piece, read)},
        "b": np.float32(2),
    }
    save_model(released, MODEL, stored, tokenizer, dtype)
    assert sum(sizes) == table.size and max(sizes) == np.prod(piece)
    found = load_file(released / WEIGHTS)
    assert found["backbone/table"].dtype.name == dtype and found["b"] == 2
    np.testing.assert_array_equal(
        found["backbone/table"], table.astype(found["backbone/table"].dtype)
    )
    _, params = load_model(released)
    part = params["backbone"]["table"].astype("bfloat16")[1:3, :, 2:4, :]
    np.testing.assert_array_equal(part, table[1:3, :, 2:4].astype(part.dtype))


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_file_cut_off(released: pathlib.Path, name: str, kept: float) -> None:
    path = released / name
    content = path.read_bytes().rstrip()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=name):
        load_model(released, _abstract)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_file_missing(released: pathlib.Path, name: str) -> None:
    (released / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name}"):
        load_model(released)
    with pytest.raises(ValueError, match="no such folder"):
        load_model(released / "nowhere")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"backbone/table": np.zeros((3, 4), np.float32)},
            r"backbone/table is float32\[3, 4\], wanted",
        ),
        ({"backbone/table": np.zeros((3, 5), np.int32)}, r"backbone/table is I32\[3, 5\]"),
        ({"lm_head": np.zeros(3, np.float32)}, "lm_head is unknown"),
        ({"router_bias": None}, "router_bias is missing"),
    ],
)
def test_foreign_weights_are_named(released: pathlib.Path, change: dict, match: str) -> None:
    tensors = {
        "backbone/table": _params()["backbone"]["table"],
        "router_bias": np.zeros((2, 4), "f4"),
    }
    tensors = {k: v for k, v in (tensors | change).items() if v is not None}
    save_file(tensors, released / WEIGHTS)
    with pytest.raises(ValueError, match=match):
        load_model(released, _abstract)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["colour"], 3, r"config\.colour: unknown field"),
        (["transformer", "depth"], 3, r"config\.transformer\.depth: unknown field"),
        (["transformer", "layers"], "six", r"transformer\.layers: got 'six', wanted int"),
        (["audio"], 3, r"config\.audio: got 3, wanted AudioConfig"),
        (["audio", "fmax"], 9e9, r"audio\.fmax"),
        (["vocoder", "n_fft"], 256, r"vocoder\.n_fft: got 256"),
    ],
)
def test_bad_config_is_named(
    released: pathlib.Path, path: list[str], value: object, match: str
) -> None:
    fields = json.loads((released / CONFIG).read_text())
    section = fields
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    (released / CONFIG).write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=match):
        load_model(released)


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_another_version_is_refused(released: pathlib.Path, version: object) -> None:
    fields = json.loads((released / CONFIG).read_text())
    assert fields["format_version"] == 2
    (released / CONFIG).write_text(json.dumps(fields | {"format_version": version}))
    with pytest.raises(ValueError, match=rf"format_version: got {version!r}, wanted 2; load"):
        load_model(released)
    del fields["format_version"]  # a folder from before the field
    (released / CONFIG).write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="format_version: got 1, wanted 2; load"):
        load_model(released)


def test_config_that_is_no_object_is_named(released: pathlib.Path) -> None:
    (released / CONFIG).write_text("[]")
    with pytest.raises(ValueError, match=r"config: got \[\], wanted a JSON object"):
        load_model(released)


def test_bad_weights_are_not_saved(tmp_path: pathlib.Path, released: pathlib.Path) -> None:
    params = _params()
    params["backbone"]["table"][0, 0] = np.nan
    with pytest.raises(ValueError, match="backbone/table"):
        save_model(released, MODEL, params, tmp_path / "words.json")
    with pytest.raises(ValueError, match="dtype: got 'int8'"):
        save_model(released, MODEL, _params(), tmp_path / "words.json", "int8")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_damaged_weights_are_named_when_they_are_read(
    released: pathlib.Path, dtype: str, value: float
) -> None:
    save_model(released, MODEL, _params(), released.parent / "words.json", dtype)
    tensors = load_file(released / WEIGHTS)
    tensors["backbone/table"][1, 4] = value
    save_file(tensors, released / WEIGHTS)
    _, params = load_model(released, _abstract)
    table = params["backbone"]["table"]
    np.testing.assert_array_equal(params["router_bias"], np.zeros((2, 4)))
    assert table[0:1, 0:5].shape == (1, 5)  # of a part that is not damaged
    with pytest.raises(ValueError, match=r"backbone/table has NaN or Inf in 1 of 15 places"):
        np.asarray(table)
    with pytest.raises(ValueError, match=r"backbone/table has NaN or Inf in 1 of 2 places"):
        table.astype("bfloat16")[1:2, 3:5]


def test_damaged_weights_are_refused_by_load(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(RELEASED / "first_demo", folder)
    tensors = load_file(folder / WEIGHTS)
    tensors["speech/condition/table"].reshape(-1)[-1] = np.inf
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"model\.safetensors: speech/condition/table has NaN"):
        interaction.load(str(folder))


def test_names_that_are_suggested_are_taken() -> None:
    with pytest.raises(ValueError, match=r"of \['demo', 'first_demo'\] for a live .* \['demo_b"):
        interaction.load("typo")
    with pytest.raises(ValueError, match="got a background model, wanted a live model; load it"):
        interaction.load("demo_background")
    with pytest.raises(ValueError, match="got a live model, wanted a background model; load"):
        load_reasoner("demo")
