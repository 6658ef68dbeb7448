"""The subword tokenizer of the demo: eight special tokens, the bytes, whole words and pieces."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from interaction.types import Special

PATH = Path(__file__).parent / "tokenizer.json"


class Tokenizer:
    """Text to ids and back. A word has its leading space in it, and its ids depend on it alone."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        """Wraps a Hugging Face tokenizer whose first ids are those of `interaction.types.Special`.

        Raises:
          ValueError: The special tokens have other ids.
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
        """Ids of a text."""
        return self._core.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without the special tokens."""
        return self._core.decode([int(i) for i in ids if i >= Special.COUNT]).strip()

    def save(self, path: Path) -> None:
        """Writes the tokenizer to one JSON file."""
        self._core.save(str(path))


def train(
    words: Iterable[str],
    lines: Iterable[str],
    vocab: int = 1_024,
    later: Sequence[str] = (),
    pieces: Sequence[str] = (),
) -> Tokenizer:
    """Makes a unigram model over bytes, with whole words and learned pieces.

    The ids are those of the special tokens, the 256 bytes, the words in order, and then pieces that
    byte-pair encoding learns, the most frequent first, as many as fit. Other text is encoded as its
    bytes.

    Args:
      words: Words that get one id each.
      lines: Text from which pieces are learned.
      vocab: Number of ids.
      later: Further words with one id each. They and `pieces` replace the last learned pieces, so
        that all other ids stay as they are without them.
      pieces: Further pieces, in the characters of the byte-level alphabet.

    Raises:
      ValueError: There are more words and pieces than ids.
    """
    pre = pre_tokenizers.ByteLevel(add_prefix_space=True)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = [pre.pre_tokenize_str(word)[0][0] for word in words]
    room = vocab - Special.COUNT - len(symbols)
    if len(whole) > room:
        raise ValueError(
            f"words: got {len(whole)}, wanted at most {room}; pass fewer words or raise vocab"
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
    """The tokenizer in a file, by default the one of the demo.

    Raises:
      ValueError: The file is missing or damaged, or is no tokenizer of this project.
    """
    try:
        core = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise ValueError(
            f"{path}: got no tokenizer ({error}), wanted a tokenizer.json; copy the file again"
        ) from error
    return Tokenizer(core)
