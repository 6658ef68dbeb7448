"""Training of the vocoder: losses on spectra at several resolutions, and on the pitch.

The multi-resolution STFT loss is that of Parallel WaveGAN (arXiv 1910.11480).
"""

import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import AudioConfig, ModelConfig, VocoderConfig
from interaction.distributed.collectives import SEQUENCE, axis_size
from interaction.distributed.sharding import gather_and_cast
from interaction.modules import vocoder
from interaction.ops import mel, source_filter
from interaction.training.objective import Batch, Buffers, Metrics, Objective, Sums
from interaction.types import Array, Params

RESOLUTIONS = ((256, 64), (512, 128), (1024, 256), (2048, 512))  # window and hop, samples
_CROP_FRAMES = 64  # 0.8 s
_WARM_FRAMES = 8  # first frames of a crop, without loss: the convolutions lack their past
_CROPS_PER_SESSION = 2
_GAIN = 0.5  # largest change of a crop's level, natural logarithm of the amplitude
_MEL_NOISE = 0.08  # largest standard deviation of the noise on the input, log10 magnitude
_VOICED = 0.7  # a frame with a larger normalised autocorrelation is voiced
_MEL_FLOOR = -5.0  # log10 magnitude; lower values count as silence
_FLOOR = 1e-4  # lower bound of magnitudes before the logarithm


def magnitudes(pcm: Array, window: int, hop: int) -> Array:
    """Magnitudes of a short-time Fourier transform with a Hann window of unit energy.

    Args:
      pcm: float32[b, samples], PCM in [-1, 1].
      window: Samples of a frame, also the transform's length.
      hop: Samples between frames.

    Returns:
      float32[b, frames, window // 2 + 1], linear magnitudes; samples past the last whole frame are
      left out.
    """
    samples = (pcm.shape[1] - window) // hop * hop + window
    frames = mel.frame(pcm[:, :samples], window, hop)
    weights = mel.hann(window)
    weights = weights / np.sqrt(np.sum(weights**2))
    spectrum = jnp.fft.rfft(frames * weights)
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + 1e-10)


def spectral_losses(got: Array, wanted: Array) -> tuple[Array, Array]:
    """Spectral convergence and L1 distance of log magnitudes (arXiv 1910.11480).

    Args:
      got: float32[b, samples], rendered PCM.
      wanted: float32[b, samples], original PCM.

    Returns:
      Both losses, float32[] each, as means over `RESOLUTIONS`; the second one in natural-log
      magnitude.
    """
    convergence, distance = [], []
    for window, hop in RESOLUTIONS:
        a, b = magnitudes(got, window, hop), magnitudes(wanted, window, hop)
        error = jnp.sqrt(jnp.sum(jnp.square(a - b)) + 1e-10)
        convergence.append(error / (jnp.sqrt(jnp.sum(b * b)) + 1e-3))
        logs = jnp.log(jnp.maximum(a, _FLOOR)) - jnp.log(jnp.maximum(b, _FLOOR))
        distance.append(jnp.mean(jnp.abs(logs)))
    return jnp.mean(jnp.stack(convergence)), jnp.mean(jnp.stack(distance))


