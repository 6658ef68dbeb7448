"""One micro-turn from PCM to PCM in PyTorch, eager, with key-value caches."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from experiments.baselines import torch_layers as layers, torch_model, torch_vocoder
from interaction.config import ModelConfig
from interaction.model.control_tokens import CONTROL, OPENING
from interaction.ops.mel import mel_filterbank
from interaction.types import Params, Special


class TorchStream:
    """A batch of sessions at the same micro-turn, with greedy text."""

    def __init__(self, config: ModelConfig, params: Params, sessions: int, seed: int = 0) -> None:
        """Starts sessions.

        Args:
          config: Model configuration.
          params: Parameters of the model, numpy arrays: backbone, speech, vocoder, router_bias.
          sessions: b.
          seed: Seed of the noise of the flow.
        """
        audio, speech = config.audio, config.speech
        self.config = config
        self.backbone = torch_model.port_backbone(params["backbone"], params["router_bias"], config)
        self.speech = layers.to_torch(params["speech"])
        self.vocoder = torch_vocoder.port_vocoder(params["vocoder"], config.vocoder, audio)
        self.filters = torch.tensor(mel_filterbank(audio.user, audio))
        self.window = torch.hann_window(audio.user.window)
        self.generator = torch.Generator().manual_seed(seed)
        self.caches = torch_model.Caches(self.backbone, sessions, config)
        self.tail = torch.zeros(sessions, audio.user.window - audio.user.hop)
        self.user_transcript = torch.full((sessions, config.audio_positions), Special.NONE)
        self.text = torch.full((sessions,), Special.SILENT)
        self.inside = torch.zeros(sessions, dtype=torch.bool)
        self.tokens = torch.full((sessions, speech.token_window), Special.SILENT)
        self.mel = torch.full((sessions, audio.speech_frames, audio.mels), speech.mel_floor)
        self.fresh_vocoder = torch_vocoder.open_stream(sessions, config.vocoder, audio)
        self.vocoder_stream = self.fresh_vocoder

    @torch.inference_mode()
    def step(self, pcm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Runs a micro-turn.

        Args:
          pcm: float32[b, turn_samples], the user's PCM.

        Returns:
          The model's PCM float32[b, turn_samples], and text-out tokens int64[b].
        """
        cfg, audio = self.config, self.config.audio
        joined = torch.cat([self.tail, torch.from_numpy(pcm)], dim=1)
        self.tail = joined[:, -self.tail.shape[1] :]
        user = layers.log_mel(joined, self.filters, self.window, audio.user)
        stride = audio.user.hop // audio.speech.hop
        self_audio = layers.dmel_bins(self.mel[:, stride - 1 :: stride], audio)
        inputs = torch_model.Inputs(
            user=layers.dmel_bins(user, audio)[:, None],
            self_audio=self_audio[:, None],
            self_audio_gain=torch.ones(len(pcm), 1),
            user_transcript=self.user_transcript[:, None],
            last=self.text[:, None],
        )
        logits, user_transcript, hidden = torch_model.step(self.backbone, self.caches, cfg, inputs)
        self.user_transcript = user_transcript[:, 0].argmax(-1)
        token = logits[:, 0].argmax(-1)
        self.text = token
        return self.speak(hidden[:, 0], self.aloud(token)).numpy(), token.numpy()

    def aloud(self, token: Tensor) -> Tensor:
        """The spoken tokens int64[b] of `token` int64[b], see `model.control_tokens`."""
        word = token >= Special.COUNT
        unspoken = (self.inside & word) | torch.isin(token, torch.tensor(CONTROL))
        self.inside = torch.isin(token, torch.tensor(OPENING)) | (self.inside & word)
        return torch.where(unspoken, Special.SILENT, token)

    def speak(self, hidden: Tensor, token: Tensor) -> Tensor:
        """PCM [b, turn_samples] of a micro-turn with the spoken tokens `token` int64[b]."""
        cfg, audio = self.config, self.config.audio
        before, silent = self.tokens[:, -1] == Special.SILENT, token == Special.SILENT
        self.tokens = torch.cat([self.tokens[:, 1:], token[:, None]], dim=1)
        if silent.all():
            self.mel = torch.full_like(self.mel, cfg.speech.mel_floor)
        else:
            noise = torch.randn(self.mel.shape, generator=self.generator)
            frames = self.generate_mel(hidden, noise)
            self.mel = torch.where(silent[:, None, None], cfg.speech.mel_floor, frames)
        idle = before & silent
        if idle.all():
            self.vocoder_stream = self.fresh_vocoder
            return torch.zeros(len(token), audio.turn_samples)
        stream = dataclasses.replace(self.vocoder_stream, blocks=list(self.vocoder_stream.blocks))
        pcm = torch_vocoder.vocoder_step(self.vocoder, stream, self.mel, cfg.vocoder, audio)
        if idle.any():
            stream = torch_vocoder.choose(idle, self.fresh_vocoder, stream)
        self.vocoder_stream = stream
        late = torch.arange(audio.turn_samples) < cfg.vocoder.delay_frames * audio.speech.hop
        quiet = torch.where(late, before[:, None], silent[:, None])
        return pcm.masked_fill(quiet, 0.0).clamp(-1.0, 1.0)

    def generate_mel(self, hidden: Tensor, noise: Tensor) -> Tensor:
        """Log10 mel [b, speech_frames, m], by Euler steps from `noise` of the same shape."""
        cfg = self.config.speech
        prefix = self.mel[:, -cfg.prefix_frames :].clamp_min(cfg.mel_floor)
        prefix = (prefix - cfg.mel_mean) / cfg.mel_std
        features, guess = layers.speech_condition(
            self.speech["condition"], hidden, self.tokens, prefix, noise.shape[1]
        )
        point = cfg.temperature * noise
        for number in range(cfg.flow_steps):
            time = torch.full(noise.shape[:1], number / cfg.flow_steps)
            estimate = layers.flow_estimate(
                self.speech["flow"], point, time, features, guess, self.config
            )
            point = point + (estimate - point) / (cfg.flow_steps - number)
        return (point * cfg.mel_std + cfg.mel_mean).clamp_min(cfg.mel_floor)
