"""What a session record tells of its delegations."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from interaction.background import agent
from interaction.background.delegations import Note
from interaction.data.tokenizer import load_tokenizer
from interaction.engine.session_record import Entry
from interaction.evaluation.delegation_history import read_delegations
from interaction.types import Special

TURNS = 150
CALL = {"tool": "timer", "amount": 6, "unit": "seconds"}
WORDS = load_tokenizer()
SAID = "it is fifty six"


def entry(turn: int, arrived: str | None, notes: Sequence[tuple]) -> Entry:
    empty = np.zeros(3_200, np.float32)
    ids = None
    if arrived is not None:
        ids = np.full(4, Special.PAD, np.int32)
        tokens = [
            Special.END_DELEGATE if word == "." else WORDS.encode(word)[0]
            for word in arrived.split()
        ]
        ids[: len(tokens)] = tokens
    user_transcript = np.full(2, Special.NONE, np.int32)
    listed = [Note(0.0, number, kind, text) for number, kind, text in notes]
    return Entry(turn, 0.0, empty, ids, None, Special.SILENT, user_transcript, empty, listed)


def test_the_record_tells_to_which_delegation_words_belong() -> None:
    entries = [
        entry(0, None, [(1, "asked", "the time")]),
        entry(1, None, [(2, "asked", "seven times eight"), (0, "ignored", "")]),
        entry(2, "it", [(2, "call", "{}"), (2, "result", "{}"), (2, "text", "it is")]),
        entry(3, "is", [(1, "text", "it is exactly four"), (1, "done", "")]),
        entry(4, "fifty .", [(2, "text", "fifty"), (2, "done", ""), (2, "given", "")]),
        entry(5, "it is exactly four", []),
        entry(6, ".", [(1, "given", "")]),
        entry(7, "hello", []),  # typed
    ]
    time, product = read_delegations(entries)
    assert (time.request, time.closed, time.arrived) == ("the time", 0, 5)
    assert WORDS.decode(time.result) == "it is exactly four"
    assert (product.arrived, WORDS.decode(product.result)) == (2, "it is fifty")
    assert product.turns(agent.CALL) == [2] and product.cancelled == -1
    assert [product.running(turn) for turn in (1, 2, 4, 5)] == [False, True, True, False]


def test_an_update_and_a_cancel_in_a_record() -> None:
    entries = [
        entry(0, None, [(1, "asked", "seven times eight")]),
        entry(1, "it is", [(1, "text", "it is fifty"), (1, "updated", "nine")]),
        entry(2, None, [(2, "asked", "the time")]),
        entry(3, "it", [(2, "text", "it is"), (1, "text", "it is sixty"), (2, "cancelled", "")]),
        entry(4, "is sixty .", [(1, "done", ""), (1, "given", "")]),
    ]
    product, time = read_delegations(entries)
    assert (product.settled, product.arrived) == (1, 3)
    assert WORDS.decode(product.result) == "it is sixty"
    assert time.cancelled == 3 and time.arrived == -1 and not time.running(4)
    assert dataclasses.replace(product, steps=[]).running(9)


def test_a_result_that_was_told_and_is_corrected_runs_again() -> None:
    entries = [
        entry(0, None, [(1, "asked", "seven times eight")]),
        entry(1, "it is fifty .", [(1, "text", "it is fifty"), (1, "done", ""), (1, "given", "")]),
        entry(2, None, [(2, "cancelled", ""), (2, "failed", "told already")]),  # too late
        entry(3, "sorry .", [(2, "given", "")]),
        entry(4, None, [(1, "updated", "nine")]),
        entry(5, "it is sixty .", [(1, "text", "it is sixty"), (1, "done", ""), (1, "given", "")]),
    ]
    (product,) = read_delegations(entries)
    assert (product.settled, product.arrived, product.cancelled) == (4, 5, -1)
    assert WORDS.decode(product.result) == "it is sixty"
    assert [product.running(turn) for turn in range(7)] == [0, 1, 0, 0, 0, 1, 0]
    assert [product.given(turn) for turn in range(7)] == [0, 0, 1, 1, 1, 0, 1]
