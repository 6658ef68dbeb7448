"""Which implementation of an op runs, and why another one does not."""

from collections.abc import Mapping

import jax


def platform() -> str:
    """The platform that is traced for: "tpu", "gpu" or "cpu".

    That of the mesh in context, so that a program compiled ahead of time for devices which are
    not here gets their kernels; without one, that of JAX's default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and "TPU" in device.device_kind:
        return "tpu"
    return jax.default_backend()


def pick(op: str, wanted: str | None, refusals: Mapping[str, str | None]) -> str:
    """Chooses an implementation.

    Args:
      op: The op's name, for the error.
      wanted: An implementation's name, or None for the first that nothing speaks against.
      refusals: Why an implementation cannot run here, or None where it can; best first.

    Returns:
      The implementation's name.

    Raises:
      ValueError: `wanted` is unknown or cannot run, or none can; the message says why.
    """
    if wanted is None:
        for name, reason in refusals.items():
            if reason is None:
                return name
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
        raise ValueError(f"{op} has no implementation for these arguments: {reasons}")
    if wanted not in refusals:
        raise ValueError(f"{op}: implementation={wanted!r}, wanted one of {', '.join(refusals)}")
    if refusals[wanted] is not None:
        possible = ", ".join(name for name, reason in refusals.items() if reason is None)
        raise ValueError(
            f"{op}: implementation={wanted!r} cannot run here: {refusals[wanted]}; "
            f"possible: {possible or 'none'}"
        )
    return wanted
