"""The command line of `experiments.serve`."""

import pathlib
from functools import partial

import pytest
from absl import flags

from experiments import serve


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> flags.FlagValues:
    """Flags of this command alone, with their defaults."""
    mine = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", mine)
    for kind in ("string", "integer", "float", "list"):
        define = getattr(flags, f"DEFINE_{kind}")
        monkeypatch.setattr(flags, f"DEFINE_{kind}", partial(define, flag_values=mine))
    serve.define_flags()
    mine(["serve"])
    return mine


def test_other_machines_need_tokens(values: flags.FlagValues, tmp_path: pathlib.Path) -> None:
    values.host = "0.0.0.0"
    with pytest.raises(ValueError, match=r"--host: got '0.0.0.0', .*wanted --tokens"):
        serve.make_house()
    (tmp_path / "none").write_text("\n \n")
    for name, message in (("none", "got no token"), ("missing", "wanted a file")):
        values.tokens = str(tmp_path / name)
        with pytest.raises(ValueError, match=f"--tokens: .*{message}"):
            serve.make_house()


def test_tokens_stand_in_a_file_one_a_line(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tokens").write_text("one\n\n two \n")
    assert serve.read_tokens(str(tmp_path / "tokens")) == ["one", "two"]
    assert serve.read_tokens(None) == []
