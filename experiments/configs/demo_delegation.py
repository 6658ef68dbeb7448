"""The backbone of the demo, third stage: which requests to delegate, and how to say results."""

from interaction.training.train_config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="demo_delegation",
        objective="interaction.training.conversation_loss:conversation_objective",
        data="data/delegation_sessions",
        batch=8,
        steps=5_200,
        learning_rate=1e-3,
        warmup=100,
        schedule="wsd",
        decay_fraction=0.5,
        ema_decay=0.997,
        sample_every=500,
        init_from={"backbone": "runs/demo", "router_bias": "runs/demo"},
    )
