"""The preset `small` (274B) on a v5p-2048 slice of 1,024 chips, see `docs/tpu_pods.md`.

Peak learning rate, betas, weight decay and warm-up are those of DeepSeek-V3 (arXiv 2412.19437),
which has a similar sparsity.
"""

from interaction.presets import small
from interaction.training.train_config import TrainConfig


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        name="small",
        objective="interaction.training.conversation_loss:joint_objective",
        data="/bucket/data/train",
        model=small(),
        workdir="/bucket/runs/small",
        batch=1_024,  # one session per chip; with 1,024 micro-turns (3.4 minutes) 3.1M positions
        mesh={"fsdp": 32, "expert": 32},
        steps=100_000,
        learning_rate=2.2e-4,
        warmup=2_000,
        schedule="wsd",
        beta2=0.95,
        weight_decay=0.1,
        save_every_s=900.0,  # a checkpoint has 4.4 TB
        sample_every=0,  # one device cannot hold the model, which samples need
    )
