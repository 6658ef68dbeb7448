"""The vocoder of the demo."""

from interaction.training.train_config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="demo_vocoder",
        objective="interaction.training.vocoder_loss:vocoder_objective",
        data="data/train",
        batch=6,
        steps=4_800,
        learning_rate=1.5e-3,
        warmup=100,
        schedule="wsd",
        decay_fraction=0.5,
        weight_decay=0.01,
        ema_decay=0.995,
        sample_every=0,
    )
