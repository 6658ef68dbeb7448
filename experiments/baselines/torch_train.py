"""A training step of backbone and flow head in PyTorch: features, forward, losses, AdamW."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.baselines import torch_layers as layers, torch_model
from experiments.baselines.torch_layers import Params
from interaction.config import SpectrumConfig
from interaction.ops.mel import mel_filterbank
from interaction.training import conversation_loss, features, speech_loss
from interaction.training.train_config import TrainConfig
from interaction.types import Special

Batch = dict[str, Tensor]


def leaves(tree: Params | list | Tensor, path: str = "") -> dict[str, Tensor]:
    """Tensors of nested dicts and lists, by path."""
    if isinstance(tree, Tensor):
        return {path: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = (leaves(leaf, f"{path}/{name}") for name, leaf in items)
    return dict(itertools.chain.from_iterable(part.items() for part in found))


def augment_user(frames: Tensor) -> Tensor:
    """`features.augment_user` on log10 mel [b, frames, m]."""
    b, _, mels = frames.shape
    channel = torch.arange(mels, dtype=torch.float32)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(b, 1).uniform_(low, high)

    source = (channel * uniform(0.9, 1.1) + uniform(-1.5, 1.5)).clamp(0, mels - 1)
    weights = (1 - (source[:, :, None] - channel).abs()).clamp_min(0)
    out = frames @ weights.transpose(1, 2)
    shape = uniform(-0.3, 0.3) * (channel / mels - 0.5) * 2 + uniform(-0.25, 0.25)
    out = out + shape[:, None]
    low, width = uniform(0, mels), uniform(-8, 8)
    masked = ((channel >= low) & (channel < low + width))[:, None]
    out = torch.where(masked, out.amin((1, 2), keepdim=True), out)
    return out + 0.15 * uniform(0, 1)[:, None] * torch.randn_like(out)


def delayed(turns: Tensor, start: float) -> Tensor:
    """Moves [b, n, ...] one micro-turn later, after `start`."""
    return torch.cat([torch.full_like(turns[:, :1], start), turns[:, :-1]], dim=1)


def cross_entropy(logits: Tensor, target: Tensor, events: Tensor) -> Tensor:
    """Cross-entropy of [..., v] against int64[...], nats per event of bool[...]."""
    value = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="sum")
    return value / events.sum().clamp_min(1)


def corrupt_transcript(user_transcript: Tensor) -> Tensor:
    """`features.corrupt_transcript` on int64[b, n, audio_positions]."""
    rate = features.MOST_WRONG_WORDS * torch.rand(user_transcript.shape[0], 1, 1).square()
    said = user_transcript != Special.NONE
    chance = torch.where(said, torch.rand(user_transcript.shape), -1.0).flatten(1)
    shuffled = user_transcript.flatten(1).gather(1, chance.argsort(dim=1, descending=True))
    rank = (said.flatten(1).cumsum(1) - 1).clamp_min(0)
    other = shuffled.gather(1, rank).view(user_transcript.shape)
    other = torch.where(torch.rand(user_transcript.shape) < 0.5, Special.NONE, other)
    return torch.where(said & (torch.rand(user_transcript.shape) < rate), other, user_transcript)


def spliced(tokens: Tensor) -> Tensor:
    """`speech.spliced` on int64[b, rows, window]; older parts come from the same session."""
    b, rows, window = tokens.shape
    cut = torch.randint(1, window // 2 + 1, (b, rows, 1))
    cut = torch.where(torch.rand(b, rows, 1) < speech_loss.SPLICED, cut, 0)
    return torch.where(torch.arange(window) < cut, tokens.roll(1, 1), tokens)


class TorchTrainer:
    """Trains backbone and flow head together, as `conversation_loss.joint_objective` does.

    On a GPU the loss is compiled. A model that computes in bfloat16 uses autocast, and float32
    products are computed as TF32, as XLA does.
    """

    def __init__(
        self,
        config: TrainConfig,
        backbone: dict,
        speech: dict,
        bias: np.ndarray,
        device: str = "cpu",
    ) -> None:
        """Copies the library's initial parameters.

        Args:
          config: Configuration of the run.
          backbone: Parameters of the backbone, numpy arrays.
          speech: Parameters of the speech head, numpy arrays.
          bias: float32[l, e], selection bias of the routers.
          device: "cpu" or "cuda".
        """
        self.config, self.model, self.device = config, config.model, device
        gpu = device == "cuda"
        self.bfloat16 = gpu and config.model.transformer.dtype == "bfloat16"
        if gpu:
            torch.set_float32_matmul_precision("high")
            torch.set_default_device(device)  # for tensors that the loss makes
        self.run_loss = torch.compile(self.loss) if gpu else self.loss
        self._place(backbone, speech, bias)

    @property
    def label(self) -> str:
        """Version, device and dtype of the baseline."""
        if self.device == "cpu":
            return f"PyTorch {torch.__version__}, CPU, float32"
        dtype = "bfloat16 autocast" if self.bfloat16 else "float32 (TF32)"
        return f"PyTorch {torch.__version__}, {self.device}, torch.compile, {dtype}"

    def _place(self, backbone: dict, speech: dict, bias: np.ndarray) -> None:
        self.params: Params = {
            "backbone": torch_model.port_backbone(backbone, bias, self.model),
            "speech": layers.to_torch(speech),
        }
        self.biases = [layer.pop("bias") for layer in self.params["backbone"]["layers"]]
        flat = leaves(self.params)
        decayed, rest = [], []
        for name, leaf in flat.items():
            leaf.requires_grad_()
            plain = any(word in name for word in ("norm", "scale", "bias", "gain"))
            (rest if leaf.ndim < 2 or plain else decayed).append(leaf)
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        self.leaves = list(flat.values())
        self.ema = [leaf.detach().clone() for leaf in self.leaves]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=self.config.learning_rate,
            betas=(self.config.beta1, self.config.beta2),
            fused=True,
        )
        audio = self.model.audio
        self.spectra = {
            one: (torch.tensor(mel_filterbank(one, audio)), torch.hann_window(one.window))
            for one in (audio.user, audio.speech)
        }

    def stream_mel(self, samples: Tensor, spectrum: SpectrumConfig) -> Tensor:
        """Log10 mel of PCM int16[b, samples] -> [b, frames, m]."""
        pcm = F.pad(samples.float() / 32_768, (spectrum.window - spectrum.hop, 0))
        return layers.log_mel(pcm, *self.spectra[spectrum], spectrum)

    def features(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """DMel of user and self audio, int64[b, n, frames, m], and the log10 mel of speech."""
        audio, floor = self.model.audio, self.model.speech.mel_floor
        split = (audio.user_frames, audio.mels)
        text = batch["text"]
        user = augment_user(self.stream_mel(batch["user"], audio.user))
        user = layers.dmel_bins(user, audio).unflatten(1, (text.shape[1], -1))
        mel = self.stream_mel(batch["model"], audio.speech).clamp_min(floor)
        mel = mel.unflatten(1, (text.shape[1], -1))
        mel = torch.where((text == Special.SILENT)[:, :, None, None], floor, mel)
        stride = audio.user.hop // audio.speech.hop
        self_audio = layers.dmel_bins(delayed(mel, floor)[:, :, stride - 1 :: stride], audio)
        jitter = torch.randn(self_audio.shape).round().long()
        self_audio = torch.where(
            self_audio > 0, (self_audio + jitter).clamp(0, audio.bins - 1), self_audio
        )
        return user.view(*text.shape, *split), self_audio, mel

    def flow_loss(self, hidden: Tensor, text: Tensor, mel: Tensor) -> Tensor:
        """`speech.flow_loss` of `hidden` [b, n, d], `text` int64[b, n] and log10 `mel`."""
        cfg, params = self.model.speech, self.params["speech"]
        speaking = text != Special.SILENT
        b, n = speaking.shape
        count, some = speech_loss.flow_rows(n)
        rank, picked = (speaking + torch.rand(b, n)).topk(count, dim=1)
        picked = (picked + n * torch.arange(b)[:, None]).flatten()
        weight = (rank >= 1).float().flatten()
        mel = (mel.clamp_min(cfg.mel_floor) - cfg.mel_mean) / cfg.mel_std
        quiet = (cfg.mel_floor - cfg.mel_mean) / cfg.mel_std
        frames, seen = mel.shape[2], cfg.prefix_frames
        before = delayed(mel, quiet)
        said = F.pad(text, (cfg.token_window - 1, 0), value=Special.SILENT)
        said = said.unfold(1, cfg.token_window, 1)

        def rows(turns: Tensor) -> Tensor:
            return turns.flatten(0, 1)[picked]

        def first(rows: Tensor) -> Tensor:  # the first `some` rows of each session
            return rows.unflatten(0, (b, count))[:, :some].flatten(0, 1)

        prefix = rows(before)[:, -seen:]
        with torch.no_grad():
            _, guess = layers.speech_condition(
                params["condition"],
                rows(delayed(hidden, 0)),
                rows(delayed(said, Special.SILENT)),
                rows(delayed(before, quiet))[:, -seen:],
                frames,
            )
        self_fed = rows(delayed(text, Special.SILENT)) != Special.SILENT
        self_fed &= torch.rand(b * count) < speech_loss.SELF_FED
        guess = guess[:, -seen:].clamp_min(quiet)
        prefix = torch.where(self_fed[:, None, None], guess, prefix)
        level = 0.4 * torch.rand(b * count, 1, 1).square()
        prefix = prefix + level * torch.randn(prefix.shape)
        tokens = spliced(rows(said).unflatten(0, (b, count))).flatten(0, 1)
        feature, guess = layers.speech_condition(
            params["condition"], rows(hidden), tokens, prefix, frames
        )
        target = rows(mel)
        noise, time = torch.randn(b * some, *target.shape[1:]), torch.rand(b * some)
        point = torch.lerp(noise, first(target), time[:, None, None])
        estimate = layers.flow_estimate(
            params["flow"], point, time, first(feature), first(guess), self.model
        )

        def error(made: Tensor, target: Tensor, weight: Tensor) -> Tensor:
            square = (made - target).square().mean((1, 2))
            return (square * weight).sum() / weight.sum().clamp_min(1.0)

        return error(guess, target, weight) + error(estimate, first(target), first(weight))

    def loss(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the routers' logits by layer."""
        with torch.no_grad():
            user, self_audio, mel = self.features(batch)
        text, user_transcript = batch["text"], batch["user_transcript"]
        last = delayed(text, Special.SILENT)
        self_audio_gain = (
            torch.rand(text.shape[0], 1) > conversation_loss.SELF_AUDIO_BLANKED
        ).float()
        backbone = self.params["backbone"]
        layered = [
            {**layer, "bias": bias}
            for layer, bias in zip(backbone["layers"], self.biases, strict=True)
        ]
        before = delayed(corrupt_transcript(user_transcript), Special.NONE)
        inputs = torch_model.Inputs(
            user, self_audio, self_audio_gain.expand(text.shape), before, last
        )
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            out = torch_model.forward({**backbone, "layers": layered}, self.model, inputs)
            flow = self.flow_loss(out.hidden, text, mel)
        switch = (text == Special.SILENT) != (last == Special.SILENT)
        loss = cross_entropy(out.text_logits.float(), text, (text >= Special.COUNT) | switch)
        said = cross_entropy(
            out.transcript_logits.float(), user_transcript, user_transcript != Special.NONE
        )
        loss = loss + conversation_loss.TRANSCRIPT_WEIGHT * said + 0.5 * flow
        z = sum(logits.float().logsumexp(-1).square().mean() for logits in out.router_logits)
        return loss + conversation_loss.ROUTER_Z_WEIGHT * z, out.router_logits

    def step(self, batch: Batch) -> float:
        """One update; returns the loss."""
        self.optimizer.zero_grad()
        loss, router_logits = self.run_loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.leaves, self.config.grad_clip)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.leaves, 1 - self.config.ema_decay)
            for bias, logits in zip(self.biases, router_logits, strict=True):
                self._balance(bias, logits)
        return loss.item()

    def _balance(self, bias: Tensor, logits: Tensor) -> None:
        taken = (logits.sigmoid() + bias).topk(self.model.transformer.experts_per_token).indices
        load = torch.bincount(taken.flatten(), minlength=bias.numel()).float()
        bias += conversation_loss.BIAS_RATE * (load.mean() - load).sign()
