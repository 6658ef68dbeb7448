"""Shapes of the presets' mixture-of-experts layers, and realistic loads of their experts."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layer:
    """One mixture-of-experts layer."""

    dim: int  # width of a token
    experts: int
    experts_per_token: int
    ffn: int  # hidden width of one expert
    train_tokens: int  # tokens of a device in a training step; each gives experts_per_token rows

    @property
    def expert_values(self) -> int:
        """Number of values in the three matrices of one expert."""
        return 3 * self.dim * self.ffn


PRESETS = {
    "demo": Layer(dim=192, experts=8, experts_per_token=2, ffn=64, train_tokens=960),
    "base": Layer(dim=1024, experts=32, experts_per_token=4, ffn=512, train_tokens=4096),
    "small": Layer(dim=4096, experts=256, experts_per_token=6, ffn=2048, train_tokens=8192),
}
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)  # tokens of a streaming step

_SKEW = 0.7  # scale of the experts' popularity, relative to that of a token's own preference


def choose(tokens: int, layer: Layer, seed: int = 0) -> np.ndarray:
    """Draws the choices of a skewed router.

    A token chooses the experts with the highest scores. A score is the sum of the expert's
    popularity, which all tokens share, and of the token's own preference; both are drawn from a
    Gumbel distribution.

    Args:
      tokens: Number of tokens, t.
      layer: The layer, which has k experts per token.
      seed: Seed of the draw.

    Returns:
      int32[t, k], distinct experts in each row.
    """
    rng = np.random.default_rng(seed)
    popularity = _SKEW * rng.gumbel(size=layer.experts)
    score = popularity + rng.gumbel(size=(tokens, layer.experts))
    return np.argsort(-score, axis=-1)[:, : layer.experts_per_token].astype(np.int32)


def group_sizes(tokens: int, layer: Layer, experts: int, seed: int = 0) -> np.ndarray:
    """Draws the rows of each of a device's experts in a training step, with a skewed load.

    Args:
      tokens: Tokens of one device; all devices together send theirs to all experts of the layer.
      layer: The layer.
      experts: Experts of one device, e, a divisor of the layer's; the device has the first ones.
      seed: Seed of the draw.

    Returns:
      int32[e]; the sum is about tokens * experts_per_token, and equal to it on a single device.
    """
    chosen = choose(tokens, layer, seed)
    popularity = np.bincount(chosen.reshape(-1), minlength=layer.experts) / chosen.size
    rows = chosen.size * (layer.experts // experts)
    return np.random.default_rng(seed).multinomial(rows, popularity)[:experts].astype(np.int32)
