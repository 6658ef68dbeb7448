"""A chat endpoint that ends with its test."""

from collections.abc import Iterator

import pytest

from tests.background.chat_endpoint import Endpoint


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    one = Endpoint()
    yield one
    one.close()
