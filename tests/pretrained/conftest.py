"""Fixtures of the tests that read a released checkpoint which they wrote themselves."""

import functools
import pathlib

import pytest

from interaction.pretrained import backbone_folder, inkling
from tests.pretrained import inkling_checkpoint as checkpoint

_traced_once = functools.cache(inkling.abstract_backbone)


@pytest.fixture
def narrow_vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vision widths of the checkpoint instead of the released ones."""
    monkeypatch.setattr(inkling, "VISION_WIDTHS", checkpoint.WIDTHS)
    for module in (inkling, backbone_folder):
        monkeypatch.setattr(module, "abstract_backbone", _traced_once)


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    """A released checkpoint."""
    return checkpoint.write(tmp_path / "released", checkpoint.tensors())
