"""A released checkpoint with layers of full width, through the commands of import and export."""

import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
import tokenizers

from experiments.baselines import inkling_reference as reference
from interaction.pretrained.array_file import DTYPES, write_arrays
from interaction.pretrained.inkling_config import CONFIG
from interaction.pretrained.inkling_files import INDEX, PIECE, SINGLE, open_tensors
from interaction.pretrained.lazy_array import Index, LazyArray

_FEW = 4  # experts of the reference that names and forms are taken from


def measure(experts: int) -> dict[str, bool | float]:
    """Imports and exports a sliding and a global layer of Inkling-Small's width in bfloat16.

    Args:
      experts: Routed experts of a layer; with 256, 40 GB of free disk are needed.

    Returns:
      `round_trip_equal`, whether each exported tensor equals its source bit for bit; and
      `peak_host_gb`, the largest memory of either command.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = pathlib.Path(temporary)
        _write_checkpoint(place / "released", experts)
        peak = max(
            _peak("import_weights", place / "released", place / "backbone"),
            _peak("export_weights", place / "backbone", place / "copy"),
        )
        source, copy = open_tensors(place / "released"), open_tensors(place / "copy")
        equal = source.keys() == copy.keys() and all(
            _equal(leaf, copy[name]) for name, leaf in source.items()
        )
    return {"round_trip_equal": equal, "peak_host_gb": peak / 1e9}


def _peak(command: str, source: pathlib.Path, out: pathlib.Path) -> int:
    """Runs a command; returns the most memory that it held, bytes.

    Read while it runs: what the system reports of an ended process counts its parent's as well.
    """
    flags, peak = [f"--source={source}", f"--out={out}"], 0
    process = subprocess.Popen([sys.executable, "-m", f"experiments.{command}", *flags])
    while process.poll() is None:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        peak = max(peak, int(found[1]) * 1024) if found else peak
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{command}: ended with {process.returncode}; see its message above")
    return peak


def _write_checkpoint(folder: pathlib.Path, experts: int) -> None:
    """Names, shapes and config of the reference, with more experts; random numbers."""
    reference.save(reference.reference(n_routed_experts=_FEW, **reference.FULL_WIDTH), folder)
    config = json.loads((folder / CONFIG).read_text())
    config["text_config"]["n_routed_experts"] = experts
    (folder / CONFIG).write_text(json.dumps(config))
    shapes = {name: leaf.shape for name, leaf in open_tensors(folder).items()}
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    tensors = {
        name: _random(number, _with_experts(name, shape, experts), _dtype(name))
        for number, (name, shape) in enumerate(shapes.items())
    }
    write_arrays(folder / SINGLE, tensors)
    words = {f"w{number}": number for number in range(reference.USED_ROWS)}
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))


def _with_experts(name: str, shape: tuple[int, ...], experts: int) -> tuple[int, ...]:
    if ".mlp.experts." in name or name.endswith((".mlp.gate.weight", ".mlp.gate.bias")):
        return (shape[0] - _FEW + experts, *shape[1:])
    return shape


def _dtype(name: str) -> np.dtype:
    return DTYPES["float32" if name.endswith(".mlp.gate.bias") else "bfloat16"]


def _random(seed: int, shape: tuple[int, ...], dtype: np.dtype) -> LazyArray:
    """Random numbers that are made when they are read, row by row of the first axis."""

    def read(index: Index) -> np.ndarray:
        first, *rest = index
        rows = [
            np.random.default_rng([seed, row]).standard_normal(shape[1:], np.float32)
            for row in range(first.start, first.stop)
        ]
        return np.stack(rows)[(slice(None), *rest)]

    row = dtype.itemsize * math.prod(shape[1:])
    return LazyArray(shape, dtype, (max(1, min(shape[0], PIECE // row)), *shape[1:]), read)


def _equal(one: LazyArray, other: LazyArray) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype) and all(
        np.array_equal(one[index], other[index]) for index in one.pieces()
    )
