"""Interaction models: listen, watch and speak at once, in micro-turns of 200 ms."""

from interaction.config import ModelConfig
from interaction.engine.conversation import Conversation
from interaction.engine.engine import Engine
from interaction.engine.live_model import InteractionModel, load
from interaction.model.session_state import StreamState
from interaction.types import Chunk, Reply, Special

__all__ = [
    "Chunk",
    "Conversation",
    "Engine",
    "InteractionModel",
    "ModelConfig",
    "Reply",
    "Special",
    "StreamState",
    "load",
]
