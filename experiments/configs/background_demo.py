"""The background model of the demo, second stage: whole sessions, with late requests as well."""

from interaction.presets import background_demo
from interaction.training.train_config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="background_demo",
        objective="interaction.training.reasoning_loss:reasoning_objective",
        data="data/delegation",
        model=background_demo(),
        batch=8,
        steps=1_400,
        learning_rate=1e-3,
        warmup=50,
        schedule="wsd",
        decay_fraction=0.6,
        ema_decay=0.99,
        sample_every=0,
        init_from={
            "backbone": "runs/background_demo_start",
            "router_bias": "runs/background_demo_start",
        },
    )
