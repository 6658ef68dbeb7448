"""The examples of docs/serving.md, with the bundled client and an echo."""

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


EXAMPLES = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.M | re.S)
CLIENT = EXAMPLES[0].splitlines()[0]


@pytest.mark.parametrize(
    ("code", "first", "sound"),
    [
        (EXAMPLES[0], "session.started", "session.output_audio.delta"),
        (f"{CLIENT}\n{EXAMPLES[1]}", "session.created", "response.output_audio.delta"),
    ],
)
def test_the_example_runs(code: str, first: str, sound: str, capsys: pytest.CaptureFixture) -> None:
    names: dict[str, Any] = {"openai": openai}
    names["base64_of_pcm"] = base64.b64encode(TONE.tobytes()).decode()

    async def run(address: str) -> None:
        body = textwrap.indent(code.replace("localhost:8123", address), "    ")
        exec(f"async def example():\n{body}", names)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(names["example"](), 3.0)

    with house(make_agent=lambda _: ScriptedAgent({})) as (address, _):
        asyncio.run(run(address))
    printed = capsys.readouterr().out.split()
    assert printed[0] == first and printed.count(sound) >= 5
