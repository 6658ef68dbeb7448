"""Compiler options are used if XLA accepts them, and omitted otherwise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from interaction.distributed import xla_options


@pytest.mark.parametrize(
    "options", [xla_options.compiler_options, xla_options.step_compiler_options]
)
def test_options_are_accepted(options: Callable[[str], dict[str, str]]) -> None:
    assert options("cpu")  # XLA of this machine accepts them
    double = jax.jit(lambda x: 2 * x, compiler_options=options("cpu"))
    assert double(jnp.ones(())) == 2


def test_the_step_sums_in_one_pass() -> None:
    def passes(options: dict[str, str]) -> int:
        add = jax.jit(jnp.sum, compiler_options=options)
        return add.lower(jnp.ones(5_000)).compile().as_text().count("reduce-window(")

    assert passes(xla_options.compiler_options("cpu")) > 0
    assert passes(xla_options.step_compiler_options("cpu")) == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("_CPU_OPTIONS", xla_options.compiler_options),
        ("_CPU_STEP_OPTIONS", xla_options.step_compiler_options),
    ],
)
def test_unknown_option_is_left_out(
    monkeypatch: pytest.MonkeyPatch, name: str, options: Callable[[str], dict[str, str]]
) -> None:
    monkeypatch.setattr(xla_options, name, {"xla_cpu_no_such_option": "1"})
    assert options("cpu") == {}
