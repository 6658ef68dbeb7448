"""Voices: those of users in training, those of held-out users, and the assistant's."""

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
# Variants of espeak-ng that sound like a person, without robots, whispers and croaks.
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
FLITE_SHARE = 0.08  # share of the training users that speak with flite
WARP = (0.92, 1.08)  # range of the playback rate of training users
ASSISTANT = "slt"
SPLITS = ("train", "heldout")

# Styles of Kokoro; training hears blends of all but the held-out one.
STYLES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
HELD_OUT_STYLE = "jf_nezumi"
NATURAL_ACCENTS = ("en-us", "en-gb")
BLEND = 0.5  # concentration of the Dirichlet distribution of the styles' weights
HELD_OUT_ENGINE = "flite"  # its users are held out where `draw_natural_voice` gives the voices


@dataclasses.dataclass(frozen=True)
class Voice:
    """One user's way of speaking."""

    engine: str  # espeak or flite
    name: str  # name in the engine
    speed: float  # espeak: words a minute; flite: factor of all durations
    pitch: int = 50  # 0..99, espeak only
    warp: float = 1.0  # playback rate; above 1 is faster and higher, as of a shorter vocal tract

    @property
    def variant(self) -> str:
        """The variant of espeak-ng or the voice of flite; the splits have no variant in common."""
        return self.name.rsplit("+", 1)[-1]

    def __str__(self) -> str:
        """All fields, joined by colons."""
        return f"{self.engine}:{self.name}:{self.speed:g}:{self.pitch}:{self.warp:g}"


def draw_voice(rng: np.random.Generator, split: str) -> Voice:
    """Draws the voice of a user of a split.

    Raises:
      ValueError: The split is unknown.
    """
    _check_split(split)
    warp = round(rng.uniform(*WARP), 3) if split == "train" else 1.0
    if split == "train" and rng.random() < FLITE_SHARE:
        name = FLITE_USERS[int(rng.integers(len(FLITE_USERS)))]
        return Voice("flite", name, round(rng.uniform(0.85, 1.15), 2), warp=warp)
    variants = TRAIN_VARIANTS if split == "train" else HELD_OUT_VARIANTS
    accent = ACCENTS[int(rng.integers(len(ACCENTS)))]
    variant = variants[int(rng.integers(len(variants)))]
    speed, pitch = int(rng.integers(125, 196)), int(rng.integers(25, 76))
    return Voice("espeak", f"{accent}+{variant}", speed, pitch, warp)


@dataclasses.dataclass(frozen=True)
class NaturalVoice:
    """One user's way of speaking with Kokoro, changed by a vocoder; see `kokoro.natural_clip`."""

    weights: tuple[float, ...]  # of `STYLES`; they sum to 1 but for rounding
    accent: str  # voice of espeak-ng
    speed: float = 1.0  # rate of speech
    pitch: float = 1.0  # factor of the fundamental frequency
    formants: float = 1.0  # factor of the formants

    def __str__(self) -> str:
        """All fields, joined by colons."""
        blend = "+".join(f"{w:g}" for w in self.weights)
        return f"kokoro:{self.accent}+{blend}:{self.speed:g}:{self.pitch:g}:{self.formants:g}"


def draw_natural_voice(rng: np.random.Generator, split: str) -> NaturalVoice:
    """Draws a blend of styles: without the held-out style in training, else mostly of it.

    Raises:
      ValueError: The split is unknown.
    """
    _check_split(split)
    others = rng.dirichlet(np.full(len(STYLES) - 1, BLEND))
    held_out = 0.0 if split == "train" else rng.uniform(0.5, 1.0)
    parts = np.insert(others * (1 - held_out), STYLES.index(HELD_OUT_STYLE), held_out)
    weights = tuple(round(float(part), 3) for part in parts / parts.sum())
    accent = NATURAL_ACCENTS[int(rng.integers(len(NATURAL_ACCENTS)))]
    speed, pitch, formants = (
        round(float(rng.uniform(*span)), 3) for span in ((0.85, 1.2), (0.85, 1.2), (0.92, 1.1))
    )
    return NaturalVoice(weights, accent, speed, pitch, formants)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, wanted one of {SPLITS}; name one of them")


def draw_held_out_engine(rng: np.random.Generator) -> Voice:
    """Draws a user of the held-out engine, unchanged."""
    name = FLITE_USERS[int(rng.integers(len(FLITE_USERS)))]
    return Voice(HELD_OUT_ENGINE, name, round(rng.uniform(0.85, 1.15), 2))
