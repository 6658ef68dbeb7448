"""The short form of `experiments.fuzz_serve`."""

import asyncio
import random

import pytest

from experiments.fuzz_serve import PROTOCOLS, fuzz
from interaction.serve.limits import Limits
from tests.serve.clients import house


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_every_damaged_message_gets_one_error(protocol: str) -> None:
    with house(limits=Limits(messages_a_second=1e9)) as (address, _):
        found = asyncio.run(fuzz(address, PROTOCOLS[protocol], 2_000, random.Random(1)))
        assert found["errors"] == found["messages"] == 2_000 == sum(found["codes"].values())
        assert found["goes_on"] and len(found["codes"]) >= 5
        # A busy machine may be late; whether it is shows the whole run.
        assert set(found["told_to_another_client"]) <= {"deadline_missed"}
