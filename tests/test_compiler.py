"""Compiler options: used where XLA knows them, left out where it does not."""

import jax
import jax.numpy as jnp
import pytest

from interaction import compiler


def test_options_are_accepted() -> None:
    double = jax.jit(lambda x: 2 * x, compiler_options=compiler.compiler_options())
    assert double(jnp.ones(())) == 2


def test_unknown_option_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    assert compiler.compiler_options.__wrapped__() == {}
