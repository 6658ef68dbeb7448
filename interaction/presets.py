"""Named model sizes, and the background models beside them.

Each window is the longest for its ring: with one more key `ring_capacity` would double the ring.
Audio alone takes 15 positions a second: a ring of 2,048 holds 2.2 minutes of talk, one of 32,768
holds 36 minutes, one of 131,072 holds 2.4 hours.
"""

import dataclasses

from interaction.config import (
    PREFILL_TURNS,
    ModelConfig,
    SpeechConfig,
    TransformerConfig,
    VocoderConfig,
)


def tiny() -> ModelConfig:
    """For tests: every part as small as possible, with two groups of layers."""
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
    """12M parameters: the trained model that is released; runs on two CPU cores."""
    return ModelConfig(trained_on_text=False, trained_on_frames=False)


def base() -> ModelConfig:
    """1.0B parameters, 0.27B active: fits one accelerator, training included."""
    return _windows(
        ModelConfig(
            transformer=TransformerConfig(
                dim=1_024,
                layers=16,
                heads=8,
                kv_heads=4,
                head_dim=128,
                experts=32,
                experts_per_token=4,
                expert_ffn=512,
                shared_ffn=512,
                long_every=4,
                rope_base=1e6,
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
            frame_dim=128,
        ),
        sliding=2_048,
        long=32_768,
    )


def small() -> ModelConfig:
    """274B parameters, 12B active: about the size of the announced model (276B, 12B).

    The layers are few and wide, because each layer has costs besides its weights; every size is a
    multiple of 256. The text head and the transcript head both count as active: with them a
    vocabulary of 65,536 stays within 12B.
    """
    return _large(
        TransformerConfig(dim=4_096, layers=42, heads=32, expert_ffn=2_048, shared_ffn=2_048),
        patches=36,
    )


def medium() -> ModelConfig:
    """661B parameters, 29B active.

    A size of this project: nothing is known about the announced larger models. Each size has two
    to two and a half times the active parameters of the one before and the same sparsity: 8 of 256
    experts whose hidden width is at most half of `dim`, and a shared expert. Sizes grow in width
    more than in depth and keep the number of KV heads, so a session's state grows with depth
    alone. The weights take a third to two fifths of the HBM of a slice: of tpu7x-16 for `small`,
    tpu7x-32 here, tpu7x-64 for `large`.
    """
    return _large(
        TransformerConfig(dim=6_144, layers=54, heads=48, expert_ffn=2_560, shared_ffn=2_560),
        patches=64,
    )


def large() -> ModelConfig:
    """1.3T parameters, 56B active: the size after `medium`, by the same rules."""
    return _large(
        TransformerConfig(dim=8_192, layers=66, heads=64, expert_ffn=3_072, shared_ffn=3_072),
        patches=64,
    )


def background_demo() -> ModelConfig:
    """Background model of `demo`: the same transformer, with a window of 29 seconds.

    The same size lets its training start from the weights of `demo`. Its training sessions last 16
    seconds: with rings of 2,048 it reads worse after a minute of talk, not better.
    """
    return _windows(
        _beside(demo(), demo().transformer), sliding=256, long=512, at_once=PREFILL_TURNS
    )


def background_base() -> ModelConfig:
    """4.2B parameters, background model of `base`: twice as wide, one and a half times as deep."""
    transformer = dataclasses.replace(
        base().transformer, dim=2_048, layers=24, heads=16, expert_ffn=768, shared_ffn=768
    )
    return _windows(
        _beside(base(), transformer), sliding=4_096, long=131_072, at_once=PREFILL_TURNS
    )


def background_small() -> ModelConfig:
    """661B parameters, background model of `small`: the transformer of `medium`."""
    return _windows(
        _beside(small(), medium().transformer), sliding=4_096, long=131_072, at_once=PREFILL_TURNS
    )


def _large(transformer: TransformerConfig, patches: int) -> ModelConfig:
    """A size for many accelerators, from the fields in which these differ."""
    transformer = dataclasses.replace(
        transformer,
        kv_heads=8,
        head_dim=128,
        experts=256,
        experts_per_token=8,
        long_every=6,
        rope_base=1e6,
        dtype="bfloat16",
        remat="everything",
    )
    config = ModelConfig(
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
        vocab=65_536,
        text_slots=8,
        patches=patches,
        frame_dim=256,
    )
    return _windows(config, sliding=2_048, long=32_768)


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


def _windows(config: ModelConfig, sliding: int, long: int, at_once: int = 1) -> ModelConfig:
    """The config with the longest windows for rings of `sliding` and `long` slots, powers of two.

    The windows leave room for the `at_once` micro-turns that are written before the oldest of them
    is read.
    """
    spare = at_once * config.turn_span - 1
    transformer = dataclasses.replace(
        config.transformer, window=sliding - spare, long_window=long - spare
    )
    return dataclasses.replace(config, transformer=transformer)


PRESETS = {
    "tiny": tiny,
    "demo": demo,
    "base": base,
    "small": small,
    "medium": medium,
    "large": large,
    "background_demo": background_demo,
    "background_base": background_base,
    "background_small": background_small,
}
