r"""Reads the weights of a released Inkling model into the folder of a backbone.

python -m experiments.import_weights --source=Inkling-Small --out=backbones/inkling_small

The source is a folder with config.json, tokenizer.json and bfloat16 or float32 weights.
"""

import jax
from absl import app, flags
from tqdm import tqdm

from interaction.pretrained.backbone_folder import save_backbone
from interaction.pretrained.inkling import open_released
from interaction.pretrained.inkling_config import LONG_WINDOW, read_config

_SOURCE = flags.DEFINE_string("source", None, "Folder of the released model.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write; it must not exist.", required=True)
_LONG_WINDOW = flags.DEFINE_integer(
    "long_window", LONG_WINDOW, "Newest keys that a query of a long layer sees."
)


def main(argv: list[str]) -> None:
    """Copies all tensors, piece by piece."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        config = read_config(_SOURCE.value, _LONG_WINDOW.value)
        params = open_released(_SOURCE.value, config)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        with tqdm(total=size, unit="B", unit_scale=True) as bar:
            save_backbone(_OUT.value, _SOURCE.value, config, params, bar.update)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    print(f"{_OUT.value}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    app.run(main)
