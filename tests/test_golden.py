"""Parameters, shardings and collectives equal their goldens, so that each change is a decision."""

import math

import pytest

from interaction.presets import PRESETS
from tests import golden

ADVICE = "run `python -m tests.golden` and read the diff"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_parameters(preset: str) -> None:
    wanted = (golden.FOLDER / f"{preset}_parameters.txt").read_text()
    assert golden.parameters(preset) == wanted, ADVICE


@pytest.mark.parametrize("program", sorted(golden.PROGRAMS))
def test_collectives(program: str) -> None:
    wanted = (golden.FOLDER / f"{program}_collectives.txt").read_text()
    assert golden.collectives(golden.PROGRAMS[program]) == wanted, ADVICE


@pytest.mark.parametrize("preset", ["base", "medium", "large", "background_base"])
def test_the_step_moves_activations_and_splits_no_sum(preset: str) -> None:
    """Shapes fit the mesh; no array as large as a weight is moved, no floats are summed."""
    model = PRESETS[preset]()
    found = golden.moves(golden.trace_step(model, {"expert": 8, "tensor": 2}, 8))
    assert any(name == "kernel" and kernel == "gather_gemv" for _, name, kernel, _ in found)
    names = {name for _, name, _, _ in found}
    assert names == {"all_gather", "all_to_all", "kernel", "psum"}
    summed = {operand for _, name, _, operand in found if name == "psum"}
    assert all(operand.startswith("int32") for operand in summed)  # refused rows
    smallest = model.transformer.dim * model.transformer.expert_ffn
    for _, name, _, operand in found:
        if name != "kernel":
            numbers = operand[operand.index("[") + 1 : -1]
            assert math.prod(int(n) for n in numbers.split(",")) < smallest / 4, operand


@pytest.mark.parametrize("preset", ["base", "medium", "large", "background_small"])
@pytest.mark.parametrize("axes", [{"fsdp": 4, "expert": 4, "tensor": 2, "sequence": 2}])
def test_training_fits_the_mesh(preset: str, axes: dict[str, int]) -> None:
    found = golden.moves(golden.trace_train(PRESETS[preset](), axes, 16))
    assert any(kernel == "grouped_outer" for _, _, kernel, _ in found)
    # Inputs of products are gathered; only gradients are summed over devices, outside of layers.
    assert not [move for move in found if move[1] == "psum" and " x " in move[0]]
