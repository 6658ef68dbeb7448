"""Corrections and cancellations reach what the user means, and only true words are passed on."""

import pytest

from interaction.background import trained
from interaction.background.agent import DONE, FAILED, TEXT, BackgroundAgent
from interaction.background.delegations import MOMENT, SORRY, Delegations
from interaction.background.scripted import Line, ScriptedAgent
from interaction.background.toolbox import Toolbox
from interaction.types import Special
from tests.background.fakes import TOKENIZER, delegate
from tests.background.test_delegations import END, Talk
from tests.background.test_threaded import Recorder

TIMER, BUTTER, PEPPER = "ring in ten minutes", "price of butter", "the pepper"
NINE, EIGHTEEN = "it is nine dollars", "it is eighteen dollars"


def fits(request: str, words: str) -> bool:
    return trained.DEMO.corrections(request, [words]) is not None


def lines(text: str) -> list[Line]:
    return [Line(1, TEXT, text), Line(0, DONE)]


SCRIPT = {
    BUTTER: lines(NINE),
    PEPPER: lines(EIGHTEEN),
    "the time": lines("it is one past nine"),
    "room of butter": [Line(1, FAILED, "no network")],
}


def talk_after(*requests: str) -> Talk:
    """A conversation in which a timer runs, and then the answers to these requests were told."""
    talk = Talk(SCRIPT, slots=4)
    talk.turns(delegate(TIMER))
    for request in requests:
        talk.turns(delegate(request))
        talk.wait(6)
    assert talk.core.running == [1]
    return talk


def correct(talk: Talk, words: str) -> None:
    talk.turns(delegate(words, Special.UPDATE))
    talk.wait(6)


def test_a_correction_of_what_was_just_told_asks_it_again() -> None:
    talk = talk_after(BUTTER)
    correct(talk, PEPPER)
    assert talk.agent.told[2:] == [("update", 2, BUTTER, PEPPER)]
    assert talk.said == f"{NINE} {END} {EIGHTEEN} {END}"
    assert talk.core.running == [1]
    correct(talk, PEPPER)  # it was told again, so it can be corrected again
    assert talk.agent.told[3:] == [("update", 2, BUTTER, PEPPER, PEPPER)]


def test_a_cancellation_of_what_was_just_told_is_too_late_and_touches_nothing() -> None:
    talk = talk_after(BUTTER)
    talk.turns([Special.CANCEL])
    talk.wait(4)
    assert talk.said == f"{NINE} {END} {SORRY} {END}"
    assert talk.notes[-3:] == [(3, "cancelled"), (3, "failed"), (3, "given")]
    talk.turns([Special.CANCEL, Special.CANCEL])  # they do not mean the answer to the ones before
    talk.wait(6)
    assert talk.said == f"{NINE} {END}" + 3 * f" {SORRY} {END}"
    assert len(talk.agent.told) == 2 and talk.core.running == [1]


@pytest.mark.parametrize("late", [0, 1])
def test_a_moment_later_the_timer_is_meant(late: int) -> None:
    talk = talk_after(BUTTER)
    given = talk.core.saved()["told"][0]["newest"]
    talk.wait(given + MOMENT + late - 1 - talk.core.saved()["turn"])
    talk.turns([Special.CANCEL])
    assert talk.agent.told[2:] == [("cancel", 1)] * late
    talk.wait(4)
    assert talk.said == f"{NINE} {END}" + f" {SORRY} {END}" * (1 - late)


def test_a_newer_request_is_meant_before_what_was_told() -> None:
    talk = talk_after(BUTTER)
    talk.turns(delegate(TIMER))
    talk.turns([Special.CANCEL])
    assert talk.agent.told[-1] == ("cancel", 3) and talk.core.running == [1]


def test_an_update_is_newer_than_what_was_told_before_it() -> None:
    talk = talk_after(BUTTER)
    talk.agent.fits = fits
    correct(talk, "nine minutes")
    talk.turns([Special.CANCEL])
    assert talk.agent.told[2:] == [("update", 1, TIMER, "nine minutes"), ("cancel", 1)]


@pytest.mark.parametrize(
    ("words", "update"),
    [
        ("fifteen minutes", (1, TIMER)),
        (PEPPER, (2, BUTTER)),
        ("nine pounds", None),
    ],
)
def test_a_correction_goes_to_the_newest_request_that_it_fits(
    words: str, update: tuple[int, str] | None
) -> None:
    talk = talk_after(BUTTER, "the time")
    talk.agent.fits = fits
    correct(talk, words)
    assert talk.agent.told[3:] == ([("update", *update, words)] if update else [])
    assert (SORRY in talk.said) == (update is None)
    assert 1 in talk.core.running


