"""The example of docs/serving.md, with the bundled client and an echo."""

import asyncio
import base64
import pathlib
import re
import textwrap
from typing import Any

import openai
import pytest

from interaction.background.scripted import ScriptedAgent
from tests.serve.clients import TONE, house

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"


def test_the_example_runs(capsys: pytest.CaptureFixture) -> None:
    code = re.search(r"^```python\n(.*?)^```$", DOCS.read_text(), re.M | re.S)[1]
    names: dict[str, Any] = {"openai": openai}
    names["base64_of_pcm"] = base64.b64encode(TONE.tobytes()).decode()

    async def run(address: str) -> None:
        body = textwrap.indent(code.replace("localhost:8123", address), "    ")
        exec(f"async def example():\n{body}", names)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(names["example"](), 2.0)

    with house(make_agent=lambda _: ScriptedAgent({})) as (address, _):
        asyncio.run(run(address))
    printed = capsys.readouterr().out.split()
    assert printed[0] == "session.started" and printed.count("session.output_audio.delta") >= 5