def estimate_pitch(
    pcm: Array, hop: int, cfg: VocoderConfig, audio: AudioConfig
) -> tuple[Array, Array]:
    """Pitch of each mel frame, from the peak of its autocorrelation.

    The autocorrelation of the windowed frame is divided by that of the window, and longer lags get
    a small penalty (Boersma 1993).

    Args:
      pcm: float32[b, window - hop + frames * hop], PCM, left context first.
      hop: Samples between frames.
      cfg: Vocoder configuration, which has the range of the pitch.
      audio: Configuration of the audio front end.

    Returns:
      Pitch in Hz and normalised autocorrelation in [-1, 1], float32[b, frames] each.
    """
    window = mel.hann(audio.speech.window)
    size = 2 * audio.speech.n_fft
    frames = mel.frame(pcm, audio.speech.window, hop) * window
    frames = frames - jnp.mean(frames, axis=-1, keepdims=True) * window
    power = jnp.square(jnp.abs(jnp.fft.rfft(frames, n=size)))
    # The autocorrelation of the window falls with the lag.
    falloff = np.fft.irfft(np.abs(np.fft.rfft(window, n=size)) ** 2)
    falloff = np.maximum(falloff / falloff[0], 0.05)[: size // 2].astype(np.float32)
    correlation = jnp.fft.irfft(power)[..., : size // 2] / falloff
    correlation = correlation / (correlation[..., :1] + 1e-6)
    low = int(audio.sample_rate / cfg.pitch_high)
    high = int(np.ceil(audio.sample_rate / cfg.pitch_low))
    lags = np.arange(low, high + 1)
    score = correlation[..., low : high + 1] - 0.1 * np.log2(lags / low).astype(np.float32)
    best = jnp.argmax(score, axis=-1) + low
    left, peak, right = (
        jnp.take_along_axis(correlation, best[..., None] + i, axis=-1)[..., 0] for i in (-1, 0, 1)
    )
    bend = left - 2.0 * peak + right
    shift = jnp.where(bend < -1e-6, 0.5 * (left - right) / jnp.minimum(bend, -1e-6), 0.0)
    pitch = audio.sample_rate / (best + jnp.clip(shift, -0.5, 0.5))
    return jnp.clip(pitch, cfg.pitch_low, cfg.pitch_high), peak


def pitch_loss(logits: Array, pitch: Array, voiced: Array, cfg: VocoderConfig) -> Array:
    """Cross-entropy against a Gaussian around the pitch, over voiced frames.

    The standard deviation of the Gaussian is one class of the pitch grid.

    Args:
      logits: float32[b, frames, pitch_bins].
      pitch: float32[b, frames], Hz.
      voiced: float32[b, frames], weight of each frame.
      cfg: Vocoder configuration.

    Returns:
      float32[], nats a frame.
    """
    grid = jnp.log(vocoder.pitch_grid(cfg))
    distance = (grid - jnp.log(pitch)[..., None]) / (grid[1] - grid[0])
    target = jax.nn.softmax(-0.5 * jnp.square(distance), axis=-1)
    entropy = -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)
    return jnp.sum(entropy * voiced) / (jnp.sum(voiced) + 1.0)


def pick_crops(pcm: Array, length: int, count: int, hop: int, key: Array) -> Array:
    """Random crops of each signal; crops with sound are preferred.

    Args:
      pcm: float32[b, samples], PCM.
      length: Samples of a crop.
      count: Crops of each signal.
      hop: Crops start at multiples of so many samples.
      key: PRNG key [].

    Returns:
      float32[b * count, length], PCM.
    """
    energy = jnp.sum(jnp.square(pcm.reshape(pcm.shape[0], -1, hop)), axis=-1)
    total = jnp.cumsum(jnp.pad(energy, ((0, 0), (1, 0))), axis=1)
    inside = total[:, length // hop :] - total[:, : -(length // hop)]
    logits = jnp.where(inside > 1e-3 * length, 0.0, -7.0)  # a silent crop is 1,000 times rarer
    starts = jax.random.categorical(key, logits, shape=(count, pcm.shape[0])).T * hop

    def cut(row: Array, starts: Array) -> Array:
        return jax.vmap(lambda start: jax.lax.dynamic_slice(row, (start,), (length,)))(starts)

    return jax.vmap(cut)(pcm, starts).reshape(-1, length)


def soften(log_mel: Array, key: Array) -> Array:
    """Makes mel frames resemble generated ones: noise, and a blur over time, of random strength.

    Args:
      log_mel: float32[b, frames, m], log10 magnitude.
      key: PRNG key [].

    Returns:
      float32[b, frames, m], log10 magnitude.
    """
    noise_key, level_key, blur_key = jax.random.split(key, 3)
    shape = (log_mel.shape[0], 1, 1)
    level = _MEL_NOISE * jax.random.uniform(level_key, shape)
    blur = 0.25 * jnp.maximum(0.0, jax.random.uniform(blur_key, shape, minval=-1.0))
    sides = jnp.pad(log_mel, ((0, 0), (1, 1), (0, 0)), mode="edge")
    sides = sides[:, :-2] + sides[:, 2:]
    log_mel = (1.0 - 2.0 * blur) * log_mel + blur * sides
    return log_mel + level * jax.random.normal(noise_key, log_mel.shape)


def crop_loss(
    params: Params, crops: Array, key: Array, cfg: VocoderConfig, audio: AudioConfig
) -> tuple[Array, Metrics]:
    """Loss of crops that are rendered from their own mel.

    In voiced frames the pulses have the pitch that is measured in the crop. The network's pitch
    has a loss of its own; pulses at a wrong pitch would only blur the filters.

    Args:
      params: Parameters of `Vocoder`.
      crops: float32[b, window - hop + frames * hop], PCM, left context first.
      key: PRNG key [].
      cfg: Vocoder configuration.
      audio: Configuration of the audio front end.

    Returns:
      The loss and its terms, float32[] each: convergence, log_magnitude (natural log), mel
      (natural-log magnitude) and pitch (nats).
    """
    hop = audio.speech.hop
    clean = mel.log_mel(crops, audio.speech, audio)
    pitch, peak = estimate_pitch(crops, hop, cfg, audio)
    state = vocoder.init_vocoder_state(crops.shape[0], cfg, audio)
    soften_key, clock_key = jax.random.split(key)
    _, controls = vocoder.vocoder_controls(params, state, soften(clean, soften_key), audio)
    voiced = peak > _VOICED
    guess = jax.lax.stop_gradient(vocoder.decode_pitch(controls.pitch, cfg))
    source = state.source._replace(
        clock=jax.random.randint(clock_key, state.source.clock.shape, 0, 1 << 16)
    )
    _, pcm = source_filter.synthesise(
        source, jnp.where(voiced, pitch, guess), controls.cepstra, hop, audio.sample_rate
    )
    start = _WARM_FRAMES * hop
    wanted = crops[:, audio.speech.window - hop - cfg.delay_frames * hop :][:, : pcm.shape[1]]
    got, wanted = pcm[:, start:], wanted[:, start:]
    convergence, distance = spectral_losses(got, wanted)
    pair = jnp.maximum(mel.log_mel(jnp.concatenate([got, wanted]), audio.speech, audio), _MEL_FLOOR)
    mel_error = jnp.mean(jnp.abs(jnp.subtract(*jnp.split(pair, 2)))) * np.log(10.0)
    pitch_error = pitch_loss(controls.pitch, pitch, voiced.astype(jnp.float32), cfg)
    loss = convergence + distance + mel_error + 0.2 * pitch_error
    return loss, {
        "convergence": convergence,
        "log_magnitude": distance,
        "mel": mel_error,
        "pitch": pitch_error,
    }


def vocoder_objective(model: ModelConfig) -> Objective:
    """Trains the vocoder on the model's side of sessions, `batch["model"]`, int16[b, samples].

    The spectral terms are quotients of norms over the crops of all sessions that a device takes at
    a time. The losses of the parts of a batch add up to their mean, so the loss of a batch depends
    on how it is split.
    """
    cfg, audio = model.vocoder, model.audio
    length = audio.speech.window - audio.speech.hop + _CROP_FRAMES * audio.speech.hop

    def init(key: Array) -> tuple[Params, Buffers]:
        blank = jnp.zeros((1, 1, audio.mels))
        return {"vocoder": vocoder.Vocoder(cfg, audio).init(key, blank)["params"]}, {}

    def loss(
        params: Params, buffers: Buffers, batch: Batch, totals: dict[str, Array], keys: Array
    ) -> tuple[Array, Sums]:
        del buffers
        crop_key, gain_key, loss_key = jax.random.split(keys[0], 3)
        pcm = batch["model"].astype(jnp.float32) / 32_768.0
        crops = pick_crops(pcm, length, _CROPS_PER_SESSION, audio.speech.hop, crop_key)
        gain = jax.random.uniform(gain_key, (crops.shape[0], 1), minval=-_GAIN, maxval=_GAIN)
        crops = crops * jnp.exp(gain)
        weights = gather_and_cast(params["vocoder"], "vocoder", model.transformer.dtype)
        value, metrics = crop_loss(weights, crops, loss_key, cfg, audio)
        share = len(pcm) / totals["sessions"] / axis_size(SEQUENCE)
        return value * share, {name: metric * share for name, metric in metrics.items()}

    def samples(params: Params, buffers: Buffers, batch: Batch) -> dict[str, np.ndarray]:
        pcm = jnp.asarray(batch["model"][:1], jnp.float32) / 32_768.0
        tail = mel.init_tail(1, audio.speech)
        _, frames = mel.log_mel_stream(tail, pcm, audio.speech, audio)
        weights = gather_and_cast(params["vocoder"], "vocoder", model.transformer.dtype)
        rendered = vocoder.vocoder_full(weights, frames, cfg, audio)
        return {"vocoder/original": np.asarray(pcm[0]), "vocoder/rendered": np.asarray(rendered[0])}

    return Objective(init, loss, samples=samples)
