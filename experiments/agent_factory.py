"""The background model that belongs to a live one, for the commands that let both talk."""

import pathlib

from interaction.background.reasoner_agent import ReasonerAgent, load_reasoner
from interaction.evaluation.talk import MakeAgent
from interaction.pretrained.store import RELEASED


def find_background(checkpoint: str) -> str | None:
    """The released background model beside a live one: its name with `_background`.

    Args:
      checkpoint: Name or folder of the live model.
    """
    live = pathlib.Path(checkpoint)
    name = f"{live.name}_background"
    places = [live.with_name(name)] if live.is_dir() else [RELEASED / name]
    return next((str(place) for place in places if place.is_dir()), None)


def agent_maker(name: str) -> MakeAgent:
    """Loads a background model; each conversation gets an agent of its own on it."""
    reasoner = load_reasoner(name)
    return lambda toolbox: ReasonerAgent(reasoner, toolbox)
