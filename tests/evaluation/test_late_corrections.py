"""Figures of recordings whose user cancels or corrects what the model has told already."""

from interaction.background import delegations
from interaction.evaluation.delegation_history import Delegation, Step
from interaction.types import Special
from tests.evaluation.test_delegation import SAID, Made, asked


def cancelled_late() -> Made:
    """The result arrives and is said; the cancellation after it is answered as too late."""
    made = asked()
    made.notes[0]["cancelled_s"] = 12.0
    made.event("tool_request_cancel", 11.0, 12.0, "okay", delegation=1)
    made.text[64] = Special.CANCEL
    made.say(68, delegations.SORRY)
    return made


def test_a_cancellation_after_the_result_is_answered_as_too_late() -> None:
    assert cancelled_late().figures()["cancel_rate"] == 1
    made = cancelled_late()
    made.quiet(68, 80)  # "okay" alone says that something was cancelled
    assert made.figures()["cancel_rate"] == 0
    made = cancelled_late()
    made.text[64] = Special.SILENT
    assert made.figures()["cancel_rate"] == 0
    made = cancelled_late()
    made.delegations.append(Delegation(2, "the time", 30, [Step(64, delegations.CANCELLED, "")]))
    assert made.figures()["cancel_rate"] == 0  # another one was dropped
    made = cancelled_late()
    made.say(90, SAID)
    assert made.figures()["cancel_rate"] == 0


def test_a_correction_after_the_result_is_judged_by_the_second_result() -> None:
    made = asked()
    made.notes[0] |= {"said": "it is sixty three", "updates": [{"end_s": 12.0, "words": "nine"}]}
    made.event("tool_request_update", 11.0, 12.0, "okay", delegation=1)
    closed = made.span(64, Special.UPDATE, "nine")
    made.delegations[0].steps.append(Step(closed, delegations.UPDATED, "nine"))
    assert made.figures()["update_exact"] == 0
    made.arrive(made.delegations[0], 80, "it is sixty three")
    made.say(82, "it is sixty three")
    assert made.figures()["update_exact"] == made.figures()["result_spoken_exact"] == 1
