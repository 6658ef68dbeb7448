"""Compiler options are used if XLA accepts them, and omitted otherwise."""

import jax
import jax.numpy as jnp
import pytest

from interaction.distributed import xla_options


def test_options_are_accepted() -> None:
    options = xla_options.compiler_options("cpu")
    assert options  # XLA of this machine accepts them
    double = jax.jit(lambda x: 2 * x, compiler_options=options)
    assert double(jnp.ones(())) == 2


def test_unknown_option_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_options, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    assert xla_options.compiler_options("cpu") == {}
