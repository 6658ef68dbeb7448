"""Named model sizes, and the background models beside them.

Long layers see a session's newest `long_window` positions and its first 16. Audio alone takes 15
positions a second in `demo` and `base`, 25 in `small` and larger, whose window of 32,768 is 22
minutes of talk.
"""

import dataclasses

from interaction.config import (
    AudioConfig,
    ModelConfig,
    SpectrumConfig,
    SpeechConfig,
    TransformerConfig,
    VocoderConfig,
)

# The front end of the Inkling models: a frame of 100 ms every 50 ms, and each is a position.
_INKLING_AUDIO = AudioConfig(
    user=SpectrumConfig(hop=800, window=1_600, n_fft=1_600, fmin=0.0, fmax=8_000.0)
)
_INKLING_VISION = (128, 320, 4_800)


def tiny() -> ModelConfig:
    """For tests: every part as small as possible, with two groups of layers."""
    return ModelConfig(
        audio=_INKLING_AUDIO,
        transformer=TransformerConfig(
            dim=32,
            layers=4,
            heads=2,
            kv_heads=1,
            head_dim=16,
            experts=4,
            expert_ffn=16,
            window=20,
            long_window=40,
            long_every=2,
            relative_states=4,
            relative_extent=40,
        ),
        speech=SpeechConfig(
            dim=16, layers=1, condition_dim=32, feature_dim=8, token_dim=8, flow_steps=2
        ),
        vocoder=VocoderConfig(dim=16, layers=1),
        text_slots=2,
        patches=1,
        audio_positions=4,
        vision_widths=(16, 16, 32),
    )


def demo() -> ModelConfig:
    """The size of the model that runs on two CPU cores."""
    return ModelConfig(trained_on_text=False, trained_on_frames=False)


def base() -> ModelConfig:
    """1.0B parameters, 0.26B active: fits one accelerator, training included."""
    return ModelConfig(
        transformer=TransformerConfig(
            dim=1_024,
            layers=16,
            heads=8,
            kv_heads=4,
            sliding_kv_heads=4,
            head_dim=128,
            experts=32,
            experts_per_token=4,
            shared_experts=1,
            expert_ffn=512,
            window=512,
            long_window=32_768,
            long_every=4,
            relative_extent=1_024,
            dtype="bfloat16",
            remat="all but products",
        ),
        speech=SpeechConfig(
            dim=256,
            layers=4,
            condition_dim=1_024,
            feature_dim=128,
            token_dim=128,
            token_window=16,
        ),
        vocoder=VocoderConfig(dim=256, layers=8),
        vocab=32_768,
        text_slots=8,
        patches=16,
        vision_widths=(64, 128, 512),
    )


def inkling_small() -> ModelConfig:
    """Inkling-Small as Thinking Machines Lab released it, with the parts that make it talk.

    263.7B parameters, 12.0B active, and 0.2B that are added.
    """
    return _large(
        TransformerConfig(
            dim=4_096, layers=42, dense_layers=2, heads=32, expert_ffn=2_048, dense_ffn=16_384
        ),
        divisor=16.0,
    )


def inkling() -> ModelConfig:
    """Inkling as Thinking Machines Lab released it, with the parts that make it talk.

    947.1B parameters, 41.1B active, and 0.2B that are added.
    """
    config = _large(
        TransformerConfig(
            dim=6_144, layers=66, dense_layers=2, heads=64, expert_ffn=3_072, dense_ffn=24_576
        ),
        divisor=24.0,
    )
    transformer = dataclasses.replace(config.decoder, sliding_kv_heads=16)
    return dataclasses.replace(config, transformer=transformer)


def small() -> ModelConfig:
    """276B parameters, 12B active, as announced: `inkling_small` with experts in all layers."""
    return _large(TransformerConfig(dim=4_096, layers=42, heads=32, expert_ffn=2_048), divisor=16.0)


def medium() -> ModelConfig:
    """665B parameters, 28B active.

    A size of this project: nothing is known about the announced larger models. It is wider more
    than deeper and keeps the number of KV heads, so that a session's state grows with depth alone.
    """
    return _large(TransformerConfig(dim=6_144, layers=54, heads=48, expert_ffn=2_560), divisor=24.0)


def large() -> ModelConfig:
    """1.30T parameters, 54B active: the size after `medium`, by the same rules."""
    return _large(TransformerConfig(dim=8_192, layers=66, heads=64, expert_ffn=3_072), divisor=32.0)


def background_demo() -> ModelConfig:
    """Background model of `demo`: the same transformer, with a window of 29 seconds.

    The same size lets its training start from the weights of `demo`. Its training sessions last 16
    seconds: with longer windows it reads worse after a minute of talk, not better.
    """
    transformer = dataclasses.replace(demo().decoder, window=192, long_window=432)
    return _beside(demo(), transformer)


def background_base() -> ModelConfig:
    """4.2B parameters, background model of `base`: twice as wide, one and a half times as deep."""
    transformer = dataclasses.replace(
        base().decoder,
        dim=2_048,
        layers=24,
        heads=16,
        expert_ffn=768,
        long_window=131_072,
    )
    return _beside(base(), transformer)


def background_small() -> ModelConfig:
    """Background model of `small`: the transformer of `medium`, with a window of 87 minutes."""
    transformer = dataclasses.replace(medium().decoder, long_window=131_072)
    return _beside(small(), transformer)


def _large(transformer: TransformerConfig, divisor: float) -> ModelConfig:
    """A size for many accelerators, from the fields in which these differ."""
    transformer = dataclasses.replace(
        transformer,
        kv_heads=8,
        sliding_kv_heads=8,
        head_dim=128,
        experts=256,
        experts_per_token=6,
        window=512,
        long_window=32_768,
        long_every=6,
        relative_extent=1_024,
        logits_divisor=divisor,
        dtype="bfloat16",
        remat="everything",
    )
    return ModelConfig(
        audio=_INKLING_AUDIO,
        transformer=transformer,
        speech=SpeechConfig(
            dim=1_024,
            layers=6,
            condition_dim=2_048,
            feature_dim=256,
            token_dim=256,
            token_window=16,
        ),
        vocoder=VocoderConfig(dim=512, layers=8),
        vocab=201_024,
        text_slots=8,
        patches=36,
        audio_positions=4,
        vision_widths=_INKLING_VISION,
    )


def _beside(live: ModelConfig, transformer: TransformerConfig) -> ModelConfig:
    """A model without speech that reads the record of `live`: its positions and its vocabulary.

    Its speech parts are small because nothing runs them. It reads the words of the live model's
    speech, not the audio.
    """
    unused = SpeechConfig(
        dim=16,
        layers=1,
        condition_dim=256,
        condition_layers=1,
        feature_dim=16,
        token_dim=16,
        token_window=16,
    )
    return dataclasses.replace(
        live,
        transformer=transformer,
        speech=unused,
        vocoder=VocoderConfig(dim=16, layers=1),
        self_audio=False,
    )


PRESETS = {
    "tiny": tiny,
    "demo": demo,
    "base": base,
    "inkling_small": inkling_small,
    "inkling": inkling,
    "small": small,
    "medium": medium,
    "large": large,
    "background_demo": background_demo,
    "background_base": background_base,
    "background_small": background_small,
}
