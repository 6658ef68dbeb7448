"""The background model of the demo: it learns to reason from what the demo has learnt to hear."""

from interaction.presets import background_demo
from interaction.training.config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="background_demo",
        objective="interaction.training.reasoning:reasoning_objective",
        data="data/delegation",
        model=background_demo(),
        batch=16,
        steps=2_500,
        learning_rate=1e-3,
        warmup=100,
        schedule="wsd",
        decay_fraction=0.5,
        ema_decay=0.995,
        sample_every=0,
        init_from={
            "trunk": "interaction/checkpoints/demo",
            "router_bias": "interaction/checkpoints/demo",
        },
    )
