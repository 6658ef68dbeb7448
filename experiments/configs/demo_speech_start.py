"""The flow head alone, first leg: from text and its own last frames, on the first sessions."""

from interaction.training.config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="demo_speech_start",
        objective="interaction.training.speech:speech_objective",
        data="data/start",
        batch=4,
        steps=1_083,
        learning_rate=1.5e-3,
        warmup=200,
        schedule="constant",
        ema_decay=0.998,
        sample_every=500,
    )
