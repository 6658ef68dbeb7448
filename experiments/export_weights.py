r"""Writes the released form of a backbone: shards, index, config.json and tokenizer.json.

python -m experiments.export_weights --source=backbones/inkling_small --out=Inkling-Small-copy

The layers for multi-token prediction are not among them: the import leaves them out.
"""

import jax
from absl import app, flags
from tqdm import tqdm

from interaction.pretrained.backbone_folder import load_backbone, save_released

_SOURCE = flags.DEFINE_string("source", None, "Folder of the backbone.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write; it must not exist.", required=True)


def main(argv: list[str]) -> None:
    """Copies all tensors, piece by piece."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        config, params = load_backbone(_SOURCE.value)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        with tqdm(total=size, unit="B", unit_scale=True) as bar:
            save_released(_OUT.value, _SOURCE.value, config, params, bar.update)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    print(f"{_OUT.value}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    app.run(main)
