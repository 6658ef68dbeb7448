"""The short form of `experiments.fuzz_serve`."""

import asyncio
import random

from experiments.fuzz_serve import fuzz
from interaction.serve.limits import Limits
from tests.serve.clients import house


def test_every_damaged_message_gets_one_error() -> None:
    with house(limits=Limits(messages_a_second=1e9)) as (address, one):
        found = asyncio.run(fuzz(address, 2_000, random.Random(1)))
        assert found["errors"] == found["messages"] == 2_000 == sum(found["codes"].values())
        assert found["closed"] and not found["told_to_another_client"]
        assert len(found["codes"]) >= 5 and one.engine.missed == 0
