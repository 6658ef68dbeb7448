"""Expert-parallel exchange of tokens over a mesh axis."""

from pallas_kernels.expert_exchange.api import (
    METHODS,
    Route,
    cheaper_dispatch,
    combine,
    dispatch,
    exchange_layer,
)

__all__ = ["METHODS", "Route", "cheaper_dispatch", "combine", "dispatch", "exchange_layer"]
