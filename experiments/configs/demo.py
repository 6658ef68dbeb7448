"""The backbone of the demo, second stage: when to speak and what to say."""

from interaction.training.train_config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="demo",
        objective="interaction.training.conversation_loss:conversation_objective",
        data="data/train",
        batch=8,
        steps=8_500,
        learning_rate=1.5e-3,
        warmup=100,
        schedule="wsd",
        decay_fraction=0.5,
        ema_decay=0.997,
        sample_every=500,
        init_from={"backbone": "runs/demo_start", "router_bias": "runs/demo_start"},
    )
