"""Expert-parallel exchange of tokens over a mesh axis."""

from pallas_kernels.expert_exchange.api import (
    cheaper_dispatch,
    combine,
    dispatch,
    exchange_layer,
)
from pallas_kernels.expert_exchange.routing import Route
from pallas_kernels.expert_exchange.validation import METHODS

__all__ = ["METHODS", "Route", "cheaper_dispatch", "combine", "dispatch", "exchange_layer"]
