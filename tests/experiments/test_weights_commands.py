"""The commands that import and export released weights."""

import pathlib
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

from tests.pretrained import inkling_checkpoint as checkpoint

RELEASED_WIDTHS = (128, 320, 4_800)


def _run(command: str, **flags: pathlib.Path | int) -> str:
    given = [f"--{name}={value}" for name, value in flags.items()]
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{command}", *given],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_what_is_exported_was_imported(tmp_path: pathlib.Path) -> None:
    tensors = checkpoint.tensors(RELEASED_WIDTHS)
    source = checkpoint.write(tmp_path / "released", tensors)
    backbone, copy = tmp_path / "backbone", tmp_path / "copy"
    told = _run("import_weights", source=source, out=backbone, long_window=50)
    assert told == f"{backbone}: 0.10 GB\n"
    assert '"long_window": 50' in (backbone / "config.json").read_text()
    _run("export_weights", source=backbone, out=copy)
    found = load_file(copy / "model-00001-of-00001.safetensors")
    wanted = {name: one for name, one in tensors.items() if ".mtp." not in name}
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
