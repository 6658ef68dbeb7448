r"""Merges trained parts of runs into one released folder.

python -m experiments.export --conversation=runs/demo_delegation \
    --speech=runs/demo_delegation_speech --vocoder=runs/demo_vocoder \
    --out=interaction/pretrained/models/demo
python -m experiments.export --background=runs/background_demo \
    --out=interaction/pretrained/models/demo_background
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping

from absl import app, flags, logging
from flax import traverse_util

from interaction.config import ModelConfig
from interaction.pretrained.store import WEIGHTS, load_config, save_model
from interaction.training.checkpoints import load_part

_BACKBONE = ("backbone", "router_bias")
_LIVE: dict[str, tuple[str, ...]] = {  # flag -> parts of the live model that its run trains
    "conversation": _BACKBONE,
    "speech": ("speech",),
    "vocoder": ("vocoder",),
}
_BACKGROUND: dict[str, tuple[str, ...]] = {"background": _BACKBONE}  # without speech head
for _flag, _parts in {**_LIVE, **_BACKGROUND}.items():
    flags.DEFINE_string(
        _flag, None, f"Folder of a run or released model that has {' and '.join(_parts)}."
    )
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", "interaction/data/tokenizer.json", "JSON file.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of the weights.")


def chosen_parts(given: Mapping[str, str | None]) -> dict[str, tuple[str, ...]]:
    """Chooses between a live model and a background model.

    Args:
      given: Flag -> folder, None if it is not given.

    Returns:
      Flag -> parts of the model that come from its folder.

    Raises:
      ValueError: The flags name neither a whole live model nor only a background model.
    """
    named = {flag for flag, source in given.items() if source}
    for parts in (_LIVE, _BACKGROUND):
        if named == set(parts):
            return parts
    raise ValueError(
        f"flags: got {sorted(named)}, wanted either {sorted(_LIVE)} or {sorted(_BACKGROUND)}; "
        "name a run for each part"
    )


def merge(conversation: ModelConfig, speech: ModelConfig, vocoder: ModelConfig) -> ModelConfig:
    """The model configuration of the parts together.

    Args:
      conversation: Model configuration of the run of the backbone.
      speech: That of the run of the speech head.
      vocoder: That of the run of the vocoder.

    Raises:
      ValueError: The runs have different front ends, vocabularies or backbone widths.
    """
    shared = {
        "audio": (conversation.audio, speech.audio, vocoder.audio),
        "vocab": (conversation.vocab, speech.vocab),
        "transformer.dim": (conversation.transformer.dim, speech.transformer.dim),
        "speech.mel_floor": (conversation.speech.mel_floor, speech.speech.mel_floor),
    }
    for field, values in shared.items():
        for flag, value in zip(_LIVE, values, strict=False):
            if value != values[0]:
                raise ValueError(
                    f"{field}: got {value} in --{flag}, wanted {values[0]} as in --conversation; "
                    "merge runs that were trained for each other"
                )
    return dataclasses.replace(conversation, speech=speech.speech, vocoder=vocoder.vocoder)


def main(argv: list[str]) -> None:
    """Copies the averaged parameters of the runs into one folder, piece by piece."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    if not pathlib.Path(_TOKENIZER.value).is_file():
        raise ValueError(f"--tokenizer: got {_TOKENIZER.value!r}, wanted a JSON file; correct it")
    given = {flag: flags.FLAGS[flag].value for flag in (*_LIVE, *_BACKGROUND)}
    wanted = chosen_parts(given)
    sources = {flag: str(given[flag]) for flag in wanted}
    configs = [load_config(sources[flag]) for flag in wanted]
    config = merge(*configs) if len(configs) > 1 else configs[0]
    weights = {}
    for flag, parts in reversed(wanted.items()):  # small parts first
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
