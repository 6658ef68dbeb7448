"""Compiler options: used where XLA knows them, left out where it does not."""

import jax
import jax.numpy as jnp
import pytest

from interaction import compiler


@pytest.mark.parametrize("options", [compiler.compiler_options, compiler.step_compiler_options])
def test_options_are_accepted(options: object) -> None:
    double = jax.jit(lambda x: 2 * x, compiler_options=options())
    assert double(jnp.ones(())) == 2


def test_unknown_option_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    assert compiler.compiler_options() == {}
