"""The choice of an op's implementation, and the reasons why others cannot run."""

import warnings
from collections.abc import Mapping

import jax


def platform() -> str:
    """The platform that is traced for: "tpu", "gpu" or "cpu".

    It is "tpu" under a mesh of TPUs, so that a program that is compiled for TPUs on another machine
    gets the TPU's kernels. Otherwise it is JAX's default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and "TPU" in device.device_kind:
        return "tpu"
    return jax.default_backend()


def pick(op: str, wanted: str | None, refusals: Mapping[str, str | None]) -> str:
    """Chooses an implementation.

    Args:
      op: The op's name, for messages.
      wanted: An implementation's name. None chooses the platform's kernel; if the platform has
        none, "xla"; if its kernel cannot run, "xla" with a warning.
      refusals: For each implementation the reason why it cannot run here, or None if it can. "xla"
        must be among them and able to run.

    Returns:
      The implementation's name.

    Raises:
      ValueError: `wanted` is unknown or cannot run; the message has the reason.
    """
    if wanted is None:
        here = platform()
        if here not in refusals:
            return "xla"
        if refusals[here] is None:
            return here
        warnings.warn(f"{op} takes 'xla', which is slow on {here}: {refusals[here]}", stacklevel=3)
        return "xla"
    if wanted not in refusals:
        raise ValueError(f"{op}: implementation={wanted!r}, wanted one of {', '.join(refusals)}")
    if refusals[wanted] is not None:
        possible = ", ".join(name for name, reason in refusals.items() if reason is None)
        raise ValueError(
            f"{op}: implementation={wanted!r} cannot run here: {refusals[wanted]}; "
            f"possible: {possible}"
        )
    return wanted
