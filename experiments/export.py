r"""Merges trained parts of runs into one released folder.

python -m experiments.export --conversation=runs/demo --speech=runs/demo_speech \
    --vocoder=runs/demo_vocoder --out=interaction/checkpoints/demo
"""

import dataclasses
import math
import pathlib

from absl import app, flags, logging
from flax import traverse_util

from interaction.checkpoint import WEIGHTS, load_config, save_model
from interaction.config import ModelConfig
from interaction.training.checkpoints import load_part

_PARTS = {  # flag -> parts of the model that its run trains
    "conversation": ("trunk", "router_bias"),
    "speech": ("speech",),
    "vocoder": ("vocoder",),
}
for _flag, _parts in _PARTS.items():
    flags.DEFINE_string(
        _flag, None, f"Run (or released folder) to take {' and '.join(_parts)} from."
    )
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", "interaction/data/tokenizer.json", "JSON file.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the stored weights.")
flags.mark_flags_as_required(list(_PARTS))


def merge(conversation: ModelConfig, speech: ModelConfig, vocoder: ModelConfig) -> ModelConfig:
    """The config of the parts together.

    Raises:
      ValueError: a run was trained for another front end, vocabulary or trunk than the rest.
    """
    shared = {
        "audio": (conversation.audio, speech.audio, vocoder.audio),
        "vocab": (conversation.vocab, speech.vocab),
        "transformer.dim": (conversation.transformer.dim, speech.transformer.dim),
        "speech.mel_floor": (conversation.speech.mel_floor, speech.speech.mel_floor),
    }
    for field, values in shared.items():
        for flag, value in zip(_PARTS, values, strict=False):
            if value != values[0]:
                raise ValueError(
                    f"{field}: got {value} in --{flag}, wanted {values[0]} as in --conversation; "
                    "merge runs that were trained for each other"
                )
    return dataclasses.replace(conversation, speech=speech.speech, vocoder=vocoder.vocoder)


def main(argv: list[str]) -> None:
    """Copies the averaged parameters of each run into one folder, piece by piece."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    sources = {flag: getattr(flags.FLAGS, flag) for flag in _PARTS}
    config = merge(*(load_config(sources[flag]) for flag in _PARTS))
    weights = {}
    for flag, parts in _PARTS.items():
        for part in parts:
            found, place = load_part(sources[flag], part)
            weights |= found
            count = sum(math.prod(leaf.shape) for leaf in found.values())
            print(f"{part:12} {count:>10,} parameters from {place}")
    params = traverse_util.unflatten_dict(weights, sep="/")
    save_model(_OUT.value, config, params, _TOKENIZER.value, _DTYPE.value)
    size = (pathlib.Path(_OUT.value) / WEIGHTS).stat().st_size
    print(f"{_OUT.value}: {size / 1e6:.1f} MB, {_DTYPE.value}")


if __name__ == "__main__":
    app.run(main)
