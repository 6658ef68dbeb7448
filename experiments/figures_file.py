"""The figures of a command as a JSON file."""

import json
import os
import pathlib
from typing import Any


def write_figures(figures: dict[str, Any], path: str | os.PathLike | None) -> None:
    """Writes figures to a file, whose folder is made if it is missing; None writes nothing."""
    if path is not None:
        place = pathlib.Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(figures, indent=2) + "\n")
