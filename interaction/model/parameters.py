"""Fresh parameters of a model."""

import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.model.positions import modules
from interaction.model.transformer import init_layers
from interaction.model.turn_inputs import TurnInputs, assemble, silent_outputs
from interaction.modules import vocoder
from interaction.modules.speech_out import FlowNet, SpeechCondition
from interaction.types import Array, Params


def init_model_params(config: ModelConfig, key: Array) -> Params:
    """Fresh parameters of all parts of a model.

    Args:
      config: Model configuration.
      key: Typed PRNG key [].

    Returns:
      float32 arrays under backbone, router_bias, speech and vocoder.
    """
    backbone_key, vocoder_key = jax.random.split(key)
    backbone, speech, bias = init_params(config, backbone_key)
    mel = jnp.zeros((1, config.audio.speech_frames, config.audio.mels))
    voice = vocoder.Vocoder(config.vocoder, config.audio).init(vocoder_key, mel)["params"]
    return {"backbone": backbone, "router_bias": bias, "speech": speech, "vocoder": voice}


def init_params(config: ModelConfig, key: Array) -> tuple[Params, Params, Array]:
    """Fresh parameters of a model without those of the vocoder.

    Args:
      config: Model configuration.
      key: Typed PRNG key [].

    Returns:
      float32 arrays of the backbone and of the flow head, and the selection bias float32[l, e] of
      the routers.
    """
    cfg = config.transformer
    keys = iter(jax.random.split(key, 6))
    audio_in, video_in, text_in, heads = modules(config)
    turn = _blank_turn(config)
    x = jnp.zeros((1, 1, cfg.dim))
    frames = jnp.zeros((1, 2, config.frame_size, config.frame_size, 3))
    audio = jnp.zeros((1, 1, config.audio_positions, cfg.dim))
    backbone = {
        "audio_in": audio_in(config).init(
            next(keys), turn.user, turn.self_audio, turn.self_audio_gain
        )["params"],
        "video_in": video_in(config).init(next(keys), frames)["params"],
        "text_in": text_in(config).init(next(keys), None, turn.user_transcript, turn.last)[
            "params"
        ],
        **init_layers(config, next(keys)),
        "heads": heads(config).init(next(keys), audio, x)["params"],
    }
    return (
        backbone,
        init_speech(config, next(keys)),
        jnp.zeros((cfg.layers, cfg.experts)),
    )


def init_speech(config: ModelConfig, key: Array) -> Params:
    """Fresh parameters of the flow head.

    Args:
      config: Model configuration.
      key: Typed PRNG key [].

    Returns:
      float32 arrays under condition and flow.
    """
    prefix = jnp.zeros((1, config.speech.prefix_frames, config.audio.mels))
    tokens = jnp.zeros((1, config.speech.token_window), jnp.int32)
    hidden = jnp.zeros((1, config.transformer.dim))
    condition_key, flow_key = jax.random.split(key)
    (features, guess), params = SpeechCondition(config).init_with_output(
        condition_key, hidden, tokens, prefix
    )
    flow = FlowNet(config).init(flow_key, guess, jnp.zeros(1), features, guess)
    return {"condition": params["params"], "flow": flow["params"]}


def _blank_turn(config: ModelConfig) -> TurnInputs:
    """One micro-turn without text or frame, for the shapes of a model's inputs."""
    user = jnp.zeros((1, 1, config.audio.user_frames, config.audio.mels))
    return assemble(config, user, silent_outputs(config, 1), None, jnp.ones((1, 1)))