def test_a_failure_that_was_told_can_be_corrected() -> None:
    talk = talk_after("room of butter")
    correct(talk, PEPPER)
    assert talk.said == f"{SORRY} {END} {EIGHTEEN} {END}"


def test_a_correction_of_nothing_is_answered() -> None:
    talk = Talk(SCRIPT, slots=4)
    correct(talk, PEPPER)
    assert talk.said == f"{SORRY} {END}" and talk.agent.told == []
    assert talk.notes == [(1, "updated"), (1, "failed"), (1, "given")]


def test_without_an_agent_a_correction_fails_too() -> None:
    talk = Talk(None, slots=4)
    talk.turns(delegate(BUTTER))
    talk.wait(4)
    correct(talk, PEPPER)
    assert talk.said == f"{SORRY} {END} {SORRY} {END}"


def test_what_was_just_told_is_saved() -> None:
    before = talk_after(BUTTER)
    after = Talk(SCRIPT, slots=4)
    after.core.restore(before.core.saved())
    after.agent.told.clear()
    correct(after, PEPPER)
    assert after.agent.told == [("update", 2, BUTTER, PEPPER)]
    assert after.said == f"{EIGHTEEN} {END}"
    assert (
        after.core.saved()["turn"]
        == before.core.saved()["turn"] + len(delegate(PEPPER, Special.UPDATE)) + 6
    )


def test_only_what_was_just_told_is_remembered() -> None:
    talk = Talk(lambda _: lines("it is one"), slots=4)
    for _ in range(40):
        talk.turns(delegate(BUTTER))
        talk.wait(6)
    assert len(talk.core.saved()["told"]) <= 1 + MOMENT // (6 + len(delegate(BUTTER)))


# Words that the live model cannot say.


def test_a_result_that_cannot_be_said_fails_and_is_noted() -> None:
    weather = "the weather in paris is sunny and twenty degrees"
    script = {BUTTER: [*(Line(0, TEXT, word) for word in weather.split()), Line(0, DONE)]}
    talk = Talk(script, slots=4, says=trained.says)
    talk.turns(delegate(BUTTER))
    talk.now += 0.2
    talk.core.collect()
    noted = [(one.kind, one.text) for one in talk.core.notes()]
    assert (TEXT, weather) in noted and noted[-1][0] == FAILED
    talk.wait()
    assert talk.said == f"{SORRY} {END}"


def test_a_result_that_can_be_said_arrives_when_it_is_whole() -> None:
    script = {BUTTER: [Line(0, TEXT, "it is"), Line(4, TEXT, "nine dollars"), Line(3, DONE)]}
    talk = Talk(script, slots=4, says=trained.says)
    talk.turns(delegate(BUTTER))
    talk.wait(6)
    assert talk.said == ""
    talk.wait(4)
    assert talk.said == f"{NINE} {END}"
    assert talk.notes.count((1, "text")) == 1 and talk.notes.count((1, "done")) == 1


def test_an_answer_without_words_fails_where_words_are_checked() -> None:
    talk = Talk({BUTTER: [Line(1, DONE)]}, slots=4, says=trained.says)
    talk.turns(delegate(BUTTER))
    talk.wait(6)
    assert talk.said == f"{SORRY} {END}"


def test_a_live_model_that_cannot_say_the_failure_is_refused() -> None:
    with pytest.raises(ValueError, match="says: got False for 'sorry that did not work'"):
        Delegations(None, TOKENIZER, says=lambda text: False)


# An agent belongs to one conversation.


@pytest.mark.parametrize("make", [lambda: ScriptedAgent({}), Recorder])
def test_an_agent_belongs_to_one_conversation(make: type[BackgroundAgent]) -> None:
    agent = make()
    first = Delegations(agent, TOKENIZER)
    with pytest.raises(ValueError, match="agent: got one that belongs to a conversation"):
        Delegations(agent, TOKENIZER)
    first.close()
    closed = make()
    closed.close()
    for one in (agent, closed):
        with pytest.raises(ValueError, match="agent: got one that was closed, wanted a new one"):
            Delegations(one, TOKENIZER)


@pytest.mark.parametrize("other", [Toolbox([]), [], "demo_background"])
def test_what_is_no_agent_is_refused(other: object) -> None:
    with pytest.raises(ValueError, match=f"agent: got a {type(other).__name__}, wanted a Backgrou"):
        Delegations(other, TOKENIZER)
