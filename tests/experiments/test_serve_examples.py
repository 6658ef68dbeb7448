"""The requests that the page proposes are of the training's wording."""

import itertools

import pytest

from experiments.serve import EXAMPLES
from interaction.data import domain
from interaction.data.domain.tool_requests import TOOL_REQUESTS


def tool_texts() -> set[str]:
    """Every request that needs a tool."""
    found = set()
    for request in TOOL_REQUESTS:
        for values in itertools.product(*request.slots.values()):
            slots = dict(zip(request.slots, values, strict=True))
            found |= {" ".join(request.parts(one, slots)) for one in request.templates}
    return found


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_is_a_trained_request(text: str) -> None:
    assert text in tool_texts() or domain.complete_forms(text)


def test_the_examples_that_promise_an_errand_need_a_tool() -> None:
    assert {"ring in ten seconds", "in which room is the honey"} <= tool_texts() & set(EXAMPLES)
