"""The notebooks install from the address in `pyproject.toml`, and their badges open them there."""

import pathlib
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
PLACE = f"{ADDRESS.replace('//github.com/', '//colab.research.google.com/github/')}/blob/main/colab"


@pytest.mark.parametrize("name", ["talk", "inspect_session", "delegation"])
def test_a_notebook_opens_in_colab_and_installs_from_the_repository(name: str) -> None:
    text = (ROOT / "colab" / f"{name}.py").read_text()
    assert f"({PLACE}/{name}.ipynb)" in text
    assert f'"INTERACTION_SOURCE", "git+{ADDRESS}"' in text


def test_the_readme_opens_the_talk() -> None:
    assert f"({PLACE}/talk.ipynb)" in (ROOT / "README.md").read_text()
