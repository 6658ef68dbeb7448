"""Checks the modules that Pallas passes to Triton's compiler, without a GPU."""

import jax
from jaxlib.mlir import ir
from jaxlib.triton import dialect


def verified_kernels(lowered: jax.stages.Lowered) -> list[str]:
    """Names of the kernels of a program lowered for CUDA.

    Raises:
      jaxlib.mlir.ir.MLIRError: Triton's verifier refuses one, as its compiler would.
    """
    modules: list[bytes] = []

    def visit(operation: ir.Operation) -> ir.WalkResult:
        config = operation.attributes.get("mhlo.backend_config")
        if config is not None and "ir" in config:
            modules.append(config["ir"].value_bytes)
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir().operation.walk(visit)
    with ir.Context() as context, ir.Location.unknown():
        dialect.register_dialect(context)
        parsed = [ir.Module.parse(module) for module in modules]
        return [module.operation.attributes["sym_name"].value for module in parsed]
