"""Named model sizes."""

from interaction.config import (
    ModelConfig,
    SpeechConfig,
    TransformerConfig,
    VocoderConfig,
)


def tiny() -> ModelConfig:
    """For tests: every part, as small as it goes, with two groups of layers."""
    return ModelConfig(
        transformer=TransformerConfig(
            dim=32,
            layers=4,
            heads=2,
            kv_heads=1,
            head_dim=16,
            experts=4,
            expert_ffn=16,
            shared_ffn=32,
            window=20,
            long_window=40,
            long_every=2,
        ),
        speech=SpeechConfig(
            dim=16, layers=1, condition_dim=32, feature_dim=8, token_dim=8, flow_steps=2
        ),
        vocoder=VocoderConfig(dim=16, layers=1),
        text_slots=2,
        patches=1,
        frame_dim=16,
    )


def demo() -> ModelConfig:
    """Ships trained; runs on two CPU cores."""
    return ModelConfig()


PRESETS = {"tiny": tiny, "demo": demo}
