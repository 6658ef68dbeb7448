"""SwiGLU experts for few tokens: the weights of each chosen expert are read once."""

from pallas_kernels.gather_gemv.api import gather_gemv
from pallas_kernels.gather_gemv.reference import Scales

__all__ = ["Scales", "gather_gemv"]
