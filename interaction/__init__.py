"""Interaction models: listen, watch and speak at once, in micro-turns of 200 ms."""

from interaction.config import ModelConfig
from interaction.live import Conversation, InteractionModel, load
from interaction.stream import StreamState
from interaction.types import Chunk, Reply, Special

__all__ = [
    "Chunk",
    "Conversation",
    "InteractionModel",
    "ModelConfig",
    "Reply",
    "Special",
    "StreamState",
    "load",
]
