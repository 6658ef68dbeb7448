"""Inkling-Small on a v5p-64 slice, second stage with adapters: for teams that have one slice.

Attention and shared experts move by adapters of low rank; the flow head is trained whole.
"""

from interaction.presets import inkling_small
from interaction.training.train_config import TrainConfig

_START = "/bucket/runs/inkling_small_start"


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="inkling_small_lora",
        objective="interaction.training.conversation_loss:joint_objective",
        data="/bucket/data/train",
        model=inkling_small(),
        workdir="/bucket/runs/inkling_small_lora",
        batch=32,  # one session per chip
        mesh={"fsdp": 4, "expert": 8},
        steps=50_000,
        learning_rate=2e-4,
        warmup=500,
        schedule="wsd",
        beta2=0.95,
        save_every_s=900.0,
        sample_every=0,  # one device cannot hold the model, which samples need
        init_from=dict.fromkeys(("backbone", "router_bias", "speech"), _START),
        frozen=("backbone", "router_bias"),
        lora_rank=32,
    )
