"""The conversation, last leg: a low learning rate that falls to nothing."""

from interaction.training.config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="demo_finish",
        objective="interaction.training.conversation:conversation_objective",
        data="data/train",
        seed=1,
        batch=8,
        steps=900,
        learning_rate=5e-4,
        warmup=50,
        schedule="wsd",
        decay_fraction=0.95,
        ema_decay=0.99,
        sample_every=0,
        init_from={"trunk": "runs/demo", "router_bias": "runs/demo"},
    )
