"""A server for tests that change nothing in it."""

from collections.abc import Iterator

import pytest

from tests.serve.clients import house


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with house(rows=8) as (address, _):
        yield address
