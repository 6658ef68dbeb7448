"""Tests run on the CPU of any machine, which is set up as eight devices."""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    # On a busy machine one of them may wait for another for longer than XLA's 40 s, after which XLA
    # ends the process.
    _WAIT = "--xla_cpu_collective_call_terminate_timeout_seconds=240"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8 {_WAIT}".strip()

os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # unsafe on meshes of CPU devices

gc.set_threshold(100_000, 20, 100)  # traced programs stay, and to visit them again takes minutes
