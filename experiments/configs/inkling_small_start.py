"""Inkling-Small on a v5p-512 slice, first stage: the new parts, with the released layers frozen.

Trained are the flow head, the table of self audio, the transcript's gain, and the embeddings and
the text head, in which the control tokens have rows that no released token uses.
"""

from interaction.presets import inkling_small
from interaction.training.train_config import TrainConfig

_LAYERS = ("first_dense", "first_sliding", "first_long", "sliding", "long")
_FRONT = ("audio_in/user_table", "audio_in/norm", "video_in")


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="inkling_small_start",
        objective="interaction.training.conversation_loss:joint_objective",
        data="/bucket/data/train",
        model=inkling_small(),
        workdir="/bucket/runs/inkling_small_start",
        batch=256,  # one session per chip
        mesh={"fsdp": 8, "expert": 32},
        steps=5_000,
        learning_rate=1e-3,
        warmup=500,
        schedule="wsd",
        beta2=0.95,
        save_every_s=900.0,
        sample_every=0,  # one device cannot hold the model, which samples need
        init_from=dict.fromkeys(("backbone", "router_bias"), "/bucket/backbones/inkling_small"),
        frozen=(*(f"backbone/{part}" for part in (*_LAYERS, *_FRONT)), "router_bias"),
    )
