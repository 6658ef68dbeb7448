"""The vocoder in PyTorch: a convolutional network controls pulses, noise and their filters."""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.baselines.torch_layers import Params, gelu, to_torch
from interaction.config import AudioConfig, VocoderConfig
from interaction.modules.vocoder import envelope_cepstra


@dataclasses.dataclass
class VocoderStream:
    """State of the vocoder between micro-turns; the step replaces the fields."""

    mel: Tensor  # [b, 2, m], standardised
    blocks: list[Tensor]  # [b, dim, kernel - 1] of each layer
    pitch: Tensor  # [b], Hz
    phase: Tensor  # float64[b], cycles
    clock: Tensor  # int64[b], frames so far
    cepstra: Tensor  # [b, 2, order]
    tail: Tensor  # [b, n_fft - hop]


def open_stream(sessions: int, cfg: VocoderConfig, audio: AudioConfig) -> VocoderStream:
    """The state at the start of streams."""
    cepstra = torch.zeros(sessions, 2, cfg.order)
    cepstra[..., 0] = -18.0
    return VocoderStream(
        mel=torch.zeros(sessions, 2, audio.mels),
        blocks=[torch.zeros(sessions, cfg.dim, cfg.kernel - 1) for _ in range(cfg.layers)],
        pitch=torch.full((sessions,), 170.0),
        phase=torch.zeros(sessions, dtype=torch.float64),
        clock=torch.zeros(sessions, dtype=torch.int64),
        cepstra=cepstra,
        tail=torch.zeros(sessions, cfg.n_fft - audio.speech.hop),
    )


