"""The flow head alone, from text and its own last frames: it needs no trunk to learn to speak."""

from interaction.training.config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="demo_speech",
        objective="interaction.training.speech:speech_objective",
        data="data/train",
        batch=8,
        steps=2_000,
        learning_rate=7e-4,
        warmup=200,
        schedule="wsd",
        decay_fraction=0.4,
        ema_decay=0.995,
    )
