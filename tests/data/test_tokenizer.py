import pathlib
import subprocess
import sys

import pytest

from interaction.data import domain, tokenizer as tokenizers
from interaction.data.tokenizer import load_tokenizer
from interaction.types import Special


@pytest.mark.parametrize(
    "text",
    [
        "what is the capital of france",
        "that's enough",
        "anna where are my shoes",
        "",
        "antidisestablish zoë 42",
    ],
)
def test_round_trip(text: str) -> None:
    tokenizer = load_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(Special.COUNT <= i < tokenizer.vocab for i in ids)


def test_every_domain_word_is_one_token() -> None:
    tokenizer = load_tokenizer()
    assert tokenizer.vocab == 1_024
    for word in {*domain.answer_words(), *domain.said_words()}:
        assert len(tokenizer.encode(word)) == 1, word


def test_the_shipped_file_is_what_the_command_writes(tmp_path: pathlib.Path) -> None:
    made = tmp_path / "tokenizer.json"
    command = [sys.executable, "-m", "experiments.make_tokenizer", f"--out={made}"]
    subprocess.run(command, cwd=pathlib.Path(__file__).parents[2], check=True, capture_output=True)
    assert made.read_bytes() == tokenizers.PATH.read_bytes()


def test_special_tokens_come_from_no_text_and_are_dropped() -> None:
    tokenizer = load_tokenizer()
    assert min(tokenizer.encode("<silent> <pad>")) >= Special.COUNT
    ids = [Special.SILENT, *tokenizer.encode("good"), Special.HOLD, *tokenizer.encode("morning")]
    assert tokenizer.decode(ids) == "good morning"


def test_a_foreign_tokenizer_is_refused() -> None:
    import tokenizers as hf

    with pytest.raises(ValueError, match="wanted 0"):
        tokenizers.Tokenizer(hf.Tokenizer(hf.models.BPE()))


def test_too_many_words_are_refused() -> None:
    with pytest.raises(ValueError, match="words: got 3, wanted at most 2"):
        tokenizers.train(["one", "two", "three"], [], vocab=266)
