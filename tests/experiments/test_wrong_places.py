"""Commands and notebooks in a wrong place: one clear message."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from experiments import converse

ROOT = pathlib.Path(__file__).parents[2]


def test_converse_into_a_file_is_refused_before_anything_is_loaded(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "folder"):
        with pytest.raises(ValueError, match=r"--out: got '.*notes\.txt.*wanted a folder; choose"):
            converse.run("no.wav", "no model", str(out), 0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["delegation", "inspect_session"])
def test_a_notebook_outside_a_clone_says_so(tmp_path: pathlib.Path, name: str) -> None:
    shutil.copy(ROOT / "colab" / f"{name}.py", tmp_path)
    (tmp_path / "IPython").mkdir()  # a notebook has it
    (tmp_path / "IPython" / "display.py").write_text("Audio = Image = display = print")
    command = [sys.executable, f"{name}.py"]
    got = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert got.returncode == 1
    assert f"{tmp_path}: got no clone of the repository, wanted one; clone it" in got.stderr
