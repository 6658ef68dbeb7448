"""Tests run on the CPU, wherever they run."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
