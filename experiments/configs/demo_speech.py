"""The flow head of the demo, first stage, trained without the backbone."""

from interaction.training.train_config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="demo_speech",
        objective="interaction.training.speech_loss:speech_objective",
        data="data/train",
        batch=16,
        steps=20_000,
        learning_rate=1.5e-3,
        warmup=100,
        schedule="wsd",
        decay_fraction=0.5,
        weight_decay=0.02,
        ema_decay=0.997,
        sample_every=1_000,
    )
