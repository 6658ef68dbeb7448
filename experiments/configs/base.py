"""The 1.0B model on one accelerator, to test data and recipe before a run on a pod."""

from interaction.presets import base
from interaction.training.train_config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="base",
        objective="interaction.training.conversation_loss:joint_objective",
        data="data/train",
        model=base(),
        batch=64,  # with 80 micro-turns per session 15,360 positions
        accumulate=4,
        steps=50_000,
        learning_rate=4e-4,
        warmup=1_000,
        schedule="wsd",
        beta2=0.95,
        weight_decay=0.1,
        save_every_s=600.0,
        sample_every=2_000,
    )
