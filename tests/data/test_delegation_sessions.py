import itertools
import json

import numpy as np
import pytest

from interaction.data import domain, reasoning_tokens, voices
from interaction.data.delegation_sessions import (
    TEXT_SLOTS,
    imagined_reasoning,
    make_delegation_session,
)
from interaction.data.domain import tool_requests
from interaction.data.tokenizer import load_tokenizer
from interaction.model import control_tokens
from interaction.types import Special

SPLITS = ("train", "heldout")


@pytest.fixture(scope="module")
def made() -> dict[str, list[tuple[dict, dict]]]:
    found = {}
    for split in SPLITS:
        records = [make_delegation_session((11, i), split) for i in range(16)]
        found[split] = [(record, json.loads(record["meta"])) for record in records]
    return found


def _find(name: str) -> tool_requests.ToolRequest:
    return next(request for request in tool_requests.TOOL_REQUESTS if request.name == name)


def _spans(text: np.ndarray) -> list[tuple[int, str, int]]:
    """(opening token, words, last micro-turn) of the complete spans in int32[turns]."""
    tokenizer, found, begun = load_tokenizer(), [], -1
    for turn, token in enumerate(text.tolist()):
        if token in control_tokens.OPENING:
            begun = turn
        elif token == Special.END_DELEGATE and begun >= 0:
            words = tokenizer.decode(text[begun + 1 : turn].tolist())
            found.append((int(text[begun]), words, turn))
            begun = -1
        elif token < Special.COUNT:
            begun = -1
    return found


def test_each_tool_request_is_delegated_in_its_own_words(made: dict) -> None:
    for record, meta in made["train"] + made["heldout"]:
        spans = [span for span in _spans(record["text"]) if span[0] == Special.DELEGATE]
        asked = [e for e in meta["events"] if e["kind"] == "tool_request"]
        assert len(asked) == len(meta["delegations"]) == len(spans)
        for (_, words, _), entry in zip(spans, asked, strict=True):
            request = _find(entry["form"])
            pattern = request.delegated.split("{")[0].strip()
            assert words.startswith(pattern) and entry["answer"] == request.holding_reply


def test_results_arrive_before_they_are_said_and_nobody_speaks_then(made: dict) -> None:
    checked = 0
    for record, meta in made["train"] + made["heldout"]:
        decode = load_tokenizer().decode
        for note in meta["delegations"]:
            if not note.get("whole"):
                continue
            first, words = note["said_turn"], note["said"].split()
            said = [int(t) for t in record["text"][first : first + 3 * len(words)]]
            aloud = [token for token in said if token >= Special.COUNT]
            assert decode(aloud[: len(words)]) == note["said"]
            turns = record["arrived_slot"] // TEXT_SLOTS
            arrived = record["arrived"][turns <= first]
            assert decode([t for t in arrived.tolist() if t >= Special.COUNT]).split()[-1] in words
            start_s = 0.2 * (first + 1)
            spoken = [
                (e["start_s"], e["end_s"]) for e in meta["events"] if e["kind"] != "background"
            ]
            assert not any(start < start_s < end for start, end in spoken)
            checked += 1
    assert checked > 15


def test_what_arrives_is_what_is_said_and_ends_with_end_delegate(made: dict) -> None:
    for record, meta in made["train"]:
        tokens = record["arrived"][record["arrived"] != Special.PAD].tolist()
        texts = [[]]
        for token in tokens:
            if token == Special.END_DELEGATE:
                texts.append([])
            else:
                texts[-1].append(token)
        said = sorted(
            (note["said_turn"], note["said"])
            for note in meta["delegations"]
            if note["said_turn"] >= 0
        )
        assert [load_tokenizer().decode(text) for text in texts[:-1]] == [text for _, text in said]
        slots = record["arrived_slot"][: len(tokens)]
        assert (np.diff(slots) > 0).all()


