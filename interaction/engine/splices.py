"""Repairs of a stream of PCM: sound in place of a loss, and splices that shorten or lengthen it."""

import numpy as np

PERIODS_S = (0.0025, 0.015)  # pitch periods from 400 Hz down to 67 Hz
FADE_S = 0.005  # length of a cross-fade
_MATCH_S = 0.01  # sound that is compared to find a pitch period
_FULL_S, _SILENT_S = 0.02, 0.22  # s; full level until the first, and silence from the second on
PAST_S = PERIODS_S[1] + _MATCH_S  # sound that a continuation needs


class Continuation:
    """Sound in place of a loss: the last pitch period, repeated and faded within 220 ms.

    A fade that ends within the lost chunk splits words: a recogniser then puts in more of them.
    """

    def __init__(self, past: np.ndarray, rate: int) -> None:
        """Finds the period.

        Args:
          past: float32[n], the last sound, at least `PAST_S` of it.
          rate: Samples a second.
        """
        match = round(_MATCH_S * rate)
        before = past[-round(PAST_S * rate) :]
        # Windows from the longest period to the shortest one before the last window.
        windows = np.lib.stride_tricks.sliding_window_view(before, match)
        windows = windows[: -round(PERIODS_S[0] * rate)]
        lag = len(before) - match - _best(windows, before[-match:])
        self._period, self._rate, self._made = before[-lag:], rate, 0

    def make(self, samples: int) -> np.ndarray:
        """The next part of the continuation, float32[samples]."""
        place = self._made + np.arange(samples)
        self._made += samples
        level = (_SILENT_S - place / self._rate) / (_SILENT_S - _FULL_S)
        return self._period[place % len(self._period)] * np.clip(level, 0, 1).astype(np.float32)

    def lead_into(self, pcm: np.ndarray) -> np.ndarray:
        """Cross-fades from the continuation to sound float32[n]; returns float32[n]."""
        fade = min(round(FADE_S * self._rate), len(pcm))
        out = pcm.copy()
        out[:fade] = _cross_fade(self.make(fade), pcm[:fade])
        return out


def splice(pcm: np.ndarray, place: int, shift: int, rate: int) -> np.ndarray:
    """Goes on elsewhere with a cross-fade.

    Args:
      pcm: float32[n].
      place: Sample at which the cross-fade begins.
      shift: Samples to leave out from there on; below 0, samples to repeat.
      rate: Samples a second.

    Returns:
      float32[n - shift].
    """
    fade = round(FADE_S * rate)
    later = place + shift
    middle = _cross_fade(pcm[place : place + fade], pcm[later : later + fade])
    return np.concatenate([pcm[:place], middle, pcm[later + fade :]])


def pitch_shift(pcm: np.ndarray, place: int, sign: int, rate: int) -> int:
    """The shift of one pitch period for `splice` after which the sound matches best.

    Args:
      pcm: float32[n], with the longest period and 10 ms on the side of the shift.
      place: Sample at which the cross-fade begins.
      sign: 1 to shorten, -1 to lengthen.
      rate: Samples a second.
    """
    shortest, longest = (round(period * rate) for period in PERIODS_S)
    match = round(_MATCH_S * rate)
    lags = np.arange(shortest, longest + 1)
    windows = np.lib.stride_tricks.sliding_window_view(pcm, match)
    return sign * int(lags[_best(windows[place + sign * lags], pcm[place : place + match])])


def _best(windows: np.ndarray, wanted: np.ndarray) -> int:
    """Index of the window of [k, n] with the highest normalised correlation with float32[n]."""
    scale = np.sqrt(np.einsum("kn,kn->k", windows, windows)) + 1e-9
    return int(np.argmax(windows @ wanted / scale))


def _cross_fade(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    weight = (np.arange(len(new), dtype=np.float32) + 0.5) / np.float32(max(len(new), 1))
    return old + weight * (new - old)
