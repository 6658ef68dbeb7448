"""Files of one JSON object a line."""

import gzip
import json
import math
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from interaction.data.conversation_data import refuse

Fields = dict[str, Any]


def read_lines(path: str | os.PathLike) -> Iterator[tuple[str, Fields]]:
    """The objects of a file, which gzip may have compressed (`*.gz`), each with its place.

    Raises:
      ValueError: The file is missing or damaged, or a line is no JSON object.
    """
    path, number = pathlib.Path(path), 0
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}: line {number}", parse(line, f"{path}: line {number}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        place = f"{path}: after line {number}"
        refuse(place, "file", error, "JSON lines, gzipped if it ends in .gz", "copy it again")


def parse(text: str, where: str) -> Fields:
    """A JSON object.

    Raises:
      ValueError: It is none.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        got = found if isinstance(found, ValueError) else type(found).__name__
        refuse(where, "JSON", got, "an object", "write it again")
    return found


def take(fields: Fields, name: str, kinds: type | tuple[type, ...], where: str) -> Any:  # noqa: ANN401
    """A field of a type.

    Args:
      fields: The object.
      name: Name of the field.
      kinds: One type, or several; `float` admits whole numbers, and no NaN or Inf.
      where: The place, for the error message.

    Raises:
      ValueError: The field is missing or of another type.
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    value = fields.get(name)
    admitted = (*kinds, int) if float in kinds else kinds
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, admitted) or isinstance(value, bool) or not finite:
        got = "no such field" if name not in fields else f"{value!r:.60}"
        wanted = " or ".join(kind.__name__ for kind in kinds)
        refuse(where, name, got, wanted, "correct the file")
    return value