def test_reasoning_begins_with_the_span_that_the_model_wrote(made: dict) -> None:
    """An imagined request has other words, but its fork begins where the model's span ends.

    A correction stands after the request that it corrects.
    """
    same, corrected = [], 0
    for record, meta in made["train"] + made["heldout"]:
        reasoning, prefilled = record["reasoning"], int(record["prefilled"])
        if not prefilled:
            continue
        read = reasoning[: int(np.argmax(record["reasoning_wanted"]))]
        assert read[0] == Special.DELEGATE and read[-1] == Special.END_DELEGATE
        last = read[int(np.flatnonzero(np.isin(read, control_tokens.OPENING))[-1]) :]
        assert record["text"][prefilled - 1] == Special.END_DELEGATE
        same.append(np.array_equal(last, record["text"][prefilled - len(last) : prefilled]))
        assert same[-1] or meta["split"] == "train"
        if len(last) < len(read) and meta["split"] == "heldout":
            corrected += 1
            asked = read[: int(np.flatnonzero(read == Special.END_DELEGATE)[0]) + 1]
            texts = np.lib.stride_tricks.sliding_window_view(record["text"], len(asked))
            assert (texts[: prefilled - len(read) + 1] == asked).all(1).any()
        length = np.count_nonzero(reasoning)
        assert reasoning[length - 1] == Special.SILENT and record["reasoning_wanted"][length - 1]
    assert any(same) and corrected


def test_calls_give_the_results_that_are_said(made: dict) -> None:
    for _, meta in made["train"] + made["heldout"]:
        for note in meta["delegations"]:
            if "result" in note:
                true = tool_requests.true_result(note["call"], meta["prices"], meta["time"])
                assert note["result"] == true
                if meta["split"] == "heldout":
                    request = _find(note["tool_request"])
                    call = note["call"]
                    amount = tool_requests.number_words(call.get("amount", 0))
                    slots = {"n": amount, "unit": call.get("unit")}
                    slots["item"] = call.get("item", "").strip()
                    assert note["said"] == request.answer(slots, true)


def _held_out(call: dict) -> bool:
    """Whether a call is held out, from its arguments alone."""
    if call["tool"] == "lookup":
        return call["item"].strip() in tool_requests.HELD_OUT_ITEMS
    if call["tool"] == "calculate":
        a, b = (tool_requests.number_words(int(n)) for n in call["expression"].split(" * "))
        return _find("times").held_out({"a": a, "b": b})
    amount = tool_requests.number_words(call.get("amount", 0))
    return amount in tool_requests.HELD_OUT_AMOUNTS.get(call.get("unit", ""), ())


def test_training_never_has_what_is_held_out(made: dict) -> None:
    for _, meta in made["train"]:
        assert meta["voice"].split(":")[1].rsplit("+")[-1] not in voices.HELD_OUT_VARIANTS
        for note in meta["delegations"]:
            assert not note["held_out"]
            assert not _held_out(note["call"])
    for _, meta in made["heldout"]:
        for note in meta["delegations"]:
            assert note["held_out"] == _held_out(note["call"]) == (note["tool_request"] != "clock")


@pytest.mark.parametrize("name", [request.name for request in tool_requests.TOOL_REQUESTS])
def test_imagined_requests_are_not_held_out(name: str) -> None:
    """Only timers have items that are held out in other requests. Calls have the same item."""
    request = _find(name)
    words = (*tool_requests.HELD_OUT_ITEMS, "milk")
    rng, held_out = np.random.default_rng(3), 0
    for _ in range(400):
        slots = tool_requests.draw_slots(request, rng, held_out=False)
        made = tool_requests.imagine(request, slots, tuple(request.slots), words, rng)
        assert not request.held_out(made)
        held_out += made.get("item") in tool_requests.HELD_OUT_ITEMS
        assert made.get("item", "") in json.dumps(request.call(made))
    assert (held_out > 100) == (name == "timer_for")


def test_results_in_training_often_belong_to_no_request(made: dict) -> None:
    same = {"train": [], "heldout": []}
    for split in SPLITS:
        for _, meta in made[split]:
            for note in meta["delegations"]:
                if note["call"]["tool"] == "calculate" and "result" in note:
                    said = f"it is {tool_requests.number_words(note['result'])}"
                    same[split].append(said == note["said"])
    assert all(same["heldout"]) and any(same["train"]) and not all(same["train"])


