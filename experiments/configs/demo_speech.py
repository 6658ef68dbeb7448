"""The flow head alone, second leg: it needs no trunk to learn to speak."""

from interaction.training.config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="demo_speech",
        objective="interaction.training.speech:speech_objective",
        data="data/train",
        batch=8,
        steps=1_000,
        learning_rate=1.5e-3,
        warmup=20,
        schedule="wsd",
        decay_fraction=0.6,
        ema_decay=0.99,
        init_from={"speech": "runs/demo_speech_start"},
    )
