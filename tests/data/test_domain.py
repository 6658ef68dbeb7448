import numpy as np
import pytest

from interaction.data import domain, voices
from interaction.data.domain import asides
from interaction.data.domain.form import draw_slots, is_held_out


def test_there_are_at_least_150_forms_with_distinct_words() -> None:
    assert len(domain.FORMS) >= 150
    assert len({form.template for form in domain.FORMS}) == len(domain.FORMS)
    assert len({form.name for form in domain.FORMS}) == len(domain.FORMS)


def test_every_form_has_a_short_plain_answer() -> None:
    rng = np.random.default_rng(0)
    for form in domain.FORMS:
        answer = form.intent.answer(draw_slots(form, rng, held_out=False))
        assert answer and set(answer) <= set("abcdefghijklmnopqrstuvwxyz "), form
        assert len(answer.split()) <= 20


def test_no_prefix_of_a_request_is_a_request() -> None:
    """Otherwise an answer would be right in a pause. Only lists of words to repeat may go on."""
    rng = np.random.default_rng(0)
    for form in domain.FORMS:
        for _ in range(3):
            slots = draw_slots(form, rng, held_out=False)
            words = form.text(slots).split()
            assert domain.complete_forms(" ".join(words))
            parts = form.parts(slots)
            if len(parts) > 1:
                assert not domain.complete_forms(parts[0]), form
            for length in range(1, len(words)):
                found = domain.complete_forms(" ".join(words[:length]))
                assert all(f.intent.name.startswith("repeat") for f in found), (form, length)


def test_openers_stops_and_asides_are_no_requests() -> None:
    for text in (*asides.OPENERS, *asides.STOPS, *asides.BACKCHANNELS, *asides.SIDE_SPEECH):
        assert not domain.complete_forms(text), text
    assert len(asides.ADDRESSED) + len(asides.OVERHEARD) >= 49
    assert len(asides.SIDE_SPEECH) >= 60


def test_held_out_combinations_are_few_and_only_compositional() -> None:
    for intent in domain.INTENTS:
        form = domain.Form("any", "", intent)
        combinations = [s for s, _ in zip(domain.all_slots(intent), range(30_000), strict=False)]
        share = np.mean([is_held_out(form, slots) for slots in combinations])
        if intent.held_out is None:
            assert share == 0
        else:
            assert 0.02 < share < 0.2, intent.name


def test_of_a_held_out_sum_training_has_the_other_order() -> None:
    form = domain.form("sum.1")
    held = [s for s in domain.all_slots(form.intent) if is_held_out(form, s)]
    assert held
    assert not any(is_held_out(form, {"a": s["b"], "b": s["a"]}) for s in held)


def test_draws_respect_the_split_over_all_forms() -> None:
    rng = np.random.default_rng(1)
    for form in domain.FORMS:
        assert not any(is_held_out(form, draw_slots(form, rng, False)) for _ in range(4))
        if form.intent.held_out:
            assert is_held_out(form, draw_slots(form, rng, True))
        else:
            with pytest.raises(ValueError, match="held_out: got True"):
                draw_slots(form, rng, True)


def test_unknown_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="form: got 'nonsense'"):
        domain.form("nonsense")


def test_voices_are_split_by_variant() -> None:
    assert not set(voices.TRAIN_VARIANTS) & set(voices.HELD_OUT_VARIANTS)
    assert len(voices.TRAIN_VARIANTS) >= 60 and len(voices.HELD_OUT_VARIANTS) >= 12
    rng = np.random.default_rng(0)
    train = {voices.draw_voice(rng, "train").variant for _ in range(3_000)}
    held = {voices.draw_voice(rng, "heldout").variant for _ in range(500)}
    assert train == {*voices.TRAIN_VARIANTS, *voices.FLITE_USERS}
    assert held == set(voices.HELD_OUT_VARIANTS)
    with pytest.raises(ValueError, match="split: got 'test'"):
        voices.draw_voice(rng, "test")
