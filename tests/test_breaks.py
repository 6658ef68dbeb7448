"""The deliberate breaks fit the code; `python -m tests.breaks` runs them."""

import subprocess

import pytest

from tests.breaks import ROOT, Break, find_breaks

BREAKS = find_breaks()


@pytest.mark.parametrize("one", BREAKS, ids=lambda one: one.name)
def test_a_break_applies(one: Break) -> None:
    check = ["git", "apply", "--check", "--unidiff-zero", str(one.patch)]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for test in one.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), test
