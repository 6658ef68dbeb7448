"""The subword tokenizer that ships with the demo: words and bytes, eight special tokens first."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from interaction.types import Special

PATH = Path(__file__).parent / "tokenizer.json"


class Tokenizer:
    """Text to ids and back; each word carries its own leading space and tokenises alone."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        """Wraps a Hugging Face tokenizer whose first ids are the project's special tokens.

        Raises:
            ValueError: the special tokens have other ids.
        """
        for index, name in enumerate(Special.NAMES):
            if core.token_to_id(name) != index:
                raise ValueError(
                    f"tokenizer: got id {core.token_to_id(name)} for {name}, wanted {index}; "
                    "make it with interaction.data.tokenizer.train"
                )
        self._core = core

    @property
    def vocab(self) -> int:
        """Number of ids."""
        return self._core.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the words of `text`."""
        return self._core.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Words behind `ids`; special tokens are dropped."""
        return self._core.decode([int(i) for i in ids if i >= Special.COUNT]).strip()

    def save(self, path: Path) -> None:
        """Writes one JSON file."""
        self._core.save(str(path))


def train(
    words: Iterable[str],
    lines: Iterable[str],
    vocab: int = 1_024,
    later: Sequence[str] = (),
    pieces: Sequence[str] = (),
) -> Tokenizer:
    """A unigram model over bytes: `words` whole, and pieces learned from `lines`.

    Ids are the special tokens, the 256 bytes, the words in order, and as many learned pieces
    (byte-pair merges, the most frequent first) as there is room for. Text without any of these
    falls apart into its bytes. Words that come `later`, and given `pieces` (which stand as the
    byte-level alphabet writes them), take the ids of the last learned pieces: all others stay.

    Raises:
        ValueError: there are more words than ids.
    """
    pre = pre_tokenizers.ByteLevel(add_prefix_space=True)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = [pre.pre_tokenize_str(word)[0][0] for word in words]
    room = vocab - Special.COUNT - len(symbols)
    if len(whole) > room:
        raise ValueError(
            f"words: got {len(whole)}, wanted at most {room}; shrink the domain or raise vocab"
        )
    merges = tokenizers.Tokenizer(models.BPE())
    merges.pre_tokenizer = pre
    merges.train_from_iterator(
        lines,
        trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=symbols, show_progress=False),
    )
    known = set(whole) | set(symbols)
    learned = sorted(merges.get_vocab().items(), key=lambda item: item[1])
    learned = [piece for piece, _ in learned if piece not in known][: room - len(whole)]
    added = [pre.pre_tokenize_str(word)[0][0] for word in later] + list(pieces)
    added = [piece for piece in dict.fromkeys(added) if piece not in known]
    new = [piece for piece in added if piece not in learned]
    free = [piece for piece in reversed(learned) if piece not in added]
    if len(new) > len(free):
        raise ValueError(
            f"later: got {len(new)} new words and pieces, wanted at most {len(free)}; raise vocab"
        )
    replaced = dict(zip(free, new, strict=False))
    learned = [replaced.get(piece, piece) for piece in learned]
    entries = [(name, -1e4) for name in Special.NAMES]
    entries += [(symbol, -20.0) for symbol in symbols]
    entries += [(word, -5.0) for word in whole]
    entries += [(piece, -5.0 if piece in added else -9.0) for piece in learned]
    core = tokenizers.Tokenizer(models.Unigram(entries, unk_id=Special.PAD))
    core.pre_tokenizer = pre
    core.decoder = decoders.ByteLevel()
    return Tokenizer(core)


@functools.cache
def load_tokenizer(path: Path = PATH) -> Tokenizer:
    """The tokenizer in a file, by default the one that ships with the library.

    Raises:
        ValueError: the file is missing, damaged, or of another project.
    """
    try:
        core = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(
            f"{path}: got no tokenizer ({error}), wanted a tokenizer.json; copy the file again"
        ) from error
    return Tokenizer(core)
