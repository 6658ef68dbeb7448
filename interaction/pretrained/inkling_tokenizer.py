"""The released tokenizer with our ids: theirs + 8, behind the special tokens."""

import json
import os
import pathlib

from interaction.pretrained.inkling_config import read_json
from interaction.types import Special


def convert_tokenizer(source: str | os.PathLike, out: pathlib.Path) -> None:
    """Writes a released tokenizer.json with our ids.

    Args:
      source: The released file.
      out: File to write. What `interaction.data.tokenizer` loads of it adds no token of its own to
        a text, such as one for its beginning.

    Raises:
      ValueError: The file is of a kind that is not read, or has a token with the name of one of the
        special tokens.
    """
    fields = read_json(pathlib.Path(source))
    model = fields.get("model") or {}
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise ValueError(
            f"{source}: model.vocab: got {type(vocab).__name__}, wanted tokens with their ids, as "
            "of byte-pair encoding; take the tokenizer.json that was released with the weights"
        )
    more = fields.get("added_tokens") or []
    names = {*vocab, *(token["content"] for token in more)}
    taken = [name for name in Special.NAMES if name in names]
    if taken:
        raise ValueError(
            f"{source}: model.vocab: has {taken}, wanted none of the special tokens' names; take "
            "the tokenizer.json that was released with the weights"
        )
    moved = {name: number for number, name in enumerate(Special.NAMES)}
    moved |= {name: number + Special.COUNT for name, number in vocab.items()}
    added = [{**token, "id": token["id"] + Special.COUNT} for token in more]
    new = {"model": {**model, "vocab": moved}, "added_tokens": added}
    new |= dict.fromkeys(("post_processor", "padding", "truncation"))
    out.write_text(json.dumps(fields | new, ensure_ascii=False))
