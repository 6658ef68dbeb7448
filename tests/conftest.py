"""Tests run on the CPU of any machine, which is set up as eight devices."""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

gc.set_threshold(100_000, 20, 100)  # traced programs stay, and to visit them again takes minutes
