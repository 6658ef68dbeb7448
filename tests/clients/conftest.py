"""A server of the released pair, for clients of other makers."""

from collections.abc import Iterator

import pytest

from experiments.serve_client import Server
from interaction.data.bundled_user import ASSET


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    annotation = ASSET.with_suffix(".json")
    server = Server(2, tmp_path_factory.mktemp("house"), more=f"--annotation={annotation}")
    yield server.address
    server.end()
