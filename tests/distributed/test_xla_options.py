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


def test_a_rounding_is_not_left_out() -> None:
    options = xla_options.compiler_options("cpu")
    square = jax.jit(lambda x: (x * x).astype(jnp.float32), compiler_options=options)
    # (129 / 128) squared is 1.01569; the nearest number of 8 bits is 130 / 128.
    assert square(jnp.bfloat16(129 / 128)) == 130 / 128
