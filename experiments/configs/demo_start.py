"""The backbone of the demo, first stage."""

from interaction.training.train_config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="demo_start",
        objective="interaction.training.conversation_loss:conversation_objective",
        data="data/train",
        batch=8,
        steps=2_500,
        learning_rate=1.5e-3,
        warmup=200,
        schedule="constant",
        ema_decay=0.995,
        sample_every=500,
    )
