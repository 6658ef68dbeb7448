"""Voices of the user, split into those of training and those held out, and the assistant's."""

import dataclasses

import numpy as np

ACCENTS = (
    "en-us",
    "en",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us-nyc",
)
# Variants of espeak-ng that sound like a person; robots, whispers and croaks are left out.
TRAIN_VARIANTS = tuple(
    "Alicia Andrea Andy Annie Denis Diogo Gene Henrique Jacky Lee Marco Mario Mike Nguyen "
    "RicishayMax RicishayMax3 adam anika announcer antonio aunty benjamin boris caleb ed edward "
    "f1 f3 f4 f5 grandma gustave iven iven2 iven4 john klatt klatt2 klatt4 linda m1 m2 m4 m5 m6 "
    "m8 marcelo max michel miguel norbert paul pedro quincy robert sandro shelby steph steph3 "
    "travis zac".split()
)
HELD_OUT_VARIANTS = tuple(
    "Alex Hugo Michael belinda david f2 grandpa klatt3 m3 m7 pablo rob steph2 victor".split()
)
FLITE_USERS = ("kal16", "awb", "rms")
FLITE_SHARE = 0.08  # of the training users
WARP = (0.92, 1.08)  # range of the training users' playback rate
ASSISTANT = "slt"
SPLITS = ("train", "heldout")


@dataclasses.dataclass(frozen=True)
class Voice:
    """One user's way of speaking."""

    engine: str  # espeak or flite
    name: str  # the engine's name of it
    speed: float  # words a minute (espeak), stretch of durations (flite)
    pitch: int = 50  # 0..99 (espeak)
    warp: float = 1.0  # playback rate: above 1 a shorter vocal tract, higher and faster

    @property
    def variant(self) -> str:
        """What the split is made by: the variant of espeak-ng, or flite's voice."""
        return self.name.rsplit("+", 1)[-1]

    def __str__(self) -> str:
        """All of it in one word."""
        return f"{self.engine}:{self.name}:{self.speed:g}:{self.pitch}:{self.warp:g}"


def draw_voice(rng: np.random.Generator, split: str) -> Voice:
    """Draws a user of a split.

    Raises:
        ValueError: the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, wanted one of {SPLITS}; name one of them")
    warp = round(rng.uniform(*WARP), 3) if split == "train" else 1.0
    if split == "train" and rng.random() < FLITE_SHARE:
        name = FLITE_USERS[int(rng.integers(len(FLITE_USERS)))]
        return Voice("flite", name, round(rng.uniform(0.85, 1.15), 2), warp=warp)
    variants = TRAIN_VARIANTS if split == "train" else HELD_OUT_VARIANTS
    accent = ACCENTS[int(rng.integers(len(ACCENTS)))]
    variant = variants[int(rng.integers(len(variants)))]
    speed, pitch = int(rng.integers(125, 196)), int(rng.integers(25, 76))
    return Voice("espeak", f"{accent}+{variant}", speed, pitch, warp)