def test_what_arrives_in_training_is_no_held_out_result() -> None:
    rng, words = np.random.default_rng(4), {"milk", "butter"}
    made = {tool_requests.imagine_answer(sorted(words), rng) for _ in range(8_000)}
    for unit, amounts in tool_requests.HELD_OUT_AMOUNTS.items():
        for amount in amounts:
            assert not made & {f"it is {amount} {unit}", f"{amount} {unit} are over"}
    results = {"it is twenty five", "it is forty two days", "eleven seconds are over"}
    assert (
        results < tool_requests._held_out_answers() and not tool_requests._held_out_answers() & made
    )
    assert {"eleven minutes are over", "it is in the butter", "it is six days"} < made
    assert set(" ".join(made).split()) - words <= set(tool_requests.said_words())


def test_sessions_with_corrections_have_them_in_their_reasoning(made: dict) -> None:
    for record, meta in made["train"] + made["heldout"]:
        fixed = any(n["updates"] and n["closed"] < meta["turns"] for n in meta["delegations"])
        if fixed and record["prefilled"]:
            ended = int(np.flatnonzero(record["reasoning"] == Special.END_DELEGATE)[0])
            assert record["reasoning"][ended + 1] == Special.UPDATE


def test_imagined_requests_are_corrected_once_or_twice() -> None:
    request = _find("timer_for")
    rng, counts = np.random.default_rng(5), []
    for _ in range(100):
        slots = tool_requests.draw_slots(request, rng, held_out=False)
        made = imagined_reasoning(request, slots, True, "", "1:00", rng)
        read = itertools.takewhile(lambda one: not one[1], made)
        counts.append(sum(token == Special.UPDATE for token, _ in read))
    assert set(counts) == {1, 2} and 15 < counts.count(2) < 50


def test_users_cancel_and_correct(made: dict) -> None:
    kinds = {e["kind"] for _, meta in made["train"] + made["heldout"] for e in meta["events"]}
    assert {"tool_request", "tool_request_cancel", "tool_request_update", "request"} <= kinds
    for record, meta in made["train"] + made["heldout"]:
        cancels = [e for e in meta["events"] if e["kind"] == "tool_request_cancel"]
        assert np.sum(record["text"] == Special.CANCEL) == len(cancels)
        updates = [words for kind, words, _ in _spans(record["text"]) if kind == Special.UPDATE]
        noted = [each["words"] for note in meta["delegations"] for each in note["updates"]]
        assert sorted(updates) == sorted(noted)


def test_a_session_can_have_the_prices_and_the_time_of_another_one() -> None:
    first = json.loads(make_delegation_session((12, 0), "heldout")["meta"])
    alone = json.loads(make_delegation_session((12, 1), "heldout")["meta"])
    like = json.loads(make_delegation_session((12, 1), "heldout", like=first)["meta"])
    assert like["prices"] == first["prices"] != alone["prices"]
    assert like["time"] == first["time"] != alone["time"]
    for note in like["delegations"]:
        assert note["result"] == tool_requests.true_result(
            note["call"], first["prices"], first["time"]
        )


def test_every_word_is_a_token_of_its_own() -> None:
    tokenizer = load_tokenizer()
    for word in tool_requests.said_words():
        assert len(tokenizer.encode(word)) == 1, word


def test_no_tool_request_is_another_request() -> None:
    rng = np.random.default_rng(0)
    for request in tool_requests.TOOL_REQUESTS:
        slots = tool_requests.draw_slots(request, rng, held_out=False)
        for template in request.templates:
            assert not domain.complete_forms(" ".join(request.parts(template, slots)))


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (12, "twelve"), (19, "nineteen"), (40, "forty"), (144, "one hundred forty four")],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert tool_requests.number_words(number) == words


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="number: got 1000"):
        tool_requests.number_words(1_000)


def test_too_many_reasoning_tokens_and_arrivals_are_refused() -> None:
    with pytest.raises(ValueError, match="reasoning: got"):
        reasoning_tokens.reasoning_arrays(3, [(9, True)] * (reasoning_tokens.REASONING_TOKENS + 1))
    with pytest.raises(ValueError, match="arrivals: got"):
        reasoning_tokens.arrival_arrays([(0, 9)] * (reasoning_tokens.ARRIVALS + 1))
