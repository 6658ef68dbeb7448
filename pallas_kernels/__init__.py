"""Expert dispatch of mixture-of-experts layers: Pallas kernels for TPU and GPU, XLA for CPUs."""

from pallas_kernels.expert_exchange import combine, dispatch
from pallas_kernels.gather_gemv import gather_gemv
from pallas_kernels.grouped_matmul import grouped_matmul

__all__ = ["combine", "dispatch", "gather_gemv", "grouped_matmul"]
