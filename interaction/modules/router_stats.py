"""Statistics of the router of a layer."""

from typing import NamedTuple

from interaction.types import Array


class BlockAux(NamedTuple):
    """Statistics of the router of a layer."""

    load: Array  # float32[e], tokens that each expert took, without padding
    router_z: Array  # float32[], sum over tokens of the router's squared log-partition
