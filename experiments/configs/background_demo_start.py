"""The background model of the demo, first stage: short records, from the demo's backbone."""

from interaction.presets import background_demo
from interaction.training.train_config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="background_demo_start",
        objective="interaction.training.reasoning_loss:reasoning_objective",
        data="data/short_records",
        model=background_demo(),
        batch=16,
        steps=1_800,
        learning_rate=1e-3,
        warmup=100,
        schedule="constant",
        ema_decay=0.99,
        sample_every=0,
        init_from={"backbone": "runs/demo", "router_bias": "runs/demo"},
    )
