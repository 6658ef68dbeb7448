"""Recitals: sound and tokens agree, and words come in orders that no answer has."""

import json

import numpy as np

from interaction.data import domain, records, timing
from interaction.data.recitals import line, make_recital
from interaction.data.tokenizer import load_tokenizer
from interaction.types import Special

TURNS = 40


def test_the_same_seed_gives_the_same_recital() -> None:
    first, again, other = (make_recital((3, i), TURNS) for i in (1, 1, 2))
    assert records.encode(first) == records.encode(again) != records.encode(other)


def test_the_model_speaks_where_its_text_does_and_nobody_else() -> None:
    words = set(domain.answer_words())
    for seed in range(4):
        record = make_recital((0, seed), TURNS)
        assert json.loads(record["meta"])["events"] == []
        assert not record["user"].any() and (record["heard"] == Special.NONE).all()
        silent = record["text"] == Special.SILENT
        sound = np.abs(record["model"].reshape(TURNS, timing.TURN).astype(int)).max(axis=1)
        assert silent[:2].all() and not sound[silent].any()
        assert (~silent).mean() > 0.4 and (sound[~silent] > 300).mean() > 0.8
        assert {*load_tokenizer().decode(record["text"]).split()} <= words


def test_lines_are_answers_and_words_in_random_order() -> None:
    rng = np.random.default_rng(0)
    lines = [line(rng) for _ in range(60)]
    answers = {
        intent.answer(slots)
        for intent in domain.INTENTS
        for slots in domain.all_slots(intent)
        if len(intent.slots) < 3
    }
    known = sum(said in answers for said in lines)
    assert 15 < known < 45 and len(set(lines)) > 40
