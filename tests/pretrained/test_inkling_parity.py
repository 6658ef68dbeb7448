"""A checkpoint that the reference wrote is read, and is written back as it was."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from interaction.pretrained.backbone_folder import load_backbone, save_backbone, save_released
from interaction.pretrained.inkling import open_released
from interaction.pretrained.inkling_config import read_config
from interaction.pretrained.tree_paths import flatten
from tests.pretrained.inkling_checkpoint import write_tokenizer

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.24")
from experiments.baselines import inkling_reference as reference  # noqa: E402


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder that the reference saves, random weights in shards."""
    folder = tmp_path_factory.mktemp("reference") / "released"
    reference.save(reference.reference(num_hidden_layers=12), folder)
    write_tokenizer(folder, reference.USED_ROWS)
    return folder


def _saved(folder: pathlib.Path) -> dict[str, np.ndarray]:
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_the_reference_s_checkpoint_comes_back(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = read_config(source)
    save_backbone(tmp_path / "backbone", source, config, open_released(source, config), int)
    save_released(
        tmp_path / "copy", tmp_path / "backbone", *load_backbone(tmp_path / "backbone"), int
    )
    got, wanted = _saved(tmp_path / "copy"), _saved(source)
    assert sorted(got) == sorted(wanted) and len(wanted) > 200
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype and got[name].tobytes() == tensor.tobytes(), name


def test_the_reference_loads_what_is_exported(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Its parameters are those of the first checkpoint, and ours are parts of them."""
    config = read_config(source)
    params = open_released(source, config)
    save_backbone(tmp_path / "backbone", source, config, params, int)
    save_released(
        tmp_path / "copy", tmp_path / "backbone", *load_backbone(tmp_path / "backbone"), int
    )
    load = reference.Model.from_pretrained
    first, second = (load(folder).state_dict() for folder in (source, tmp_path / "copy"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    flat = flatten(params)
    prefix = "model.language_model.layers.7."  # the second sliding layer of the second group
    halves = np.split(first[prefix + "mlp.experts.gate_up_proj"].numpy(), 2, axis=1)
    for name, half in zip(("gate", "up"), halves, strict=True):
        got = np.asarray(flat[f"backbone/sliding/{name}"])[0, 1]
        np.testing.assert_array_equal(got, half.swapaxes(1, 2))
    bias = first[prefix + "mlp.gate.e_score_correction_bias"].numpy()
    np.testing.assert_array_equal(np.asarray(flat["router_bias"])[7], bias)
    head = first["lm_head.weight"].numpy()
    np.testing.assert_array_equal(np.asarray(flat["backbone/heads/text"])[:, 8:], head[:-8].T)


def test_the_config_is_read_from_the_reference_s_file(source: pathlib.Path) -> None:
    config, fields = read_config(source), json.loads((source / "config.json").read_text())
    decoder, text = config.decoder, fields["text_config"]
    assert (decoder.dense_layers, decoder.layers, decoder.long_every) == (2, 12, 6)
    assert (decoder.expert_ffn, decoder.dense_ffn) == (32, 128)
    assert decoder.logits_divisor == text["logits_mup_width_multiplier"] == 2.0
    assert (config.vocab, config.used, config.levels) == (1_024, 1_010, 16)
