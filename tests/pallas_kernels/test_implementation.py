"""The choice of the implementation, and the messages about those that cannot run."""

import warnings

import pytest

from pallas_kernels import implementation

REFUSALS = {"tpu": "too wide", "gpu": None, "xla": None, "reference": None}


@pytest.mark.parametrize(("here", "taken"), [("cpu", "xla"), ("gpu", "gpu")])
def test_the_platform_s_kernel_is_the_default(
    here: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(implementation, "platform", lambda: here)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert implementation.pick("op", None, REFUSALS) == taken


def test_a_kernel_that_cannot_run_gives_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementation, "platform", lambda: "tpu")
    with pytest.warns(UserWarning, match="op takes 'xla', which is slow on tpu: too wide"):
        assert implementation.pick("op", None, REFUSALS) == "xla"


def test_a_named_implementation_runs_or_is_refused() -> None:
    assert implementation.pick("op", "reference", REFUSALS) == "reference"
    with pytest.raises(ValueError, match="too wide; possible: gpu, xla, reference"):
        implementation.pick("op", "tpu", REFUSALS)
    with pytest.raises(ValueError, match="implementation='cuda', wanted one of tpu, gpu"):
        implementation.pick("op", "cuda", REFUSALS)
