"""Inkling-Small on a v5p-512 slice, second stage: all parameters."""

from interaction.presets import inkling_small
from interaction.training.train_config import TrainConfig

_START = "/bucket/runs/inkling_small_start"


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="inkling_small",
        objective="interaction.training.conversation_loss:joint_objective",
        data="/bucket/data/train",
        model=inkling_small(),
        workdir="/bucket/runs/inkling_small",
        batch=256,  # one session per chip
        mesh={"fsdp": 8, "expert": 32},
        steps=50_000,
        learning_rate=5e-5,
        warmup=1_000,
        schedule="wsd",
        beta2=0.95,
        weight_decay=0.1,
        save_every_s=900.0,  # a checkpoint has 4.2 TB
        sample_every=0,  # one device cannot hold the model, which samples need
        init_from=dict.fromkeys(("backbone", "router_bias", "speech"), _START),
    )
