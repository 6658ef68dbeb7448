"""Model configuration: frozen dataclasses whose fields have units and ranges, checked once."""

import dataclasses

DTYPES = ("float32", "bfloat16")
# Which activations of a layer the backward pass computes again: none; all but products with
# weights, so norms, attention scores and dispatch; or all.
REMAT = ("nothing", "all but products", "everything")
PREFILL_TURNS = 5  # micro-turns of the live session that a background model prefills at once


def _require(ok: bool, field: str, got: object, wanted: str, fix: str) -> None:
    if not ok:
        raise ValueError(f"{field}: got {got!r}, wanted {wanted}; {fix}")


@dataclasses.dataclass(frozen=True)
class SpectrumConfig:
    """Log-mel frames of a causal front end; a frame covers `window` samples, to its hop's end."""

    hop: int  # samples between frames
    window: int = 800  # samples (50 ms), periodic Hann, >= hop
    n_fft: int = 1_024  # samples, >= window
    fmin: float = 80.0  # Hz
    fmax: float = 7_600.0  # Hz


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Front ends of the user's audio and of generated speech (dMel: arXiv 2407.15835)."""

    sample_rate: int = 16_000  # Hz
    turn_samples: int = 3_200  # samples of one micro-turn (200 ms)
    user: SpectrumConfig = SpectrumConfig(hop=400)  # 25 ms, the user's dMel
    speech: SpectrumConfig = SpectrumConfig(hop=200)  # 12.5 ms, generated speech
    mels: int = 80  # channels
    bins: int = 16  # dMel levels of a channel, >= 2
    bin_low: float = -7.0  # log10 magnitude of level 0
    bin_step: float = 0.6  # log10 magnitude between levels, > 0

    def __post_init__(self) -> None:
        """Checks that hops tile a micro-turn and that filters fit the spectra."""
        for name in ("user", "speech"):
            one: SpectrumConfig = getattr(self, name)
            _require(
                one.hop > 0 and self.turn_samples % one.hop == 0 and one.hop <= one.window,
                f"audio.{name}.hop",
                one.hop,
                f"a divisor of turn_samples={self.turn_samples} that is at most window",
                "choose another hop",
            )
            _require(
                one.window <= one.n_fft,
                f"audio.{name}.window",
                one.window,
                f"<= n_fft={one.n_fft}",
                "raise n_fft",
            )
            _require(
                0 <= one.fmin < one.fmax <= self.sample_rate / 2,
                f"audio.{name}.fmax",
                one.fmax,
                f"fmin < fmax <= {self.sample_rate / 2}",
                "lower fmax or raise sample_rate",
            )
        _require(
            self.user.hop % self.speech.hop == 0,
            "audio.user.hop",
            self.user.hop,
            f"a multiple of speech.hop={self.speech.hop}",
            "choose a multiple: the model reads every n-th frame of its speech",
        )
        _require(self.bins >= 2, "audio.bins", self.bins, ">= 2", "raise it")
        _require(self.bin_step > 0, "audio.bin_step", self.bin_step, "> 0", "raise it")

    @property
    def user_frames(self) -> int:
        """Number of dMel frames of a micro-turn."""
        return self.turn_samples // self.user.hop

    @property
    def speech_frames(self) -> int:
        """Number of mel frames of a micro-turn of generated speech."""
        return self.turn_samples // self.speech.hop


