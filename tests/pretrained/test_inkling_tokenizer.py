"""A converted tokenizer gives the released ids + 8."""

import json
import pathlib

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from interaction.data.tokenizer import load_tokenizer
from interaction.pretrained.inkling_tokenizer import convert_tokenizer

TEXT = "what is six plus two and who said <|end|> to naïve 猫 people?"


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    """Byte-pair encoding with a token for the beginning of a text, and two that are added."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [TEXT.lower()] * 3,
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False),
    )
    core.add_special_tokens(["<|begin|>", "<|end|>"])
    begin = core.token_to_id("<|begin|>")
    core.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    core.save(str(tmp_path / "released.json"))
    return tmp_path / "released.json"


def test_ids_are_the_released_ones_and_eight(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    convert_tokenizer(source, tmp_path / "ours.json")
    ours, theirs = (
        load_tokenizer(tmp_path / "ours.json"),
        tokenizers.Tokenizer.from_file(str(source)),
    )
    wanted = theirs.encode(TEXT).ids
    assert wanted[0] == theirs.token_to_id("<|begin|>") and theirs.token_to_id("<|end|>") in wanted
    assert ours.encode(TEXT) == [number + 8 for number in wanted[1:]]
    assert ours.vocab == theirs.get_vocab_size() + 8
    assert min(ours.encode("<silent> <hold> <delegate>")) >= 8  # text is never a control token


def test_what_cannot_be_converted_is_named(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    fields = json.loads(source.read_text())
    fields["model"]["vocab"]["<silent>"] = 7
    source.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"model\.vocab: has \['<silent>'\], wanted none"):
        convert_tokenizer(source, tmp_path / "ours.json")
    fields["model"]["vocab"] = [["a", 0.0]]
    source.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"model\.vocab: got list, wanted tokens with their ids"):
        convert_tokenizer(source, tmp_path / "ours.json")
