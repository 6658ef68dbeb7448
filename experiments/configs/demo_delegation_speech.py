"""The flow head of the demo, second stage: sessions with tool requests, which have more words."""

from interaction.training.train_config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="demo_delegation_speech",
        objective="interaction.training.speech_loss:speech_objective",
        data="data/delegation_sessions",
        batch=16,
        steps=5_200,
        learning_rate=1e-3,
        warmup=100,
        schedule="wsd",
        decay_fraction=0.6,
        weight_decay=0.02,
        ema_decay=0.995,
        sample_every=500,
        init_from={"speech": "runs/demo_speech"},
    )
