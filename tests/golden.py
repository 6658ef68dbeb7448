r"""Text goldens of every preset's parameters, to be read as diffs.

python -m tests.golden            # rewrites tests/golden/*.txt
"""

import functools
import pathlib

import jax

from interaction.checkpoint import flatten
from interaction.live import init_model_params
from interaction.presets import PRESETS

FOLDER = pathlib.Path(__file__).parent / "golden"


def describe(preset: str) -> str:
    """Path, dtype and shape of each parameter, and counts by part."""
    init = functools.partial(init_model_params, PRESETS[preset]())
    leaves = flatten(jax.eval_shape(init, jax.random.key(0)))
    lines = [f"{name} {leaf.dtype}{list(leaf.shape)}" for name, leaf in sorted(leaves.items())]
    parts: dict[str, int] = {}
    for name, leaf in leaves.items():
        part = name.partition("/")[0]
        parts[part] = parts.get(part, 0) + leaf.size
    lines += [f"# {part}: {count:,}" for part, count in sorted(parts.items())]
    return "\n".join([*lines, f"# total: {sum(parts.values()):,}"]) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in PRESETS:
        (FOLDER / f"{name}_parameters.txt").write_text(describe(name))
