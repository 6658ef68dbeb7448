"""What happens in a session: requests, pauses, interruptions, backchannels, speech to others.

The behaviours follow the categories of Full-Duplex-Bench (arXiv 2503.04721, 2507.23159). A scenario
is a function that adds its speech to a builder from `builder.now` on, and then moves `now`. It
returns False if it does not fit any more, and then adds nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from interaction.data import acoustics, clips, domain, voices
from interaction.data.clips import RATE
from interaction.data.session_builder import (
    FIXABLE_FORMS,
    LONG_FIXABLE_FORMS,
    LONG_FORMS,
    SessionBuilder,
)

PREFERRED_SHARE = 0.6  # share of the scenarios after the first that are the preferred one
_TRIES = 6  # scenarios in a row that do not fit before a session is complete


def plain(builder: SessionBuilder) -> bool:
    """A request."""
    done = builder.ask(*builder.draw(), builder.now)
    if done:
        builder.rest(done[1])
    return bool(done)


def pause(builder: SessionBuilder) -> bool:
    """A request with a pause inside."""
    form, slots = builder.draw()
    if len(form.parts(slots)) < 2:
        return False
    done = builder.ask(form, slots, builder.now, paused=True)
    if done:
        builder.rest(done[1])
    return bool(done)


def self_fix(builder: SessionBuilder) -> bool:
    """A request that the user corrects before it ends: "... france no wait germany"."""
    form, slots = builder.draw(FIXABLE_FORMS)
    better = builder.changed(form, slots)
    fixer = builder.pick(domain.asides.SELF_FIXES)
    words = f"{form.text(slots)} {fixer} {better[form.intent.fix]}"
    done = builder.ask(form, better, builder.now, words=words)
    if done:
        builder.rest(done[1])
    return bool(done)


def _onset(builder: SessionBuilder, start: float, end: float) -> float:
    """When the user interrupts an answer that lasts from `start` to `end`, s."""
    return float(builder.rng.uniform(start + 0.4, min(start + 2.5, end - 0.4)))


def stop(builder: SessionBuilder) -> bool:
    """A long answer that the user stops."""
    words = builder.say(builder.pick(domain.asides.STOPS))
    begun = builder.long_answer()
    if begun is None:
        return False
    onset = _onset(builder, begun[1], begun[2])
    builder.now = begun[2]
    if not builder.fits(onset, words.seconds):
        return True
    span = builder.place(words, onset)
    silent = builder.cut(begun[0], span[0])
    builder.event("interrupt_stop", "stop", span, words.text)
    builder.rest(max(span[1], silent))
    return True


def _interrupt(builder: SessionBuilder, correction: bool) -> bool:
    """A long answer that another request or a correction of the first one interrupts."""
    begun = builder.long_answer(LONG_FIXABLE_FORMS if correction else LONG_FORMS)
    if begun is None:
        return False
    entry, start, end, form, slots = begun
    onset = _onset(builder, start, end)
    words = ""
    if correction:
        slots = builder.changed(form, slots)
        words = f"{builder.pick(domain.asides.CORRECTIONS)} {slots[form.intent.fix]}"
    else:
        form, slots = builder.draw()
    model, text, before = builder.model.copy(), builder.text.copy(), entry.copy()
    builder.cut(entry, int(onset * RATE) / RATE)
    kind = "interrupt_correction" if correction else "interrupt_request"
    done = builder.ask(form, slots, onset, kind=kind, words=words)
    if done is None:  # the interruption does not fit, so the first answer stays whole
        builder.model, builder.text = model, text
        entry.update(before)
    builder.rest(done[1] if done else end)
    return True


def interrupt_request(builder: SessionBuilder) -> bool:
    """A long answer that another request interrupts."""
    return _interrupt(builder, correction=False)


def correction(builder: SessionBuilder) -> bool:
    """A long answer that a correction of the request interrupts."""
    return _interrupt(builder, correction=True)


def follow_up(builder: SessionBuilder) -> bool:
    """A request that the user corrects after the answer."""
    form, slots = builder.draw(FIXABLE_FORMS)
    done = builder.ask(form, slots, builder.now)
    if done is None:
        return False
    better = builder.changed(form, slots)
    words = f"{builder.pick(domain.asides.CORRECTIONS)} {better[form.intent.fix]}"
    again = builder.ask(form, better, done[1] + builder.rng.uniform(0.3, 1.0), words=words)
    builder.rest(again[1] if again else done[1])
    return True


def backchannel(builder: SessionBuilder) -> bool:
    """A long answer with one or two backchannels of the user, such as "uh huh"."""
    begun = builder.long_answer()
    if begun is None:
        return False
    _, start, end, _, _ = begun
    onset = start + builder.rng.uniform(0.3, 1.2)
    for _ in range(1 + int(builder.rng.random() < 0.4)):
        words = builder.say(builder.pick(domain.asides.BACKCHANNELS))
        if onset < end - 0.2 and builder.fits(onset, words.seconds):
            span = builder.place(words, onset)
            builder.event("backchannel", "backchannel", span, words.text)
            end = max(end, span[1])
            onset = span[1] + builder.rng.uniform(0.5, 1.5)
    builder.rest(end)
    return True


def _without_answer(
    builder: SessionBuilder, kind: str, form: str, text: str, held_out: bool = False
) -> bool:
    """Speech of the user that needs no answer."""
    words = builder.say(text)
    if not builder.fits(builder.now, words.seconds):
        return False
    span = builder.place(words, builder.now)
    builder.event(kind, form, span, text, held_out=held_out)
    builder.rest(span[1] + 0.3)
    return True


def backchannel_alone(builder: SessionBuilder) -> bool:
    """A backchannel or a stop while the model is silent."""
    stops = builder.rng.random() < 0.15
    text = builder.pick(domain.asides.STOPS if stops else domain.asides.BACKCHANNELS)
    form = "stop_alone" if stops else "backchannel_alone"
    return _without_answer(builder, "backchannel", form, text)


def side_speech(builder: SessionBuilder) -> bool:
    """Speech of the user to somebody else."""
    text = builder.aside()
    held_out = domain.asides.side_speech_held_out(text)
    return _without_answer(builder, "side_speech", "side_speech", text, held_out)


def _other_voice(builder: SessionBuilder, start: float) -> tuple[float, float] | None:
    """Somebody in the background, 20 to 26 dB below the user; returns start and end in s."""
    other = voices.draw_voice(builder.rng, builder.split)
    if builder.rng.random() < 0.5:
        text = builder.aside()
    else:
        form, slots = builder.draw()
        text = form.text(slots)
    clip = clips.user_clip(text, other)
    if not builder.fits(start, clip.seconds):
        return None
    at = int(start * RATE)
    builder.add(clip, at, builder.rms * 10 ** (float(builder.rng.uniform(-26, -20)) / 20))
    span = at / RATE, (at + len(clip.pcm)) / RATE
    builder.event("background", "background", span, text, voice=str(other))
    return span


def background(builder: SessionBuilder) -> bool:
    """Somebody in the background while user and model are silent."""
    span = _other_voice(builder, builder.now)
    if span:
        builder.rest(span[1] + 0.3)
    return bool(span)


def background_over(builder: SessionBuilder) -> bool:
    """Somebody in the background during a long answer."""
    begun = builder.long_answer()
    if begun is None:
        return False
    span = _other_voice(builder, begun[1] + builder.rng.uniform(0.1, 1.0))
    builder.rest(max(begun[2], span[1] if span else 0.0))
    return True


class Scenario(NamedTuple):
    """A scenario and how often it comes."""

    weight: float  # relative frequency
    act: Callable[[SessionBuilder], bool]


SCENARIOS: dict[str, Scenario] = {
    "plain": Scenario(0.42, plain),
    "pause": Scenario(0.26, pause),
    "self_fix": Scenario(0.05, self_fix),
    "stop": Scenario(0.12, stop),
    "interrupt_request": Scenario(0.09, interrupt_request),
    "correction": Scenario(0.06, correction),
    "follow_up": Scenario(0.03, follow_up),
    "backchannel": Scenario(0.18, backchannel),
    "backchannel_alone": Scenario(0.06, backchannel_alone),
    "side_speech": Scenario(0.07, side_speech),
    "background": Scenario(0.06, background),
    "background_over": Scenario(0.04, background_over),
}


def fill(builder: SessionBuilder, preferred: Callable[[], bool] | None) -> None:
    """Adds scenarios until the session is full.

    Args:
      builder: The session.
      preferred: Adds the scenario that comes first and most often; None for a draw by weight alone.
    """
    names = tuple(SCENARIOS)
    shares = np.array([scenario.weight for scenario in SCENARIOS.values()])
    shares /= shares.sum()
    failures = 0
    while failures < _TRIES and builder.fits(builder.now, 0.3):
        name = names[builder.rng.choice(len(names), p=shares)]
        if preferred and (not builder.events or builder.rng.random() < PREFERRED_SHARE):
            done = preferred()
        else:
            done = SCENARIOS[name].act(builder)
        failures = 0 if done else failures + 1


def add_quiet(builder: SessionBuilder, kind: str) -> None:
    """Fills a whole session without a word: `silence`, or `noise` at -60 to -30 dBFS."""
    span = (0.0, builder.samples / RATE)
    builder.event(kind, kind, span, "")
    if kind == "noise":
        colour = builder.pick(acoustics.NOISES)
        rms = 10 ** (float(builder.rng.uniform(-60, -30)) / 20)
        builder.user += acoustics.noise(builder.rng, colour, builder.samples, rms)
