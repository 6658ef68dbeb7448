"""Which implementation of an op runs, and why another one does not."""

import warnings
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
      op: The op's name, for messages.
      wanted: An implementation's name, or None for the platform's kernel, or "xla" where there is
        none or it cannot run; of the latter a warning tells.
      refusals: Why an implementation cannot run here, or None where it can; with "xla", which
        always can.

    Returns:
      The implementation's name.

    Raises:
      ValueError: `wanted` is unknown or cannot run; the message says why.
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
