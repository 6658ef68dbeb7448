"""Finds and loads the background model of a live model, for the commands that run both."""

import pathlib

from interaction.background.reasoner_agent import ReasonerAgent, load_reasoner
from interaction.evaluation.talk import MakeAgent
from interaction.pretrained.store import find_released


def find_background(checkpoint: str) -> str | None:
    """The folder of the background model that is named like a live model with `_background`.

    Args:
      checkpoint: Name or folder of the live model.

    Returns:
      The folder, None if there is none.
    """
    live = pathlib.Path(checkpoint)
    name = f"{live.name}_background"
    try:
        return str(find_released(live.with_name(name) if live.is_dir() else name))
    except ValueError:
        return None


def agent_maker(name: str) -> MakeAgent:
    """Loads a background model; the result makes a new agent for each conversation."""
    reasoner = load_reasoner(name)
    return lambda toolbox: ReasonerAgent(reasoner, toolbox)