@dataclasses.dataclass(frozen=True)
class FirstTransformerConfig:
    """The transformer of the pair of models that was released first: RoPE and attention sinks."""

    dim: int = 192  # width of the residual stream
    layers: int = 6  # a multiple of long_every
    heads: int = 3  # query heads, a multiple of kv_heads
    kv_heads: int = 1
    head_dim: int = 64  # width of a head, even
    experts: int = 8  # routed experts of a layer
    experts_per_token: int = 2  # 1..experts
    expert_ffn: int = 48  # hidden width of one expert
    shared_ffn: int = 192  # hidden width of the shared expert
    window: int = 192  # keys that a query of a sliding layer sees, its position included
    long_window: int = 384  # keys that a query of a long layer sees
    long_every: int = 3  # the last of every n layers is a long one
    rope_base: float = 10_000.0  # see `ops.rope`
    frame_dim: int = 128  # width of the bag of embeddings of one dMel frame
    dtype: str = "float32"  # "float32" or "bfloat16", of activations and of the matrices
    remat: str = "nothing"  # what the backward pass computes again, see REMAT

    @property
    def sliding_kv_heads(self) -> int:
        """KV heads of a sliding layer: those of a long one."""
        return self.kv_heads

    def __post_init__(self) -> None:
        """Checks head, expert and layer counts."""
        for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "expert_ffn", "shared_ffn"):
            value = getattr(self, name)
            _require(value >= 1, f"transformer.{name}", value, ">= 1", "raise it")
        _require(
            self.heads % self.kv_heads == 0,
            "transformer.heads",
            self.heads,
            f"a multiple of kv_heads={self.kv_heads}",
            "choose a multiple: equal groups of query heads share a key head",
        )
        _require(
            self.head_dim % 2 == 0,
            "transformer.head_dim",
            self.head_dim,
            "even",
            "choose an even number: RoPE rotates pairs",
        )
        _require(
            1 <= self.experts_per_token <= self.experts,
            "transformer.experts_per_token",
            self.experts_per_token,
            f"1..experts={self.experts}",
            "lower it or add experts",
        )
        _require(
            0 < self.window <= self.long_window,
            "transformer.window",
            self.window,
            f"1..long_window={self.long_window}",
            "lower window or raise long_window",
        )
        _require(
            self.long_every >= 2 and self.layers % self.long_every == 0,
            "transformer.long_every",
            self.long_every,
            f"at least 2 and a divisor of layers={self.layers}",
            "change either: layers come in equal groups that end with a long layer",
        )
        for name, wanted in (("dtype", DTYPES), ("remat", REMAT)):
            value = getattr(self, name)
            _require(
                value in wanted, f"transformer.{name}", value, f"one of {wanted}", "choose one"
            )


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The decoder of the Inkling models: a mixture of experts with relative attention.

    Layers come in groups of `long_every`: sliding-window layers, then a long one. The first
    `dense_layers` layers have one dense feed-forward each, the others experts.
    """

    dim: int = 192  # width of the residual stream
    layers: int = 6  # a multiple of long_every
    dense_layers: int = 0  # the first ones, fewer than long_every
    heads: int = 3  # query heads, a multiple of both numbers of KV heads
    kv_heads: int = 1  # of a long layer
    sliding_kv_heads: int = 1
    head_dim: int = 64  # width of a head
    experts: int = 8  # routed experts of a layer
    experts_per_token: int = 2  # 1..experts
    shared_experts: int = 2  # experts that every token takes, >= 1
    expert_ffn: int = 64  # hidden width of one expert, routed or shared
    dense_ffn: int = 192  # hidden width of a dense layer
    window: int = 192  # keys that a query of a sliding layer sees, its position included
    long_window: int = 384  # newest keys that a query of a long layer sees, beside the first ones
    long_every: int = 3  # the last of every n layers is a long one, >= 2
    relative_states: int = 16  # profiles of distance that a token mixes
    relative_extent: int = 384  # distance from which a long layer's bias is 0
    log_scaling_from: int = 128_000  # keys beyond which a long layer sharpens its scores
    route_scale: float = 8.0  # factor of the experts' weights, > 0
    logits_divisor: float = 1.0  # of the hidden state before the text head, > 0
    dtype: str = "float32"  # "float32" or "bfloat16", of activations and of the matrices
    remat: str = "nothing"  # what the backward pass computes again, see REMAT

    def __post_init__(self) -> None:
        """Checks counts of heads, experts and layers."""
        counts = ("dim", "heads", "kv_heads", "sliding_kv_heads", "head_dim", "shared_experts")
        counts += ("expert_ffn", "dense_ffn", "relative_states", "relative_extent")
        for name in (*counts, "log_scaling_from"):
            value = getattr(self, name)
            _require(value >= 1, f"transformer.{name}", value, ">= 1", "raise it")
        for name in ("kv_heads", "sliding_kv_heads"):
            _require(
                self.heads % getattr(self, name) == 0,
                "transformer.heads",
                self.heads,
                f"a multiple of {name}={getattr(self, name)}",
                "choose a multiple: equal groups of query heads share a key head",
            )
        _require(
            1 <= self.experts_per_token <= self.experts,
            "transformer.experts_per_token",
            self.experts_per_token,
            f"1..experts={self.experts}",
            "lower it or add experts",
        )
        _require(
            0 < self.window <= self.long_window,
            "transformer.window",
            self.window,
            f"1..long_window={self.long_window}",
            "lower window or raise long_window",
        )
        _require(
            self.long_every >= 2 and self.layers >= 1 and self.layers % self.long_every == 0,
            "transformer.long_every",
            self.long_every,
            f"at least 2 and a divisor of layers={self.layers}",
            "change either: layers come in equal groups that end with a long layer",
        )
        _require(
            0 <= self.dense_layers < self.long_every,
            "transformer.dense_layers",
            self.dense_layers,
            f"0..{self.long_every - 1}",
            "lower it: only sliding layers of the first group may be dense",
        )
        for name in ("route_scale", "logits_divisor"):
            value = getattr(self, name)
            _require(value > 0, f"transformer.{name}", value, "> 0", "raise it")
        for name, wanted in (("dtype", DTYPES), ("remat", REMAT)):
            value = getattr(self, name)
            _require(
                value in wanted, f"transformer.{name}", value, f"one of {wanted}", "choose one"
            )


@dataclasses.dataclass(frozen=True)
class SpeechConfig:
    """Flow head: mel frames of one micro-turn from the text-out position and the last tokens."""

    dim: int = 128  # width of a frame inside the flow network
    layers: int = 2  # layers of the flow network
    condition_dim: int = 768  # hidden width of the conditioning network, which runs once
    condition_layers: int = 3  # layers of the conditioning network
    feature_dim: int = 64  # width of a frame's condition
    token_dim: int = 64  # embedding of a text-out token
    token_window: int = 12  # number of last text-out tokens that are read, at least 2
    prefix_frames: int = 16  # generated frames before this micro-turn that are read
    flow_steps: int = 4  # Euler steps
    temperature: float = 0.8  # scale of the initial noise when generating, >= 0
    mel_floor: float = -5.0  # log10 magnitude below which speech is silence
    mel_mean: float = -2.5  # log10 magnitude, for standardisation
    mel_std: float = 1.1  # log10 magnitude, for standardisation, > 0

    def __post_init__(self) -> None:
        """Checks counts and scales."""
        counts = ("dim", "layers", "condition_dim", "condition_layers", "feature_dim", "token_dim")
        for name in (*counts, "token_window", "prefix_frames", "flow_steps"):
            value = getattr(self, name)
            _require(value >= 1, f"speech.{name}", value, ">= 1", "raise it")
        _require(
            self.token_window >= 2,
            "speech.token_window",
            self.token_window,
            ">= 2",
            "raise it: training replaces the older half of a window",
        )
        _require(self.temperature >= 0, "speech.temperature", self.temperature, ">= 0", "raise it")
        _require(self.mel_std > 0, "speech.mel_std", self.mel_std, "> 0", "measure it on the data")


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Causal streaming vocoder from mel frames to PCM: pulses and noise through learned filters."""

    dim: int = 192
    layers: int = 6
    kernel: int = 7  # frames of a causal depthwise convolution
    delay_frames: int = 2  # frames by which the PCM lags the mel
    order: int = 80  # cepstral coefficients of a filter
    n_fft: int = 512  # samples of a filter's response, >= twice the hop
    pitch_bins: int = 64  # classes of the pitch, evenly spaced in its logarithm
    pitch_low: float = 80.0  # Hz
    pitch_high: float = 350.0  # Hz

    def __post_init__(self) -> None:
        """Checks counts and ranges."""
        for name in ("dim", "layers", "kernel", "order", "pitch_bins"):
            _require(
                getattr(self, name) >= 1, f"vocoder.{name}", getattr(self, name), ">= 1", "raise it"
            )
        _require(
            self.delay_frames >= 0, "vocoder.delay_frames", self.delay_frames, ">= 0", "raise it"
        )
        _require(
            self.order <= self.n_fft,
            "vocoder.order",
            self.order,
            f"<= n_fft={self.n_fft}",
            "lower order or raise n_fft",
        )
        _require(
            0 < self.pitch_low < self.pitch_high,
            "vocoder.pitch_high",
            self.pitch_high,
            f"> pitch_low={self.pitch_low} > 0",
            "raise it",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """An interaction model."""

    audio: AudioConfig = AudioConfig()
    transformer: TransformerConfig | FirstTransformerConfig = TransformerConfig()
    speech: SpeechConfig = SpeechConfig()
    vocoder: VocoderConfig = VocoderConfig()
    vocab: int = 1_024  # text tokens, special tokens included
    text_slots: int = 4  # most text-in tokens of a micro-turn
    patches: int = 9  # 40x40 patches of a frame, a square number
    audio_positions: int = 2  # positions of the user's audio in a micro-turn
    vision_widths: tuple[int, ...] = (32, 64, 192)  # of the levels that fold a patch together
    self_audio: bool = True  # whether the step reads the model's last speech, or blanks it
    text_temperature: float = 0.0  # of text sampling, >= 0; 0 takes the most likely token
    trained_on_text: bool = True  # whether it reads typed text; results it reads in any case
    trained_on_frames: bool = True  # whether it sees video frames

    def __post_init__(self) -> None:
        """Checks that the parts fit each other."""
        _require(
            self.audio_positions >= 1, "audio_positions", self.audio_positions, ">= 1", "raise it"
        )
        lag = self.vocoder.delay_frames
        most = (self.audio.speech.window - self.audio.speech.hop) // self.audio.speech.hop
        _require(
            0 <= lag <= most,
            "vocoder.delay_frames",
            lag,
            f"0..{most}, the frames by which a window reaches back",
            "lower it",
        )
        _require(
            self.vocoder.n_fft >= 2 * self.audio.speech.hop,
            "vocoder.n_fft",
            self.vocoder.n_fft,
            f">= twice the hop of {self.audio.speech.hop} samples",
            "raise it: a filter's response reaches into the next frame",
        )
        _require(
            self.audio.user_frames % self.audio_positions == 0,
            "audio_positions",
            self.audio_positions,
            f"a divisor of {self.audio.user_frames} dMel frames",
            "choose a divisor: each position holds the same number of frames",
        )
        side = round(self.patches**0.5)
        _require(
            side * side == self.patches and side >= 1,
            "patches",
            self.patches,
            "a square number of 40x40 patches",
            "choose a square number: frames are square",
        )
        _require(
            self.speech.prefix_frames <= self.audio.speech_frames,
            "speech.prefix_frames",
            self.speech.prefix_frames,
            f"at most the {self.audio.speech_frames} frames of a micro-turn",
            "lower it: a session keeps the speech of one micro-turn",
        )
        _require(
            len(self.vision_widths) == 3 and min(self.vision_widths) >= 1,
            "vision_widths",
            self.vision_widths,
            "three widths of at least 1",
            "name the width after each fold of 5, 2 and 4 neighbours on a side",
        )
        _require(
            self.vocab > 8, "vocab", self.vocab, "> 8", "raise it: ids 0..7 are special tokens"
        )
        _require(self.text_slots >= 1, "text_slots", self.text_slots, ">= 1", "raise it")

    @property
    def decoder(self) -> TransformerConfig:
        """The transformer of a model that is not one of the pair that was released first.

        Raises:
          ValueError: The model is one of that pair.
        """
        if isinstance(self.transformer, FirstTransformerConfig):
            raise ValueError(
                "transformer: got the one of the models that were released first, wanted the "
                "present one; the first models run in the step alone"
            )
        return self.transformer

    @property
    def frame_size(self) -> int:
        """Height and width of a video frame in pixels."""
        return 40 * round(self.patches**0.5)

    @property
    def turn_span(self) -> int:
        """Positions that are reserved for a micro-turn on the clock, used or not."""
        return self.text_slots + self.patches + self.audio_positions + 1
