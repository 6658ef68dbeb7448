"""`LevelControl`: brings a quiet or hot microphone into the range of levels of the training."""

import collections
import math
from typing import Any

import numpy as np

# dB of full scale, root mean square of the user's speech. `data.session_builder` draws -25 to -15
# for a session and 1.5 more or less for each clip; `training.features.augment_user` lifts the mel
# by 0.25 (5 dB) more or less.
RANGE_DB = (-26.5, -13.5)  # drawn; a level that has to change is brought here
TRAINED_DB = (RANGE_DB[0] - 5.0, RANGE_DB[1] + 5.0)  # with the lift; these levels pass unchanged
MOST_DB = 20.0  # dB, most gain and most loss
_STEP_DB = 1.2  # dB, most change in a micro-turn: 6 dB/s
_FRAME_S = 0.02  # as in `data.clips.level`
_SPEECH = (50, 150)  # frames of speech that are needed and looked at: 1 s and 3 s
_AUDIBLE = 1e-3  # power relative to the loudest frame, from which on a frame counts
_ABOVE_NOISE, _SILENT = 4.0, 1e-7  # power of speech relative to the noise, and at least
_MEMORY = 25  # micro-turns in which the noise and clipping are looked at: 5 s
_FULL, _FULL_SAMPLES, _FULL_TURNS = 0.99, 8, 3  # magnitude, samples and micro-turns of clipping


class LevelControl:
    """A slow automatic gain for one microphone; it is exactly 1 for levels of the training.

    Attributes:
      gain_db: The gain at the end of the last micro-turn, dB.
      problem: What the gain cannot mend: "too quiet", "clipped" or "".
    """

    def __init__(self, rate: int) -> None:
        """Starts with a gain of 1.

        Args:
          rate: Samples a second.
        """
        self._frame = round(_FRAME_S * rate)
        self._speech: collections.deque[float] = collections.deque(maxlen=_SPEECH[1])  # power
        self._noise: collections.deque[float] = collections.deque(maxlen=_MEMORY)  # power
        self._clipped: collections.deque[bool] = collections.deque(maxlen=_MEMORY)
        self._changes = False  # whether the level was outside of the training's and is not yet back
        self.gain_db = 0.0
        self.problem = ""

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        """Brings the level of one micro-turn into the range.

        Args:
          pcm: float32[samples] in [-1, 1].

        Returns:
          float32[samples]; `pcm` itself if the gain is 1.
        """
        level_db = self._listen(pcm)
        wanted = 0.0 if level_db is None else self._wanted(level_db)
        before = self.gain_db
        self.gain_db += min(max(wanted - before, -_STEP_DB), _STEP_DB)
        self.problem = ""
        if level_db is not None and level_db + MOST_DB < TRAINED_DB[0]:
            self.problem = "too quiet"
        if sum(self._clipped) >= _FULL_TURNS:
            self.problem = "clipped"
        if before == self.gain_db == 0.0:
            return pcm
        gain = 10 ** (np.linspace(before, self.gain_db, len(pcm)) / 20)
        return np.clip(pcm * gain, -1.0, 1.0).astype(np.float32)

    def saved(self) -> dict[str, Any]:
        """All that the next micro-turns depend on: what `resume` takes."""
        return {
            "speech": list(self._speech),
            "noise": list(self._noise),
            "clipped": list(self._clipped),
            "changes": self._changes,
            "gain_db": self.gain_db,
        }

    def resume(self, fields: dict[str, Any]) -> None:
        """Goes on from what `saved` returned."""
        self._speech.extend(fields["speech"])
        self._noise.extend(fields["noise"])
        self._clipped.extend(fields["clipped"])
        self._changes, self.gain_db = fields["changes"], fields["gain_db"]

    def _listen(self, pcm: np.ndarray) -> float | None:
        """Level of the speech of the last seconds in dB of full scale; None while unknown."""
        self._clipped.append(int(np.sum(np.abs(pcm) >= _FULL)) >= _FULL_SAMPLES)
        frames = pcm[: len(pcm) // self._frame * self._frame].reshape(-1, self._frame)
        power = np.square(frames).mean(axis=1)
        self._noise.append(float(power.min()))
        threshold = max(_ABOVE_NOISE * min(self._noise), _SILENT)
        self._speech.extend(power[power > threshold].tolist())
        if len(self._speech) < _SPEECH[0]:
            return None
        speech = np.asarray(self._speech)
        return 10 * math.log10(float(speech[speech > _AUDIBLE * speech.max()].mean()))

    def _wanted(self, level_db: float) -> float:
        """The gain in dB for a level in dB; it is kept until the level itself is in the range."""
        nearest = min(max(level_db, RANGE_DB[0]), RANGE_DB[1])
        if not TRAINED_DB[0] <= level_db <= TRAINED_DB[1]:
            self._changes = True
        elif nearest == level_db:
            self._changes = False
        return min(max(nearest - level_db, -MOST_DB), MOST_DB) if self._changes else 0.0
