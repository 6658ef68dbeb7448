"""Background agents, which reason during a conversation, and tools; see docs/background.md."""

from interaction.background.agent import BackgroundAgent, Event, MicroTurn
from interaction.background.batched_reasoner import BatchedReasoner
from interaction.background.demo_tools import Row, demo_tools
from interaction.background.reasoner_agent import Reasoner, ReasonerAgent, load_reasoner
from interaction.background.scripted import ScriptedAgent
from interaction.background.threaded import ThreadedAgent
from interaction.background.tool import Tool, tool
from interaction.background.toolbox import Toolbox

__all__ = [
    "BackgroundAgent",
    "BatchedReasoner",
    "Event",
    "MicroTurn",
    "Reasoner",
    "ReasonerAgent",
    "Row",
    "ScriptedAgent",
    "ThreadedAgent",
    "Tool",
    "Toolbox",
    "demo_tools",
    "load_reasoner",
    "tool",
]
