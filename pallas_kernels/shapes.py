"""Shapes of the model presets' mixture-of-experts layers, and realistic loads of their experts."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layer:
    """One mixture-of-experts layer."""

    dim: int  # width of a token
    experts: int
    experts_per_token: int
    ffn: int  # hidden width of one expert
    train_tokens: int  # tokens a device routes in a training step; rows are experts_per_token more

    @property
    def expert_values(self) -> int:
        """Numbers in the three matrices of one expert."""
        return 3 * self.dim * self.ffn


PRESETS = {
    "demo": Layer(dim=192, experts=8, experts_per_token=2, ffn=48, train_tokens=960),
    "base": Layer(dim=1024, experts=32, experts_per_token=4, ffn=512, train_tokens=4096),
    "small": Layer(dim=4096, experts=256, experts_per_token=8, ffn=2048, train_tokens=8192),
}
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)

_SKEW = 0.7  # standard deviation of an expert's popularity, in units of a token's own preference


def choose(tokens: int, layer: Layer, seed: int = 0) -> np.ndarray:
    """Experts that a skewed router chooses: some are popular, each token has its own taste.

    Returns:
      int32[tokens, experts_per_token], distinct in a row.
    """
    rng = np.random.default_rng(seed)
    popularity = _SKEW * rng.gumbel(size=layer.experts)
    score = popularity + rng.gumbel(size=(tokens, layer.experts))
    return np.argsort(-score, axis=-1)[:, : layer.experts_per_token].astype(np.int32)


def group_sizes(tokens: int, layer: Layer, experts: int, seed: int = 0) -> np.ndarray:
    """Rows of each of a device's experts in a training step, with the layer's skewed load.

    Args:
      tokens: Tokens a device routes; with its peers, to all of the layer's experts.
      layer: The layer's shape.
      experts: Experts on a device, a divisor of the layer's; the share of the first is drawn.
      seed: Of the draw.

    Returns:
      int32[experts]; the sum is about tokens * experts_per_token, and that if there are no peers.
    """
    chosen = choose(tokens, layer, seed)
    popularity = np.bincount(chosen.reshape(-1), minlength=layer.experts) / chosen.size
    rows = chosen.size * (layer.experts // experts)
    return np.random.default_rng(seed).multinomial(rows, popularity)[:experts].astype(np.int32)
