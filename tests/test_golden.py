"""Parameters of the presets: a change must be seen, and wanted."""

import pytest

from interaction.presets import PRESETS
from tests.golden import FOLDER, describe


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_parameters(preset: str) -> None:
    golden = (FOLDER / f"{preset}_parameters.txt").read_text()
    assert describe(preset) == golden, "run `python -m tests.golden` and read the diff"