def choose(pick: Tensor, yes: VocoderStream, no: VocoderStream) -> VocoderStream:
    """Rows of `yes` where bool[b] `pick` is true, and of `no` elsewhere."""

    def rows(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(pick.view(-1, *[1] * (one.ndim - 1)), one, other)

    fields = {
        field.name: rows(getattr(yes, field.name), getattr(no, field.name))
        for field in dataclasses.fields(no)
        if field.name != "blocks"
    }
    blocks = [rows(one, other) for one, other in zip(yes.blocks, no.blocks, strict=True)]
    return VocoderStream(blocks=blocks, **fields)


def port_vocoder(params: dict, cfg: VocoderConfig, audio: AudioConfig) -> Params:
    """The parameters as tensors, and constants."""
    noise = np.random.default_rng(0).standard_normal((128, audio.speech.hop))
    level = -2.0 * math.log(10.0)
    start = torch.zeros(2, cfg.order)
    start[:, :2] = torch.tensor([[level + 0.2, 0.7], [level - 1.5, -1.5]])
    return {
        **to_torch(params),
        "noise": torch.tensor(noise.astype(np.float32)),  # one period of the noise source
        "envelope": torch.tensor(envelope_cepstra(cfg.order, audio)),
        "start": start,
        "range": 0.2 / (1 + torch.arange(cfg.order)) ** 0.75,
    }


def _controls(p: Params, stream: VocoderStream, mel: Tensor) -> tuple[Tensor, Tensor]:
    """Pitch logits [b, frames, bins] and cepstra [b, frames, 2, order]."""
    frames = mel.shape[1]
    mel = (mel.clamp_min(-5.0) + 2.0) / 1.2
    envelope = mel @ p["envelope"]
    mel = torch.cat([stream.mel, mel], dim=1)
    stream.mel = mel[:, frames:]
    seen = torch.cat([mel[:, i : i + frames] for i in range(3)], dim=-1)
    x = seen @ p["input"] + p["input_bias"]
    for layer, past in enumerate(stream.blocks):
        joined = torch.cat([past, x.transpose(1, 2)], dim=2)
        stream.blocks[layer] = joined[:, :, frames:]
        kernel = p["conv"][layer].T[:, None]
        y = F.conv1d(joined, kernel, groups=kernel.shape[0]).transpose(1, 2)
        y = F.layer_norm(y, y.shape[-1:], p["norm"][layer], eps=1e-5)
        x = x + gelu(y @ p["up"][layer] + p["up_bias"][layer]) @ p["down"][layer]
    x = F.layer_norm(x, x.shape[-1:], p["out_norm"], eps=1e-5)
    cepstra = (x @ p["filter"] + p["filter_bias"]).unflatten(-1, (2, -1)) * p["range"]
    return x @ p["pitch"] + p["pitch_bias"], cepstra + envelope[:, :, None] + p["start"]


def _decode_pitch(logits: Tensor, cfg: VocoderConfig) -> Tensor:
    """Pitch [b, frames], Hz: mean of log pitch over the best class and two on either side."""
    classes = torch.arange(cfg.pitch_bins)
    far = (classes - logits.argmax(-1, keepdim=True)).abs() > 2
    weights = logits.masked_fill(far, -math.inf).softmax(-1)
    grid = torch.linspace(math.log(cfg.pitch_low), math.log(cfg.pitch_high), cfg.pitch_bins)
    return (weights * grid).sum(-1).exp()


def _pulses(stream: VocoderStream, pitch: Tensor, hop: int, rate: int) -> Tensor:
    """Band-limited pulses of unit power [b, frames, hop] at `pitch` [b, frames], Hz."""
    before = torch.cat([stream.pitch[:, None], pitch[:, :-1]], dim=1)
    advance = ((before + pitch) * (0.5 * hop / rate) * 2.0**20).round().double() / 2.0**20
    ends = stream.phase[:, None] + advance.cumsum(1)
    starts = ((ends - advance) % 1.0).float()
    stream.pitch, stream.phase = pitch[:, -1], ends[:, -1] % 1.0
    t = torch.arange(1, hop + 1) / hop
    before, pitch = before[..., None], pitch[..., None]
    hertz = before + (pitch - before) * t
    cycles = starts[..., None] + (before + 0.5 * (pitch - before) * t) * t * (hop / rate)
    harmonics = (0.48 * rate / hertz).floor()
    angle = math.pi * (cycles - cycles.round())
    angle = torch.where(angle.abs() < 1e-4, 1e-4, angle)
    comb = ((2 * harmonics + 1) * angle).sin() / angle.sin()
    return (comb - 1) / (2 * harmonics).sqrt()


def vocoder_step(
    p: Params,
    stream: VocoderStream,
    mel: Tensor,
    cfg: VocoderConfig,
    audio: AudioConfig,
) -> Tensor:
    """Renders log10 mel [b, frames, m] to PCM [b, frames * hop]; `stream` is updated in place."""
    hop, frames = audio.speech.hop, mel.shape[1]
    logits, cepstra = _controls(p, stream, mel)
    pulses = _pulses(stream, _decode_pitch(logits, cfg), hop, audio.sample_rate)
    ticks = (stream.clock[:, None] + torch.arange(frames)) % p["noise"].shape[0]
    stream.clock = stream.clock + frames
    sources = torch.stack([pulses, p["noise"][ticks]], dim=2)
    rise = (torch.arange(hop) + 0.5) / hop
    into = torch.fft.rfft(sources * rise, n=cfg.n_fft)
    out_of = torch.fft.rfft(sources * (1 - rise), n=cfg.n_fft)
    cepstra = torch.cat([stream.cepstra[:, None], cepstra], dim=1)
    stream.cepstra = cepstra[:, -1]
    log = torch.fft.rfft(cepstra, n=cfg.n_fft)
    filters = torch.polar(log.real.clamp(-18.0, 6.0).exp(), log.imag)
    spectrum = (into * filters[:, 1:] + out_of * filters[:, :-1]).sum(2)
    rendered = torch.fft.irfft(spectrum, n=cfg.n_fft).transpose(1, 2)
    length = (frames - 1) * hop + cfg.n_fft
    pcm = F.fold(rendered, (1, length), (1, cfg.n_fft), stride=(1, hop)).flatten(1)
    pcm = pcm + F.pad(stream.tail, (0, length - stream.tail.shape[1]))
    stream.tail = pcm[:, frames * hop :]
    return pcm[:, : frames * hop]
