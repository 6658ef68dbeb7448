"""The conversation, first leg: on the first part of the sessions, while the rest is being made."""

from interaction.training.config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="demo_start",
        objective="interaction.training.conversation:conversation_objective",
        data="data/start",
        batch=8,
        steps=1_000,
        learning_rate=1.5e-3,
        warmup=200,
        schedule="constant",
        ema_decay=0.995,
        sample_every=500,
    )
