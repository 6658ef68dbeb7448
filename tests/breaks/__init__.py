"""Deliberate breaks of the library, each with the tests that must fail on it; see `__main__`."""

import pathlib
import re
from typing import NamedTuple

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]


class Break(NamedTuple):
    """One mistake that somebody could make."""

    name: str
    patch: pathlib.Path
    tests: tuple[str, ...]  # pytest ids; at least one of them must fail


def find_breaks() -> list[Break]:
    """The breaks of this folder, by name.

    Raises:
      ValueError: A patch names no test.
    """
    found = []
    for patch in sorted(FOLDER.glob("*.patch")):
        tests = tuple(re.findall(r"^Test: (\S+)$", patch.read_text(), re.MULTILINE))
        if not tests:
            raise ValueError(f"{patch.name}: got no line 'Test: ...', wanted one at its head")
        found.append(Break(patch.stem, patch, tests))
    return found
