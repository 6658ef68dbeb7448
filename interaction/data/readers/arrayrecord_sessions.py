"""Stored sessions, such as those of `experiments.make_sessions`, as conversations."""

import os
from collections.abc import Iterator

from interaction.data import records
from interaction.data.conversation_data import Conversation
from interaction.data.stored_conversation import from_stored
from interaction.data.tokenizer import Tokenizer


def read_arrayrecord(
    path: str | os.PathLike, tokenizer: Tokenizer, text_slots: int = 4
) -> Iterator[Conversation]:
    """Reads the sessions of a folder or a file; see `stored_conversation.from_stored`.

    `records.write(path, (to_stored(one, tokenizer) for one in conversations))` writes them.

    Args:
      path: An ArrayRecord file, or a folder of them.
      tokenizer: That of the sessions.
      text_slots: That of the sessions.

    Yields:
      Conversations in the order of the files.

    Raises:
      ValueError: A file is missing or damaged, or a session breaks a rule.
    """
    source = records.source(path)
    for index in range(len(source)):
        yield from_stored(source.decode(index), tokenizer, source.place(index), text_slots)
