"""The playout buffer: a perfect network changes nothing, and after any other one it hears again.

Samples of a chunk tell its number, so that what was played is read from the output alone.
"""

import itertools
import threading

import numpy as np
import pytest

from interaction.engine import splices
from interaction.engine.playout import PlayoutBuffer

TURN, RATE = 3_200, 16_000


class Bench:
    """A buffer with a clock of its own, which tests move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.buffer = PlayoutBuffer(TURN, RATE, lambda: self.now)

    def put(self, *indices: int | None, value: float | None = None) -> None:
        """Puts chunks that hold their number (or `value`) in thousandths."""
        for index in indices:
            number = (0 if index is None else index) if value is None else value
            self.buffer.put(index, np.full(TURN, (number + 1) / 1_000, np.float32))

    def take(self) -> int | None:
        """Number that the middle of the next micro-turn tells, 200 ms later; None for silence."""
        heard = round(float(self.buffer.take()[TURN // 2]) * 1_000) - 1
        self.now += 0.2
        return None if heard < 0 else heard

    def counts(self) -> tuple[int, int, int, int, int]:
        """(lost, late, doubled, reordered, reanchored)."""
        b = self.buffer
        return b.lost, b.late, b.doubled, b.reordered, b.reanchored


def noise(turns: int, seed: int = 0) -> np.ndarray:
    """Speech-like loud and quiet stretches of noise, float32[turns, 3200]."""
    rng = np.random.default_rng(seed)
    level = rng.choice([0.0, 1e-4, 0.1], (turns, 1), p=[0.2, 0.2, 0.6])
    return (rng.standard_normal((turns, TURN)) * level).astype(np.float32)


# A perfect network.


@pytest.mark.parametrize("lead_s", [0.0, 1e-6, 0.05, 0.1999, 0.2])
def test_a_perfect_network_changes_no_bit_and_adds_no_delay(lead_s: float) -> None:
    sent, now = noise(1_000), [0.0]
    buffer = PlayoutBuffer(TURN, RATE, lambda: now[0])
    for turn, chunk in enumerate(sent):
        now[0] = 7.0 + 0.2 * turn - lead_s
        buffer.put(turn, chunk)
        now[0] = 7.0 + 0.2 * turn
        np.testing.assert_array_equal(buffer.take(), chunk)
    assert buffer.behind_s == buffer.inserted_s == buffer.dropped_s == 0.0
    assert (buffer.lost, buffer.late, buffer.doubled, buffer.reordered) == (0, 0, 0, 0)


def test_a_loop_of_any_speed_changes_no_bit() -> None:
    # Who puts and takes in turn may do so as fast as it goes, and may stop at a breakpoint.
    sent, now, rng = noise(1_000), [0.0], np.random.default_rng(3)
    buffer = PlayoutBuffer(TURN, RATE, lambda: now[0])
    for turn, chunk in enumerate(sent):
        now[0] += rng.choice([1e-4, 0.015, 0.3, 20.0], p=[0.5, 0.3, 0.19, 0.01])
        buffer.put(turn if turn % 2 else None, chunk)
        now[0] += rng.choice([0.0, 1e-5, 0.25])
        np.testing.assert_array_equal(buffer.take(), chunk)


def test_before_the_first_chunk_there_is_silence_and_nothing_is_lost() -> None:
    bench = Bench()
    assert [bench.take() for _ in range(5)] == [None] * 5
    bench.put(40)  # any first number
    assert bench.take() == 40
    assert bench.counts() == (0, 0, 0, 0, 0) and bench.buffer.inserted_s == 0.0


# Short scripts, counted by hand.


def test_chunks_out_of_order_late_lost_and_doubled() -> None:
    bench = Bench()
    bench.put(1, 0, 1)
    heard = [bench.take(), bench.take()]
    bench.put(1, value=9)  # doubled, after its micro-turn
    bench.put(3)
    heard += [bench.take()]  # 2 is lost: its place takes a continuation of 1
    heard += [bench.take()]
    bench.put(2)  # late
    bench.put(2)  # doubled
    bench.put(4)
    heard += [bench.take()]
    assert heard[:2] == [0, 1] and heard[3:] == [3, 4]
    assert bench.counts() == (1, 1, 3, 1, 0)


def test_a_lost_chunk_costs_its_own_time_only() -> None:
    bench = Bench()
    heard = []
    for turn in range(20):
        if turn not in (7, 12, 13):
            bench.put(turn)
        heard.append(bench.take())
    assert [heard[turn] for turn in range(20) if turn not in (7, 12, 13)] == [
        turn for turn in range(20) if turn not in (7, 12, 13)
    ]
    assert bench.counts()[0] == 3 and bench.buffer.inserted_s == 0.0


def test_a_sender_may_repeat_each_chunk_with_the_next_one() -> None:
    bench, heard = Bench(), []
    for turn in range(60):
        if turn not in (5, 20, 33, 34):  # lost packets; chunk 33 was in two of them
            bench.put(*range(max(turn - 1, 0), turn + 1))
        heard.append(bench.take())
    # The first loss costs 200 ms of delay; from then on a repeated chunk comes in time.
    assert heard[:5] == list(range(5)) and heard[6:34] == list(range(5, 33))
    assert heard[35:] == list(range(34, 59))
    assert bench.counts()[:2] == (1, 0) and bench.buffer.inserted_s == pytest.approx(0.2)


@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize("pause", [2, 5, 150])
def test_a_microphone_that_pauses_is_heard_with_its_next_chunk(pause: int, jump: bool) -> None:
    bench = Bench()
    for turn in range(10):
        bench.put(turn)
        assert bench.take() == turn
    for _ in range(pause):
        bench.take()
    for number in range(10, 30):
        bench.put(number + pause * jump)
        assert bench.take() == number + pause * jump
    lost = pause if jump else 0
    assert bench.counts() == (lost, 0, 0, 0, 0)
    assert bench.buffer.inserted_s == pytest.approx(0.0 if jump else 0.2 * pause)


@pytest.mark.parametrize("before", [1, 2, 4, 7, 12, 300])
def test_a_sender_that_counts_from_0_again_is_heard_within_a_second(before: int) -> None:
    bench = Bench()
    for number in range(before):
        bench.put(number, value=100)
        bench.take()
    heard = []
    for number in range(300):
        bench.put(number, value=500)
        heard.append(bench.take())
    assert 500 in heard[:5]
    assert heard[6:] == [500] * 294
    assert bench.counts()[0] == bench.counts()[1] == 0 and bench.counts()[4] <= 1


@pytest.mark.parametrize("jump", [3, 40, 1_000_000])
def test_numbers_that_jump_are_heard_within_a_second(jump: int) -> None:
    bench = Bench()
    for number in range(20):
        bench.put(number)
        bench.take()
    heard = []
    for number in range(20 + jump, 60 + jump):
        bench.put(number, value=500)
        heard.append(bench.take())
    assert 500 in heard[:5] and heard[6:] == [500] * 34


def test_a_jump_of_five_numbers_is_heard_at_once() -> None:
    # Six chunks seem to wait and three may, but those that never came need no time.
    bench = Bench()
    for number in (*range(20), *range(25, 40)):
        bench.put(number)
        assert bench.take() == number


def test_late_chunks_of_an_older_numbering_are_not_counted_as_late() -> None:
    bench = Bench()
    for number in (0, *range(2, 20), *range(20)):
        bench.put(number)
        bench.take()
    assert bench.counts() == (1, 0, 0, 0, 1)


def test_two_stragglers_in_a_pause_do_not_begin_another_numbering() -> None:
    bench = Bench()
    for number in range(20):
        bench.put(number, value=500)
        bench.take()
    for straggler in (10, 11):
        bench.put(straggler, value=9)
        bench.take()
        bench.take()
    bench.put(20, value=500)
    assert bench.take() == 500 and bench.counts() == (0, 0, 2, 0, 0)


def test_stragglers_and_wild_numbers_do_not_begin_another_numbering() -> None:
    bench = Bench()
    strange = itertools.cycle([3, 4, 5, 70, 10**12, 71, 0, 1, 2, 3, 2**70])
    for number in range(100, 400):
        bench.put(number, value=500)
        if number > 110:
            bench.put(next(strange), value=9)
            bench.put(number - 9, value=9)
        assert bench.take() == 500
    assert bench.buffer.reanchored == 0


def test_a_bunch_of_stragglers_at_once_does_not_begin_another_numbering() -> None:
    bench = Bench()
    for number in range(60):
        if not 20 <= number < 40:
            bench.put(number, value=500)
        bench.take()
    bench.put(*range(20, 40), value=9)  # they took another way
    for number in range(60, 80):
        bench.put(number, value=500)
        assert bench.take() == 500
    assert bench.counts() == (20, 20, 0, 0, 0)


def test_what_arrives_at_once_after_a_stall_is_cut_to_600_ms() -> None:
    bench = Bench()
    for number in range(20):
        bench.put(number)
        bench.take()
    for _ in range(30):
        bench.take()
    bench.put(*range(20, 51))
    # 31 chunks arrived: one is played now, three wait, and 27 are dropped.
    assert bench.take() == 47
    assert bench.buffer.behind_s == pytest.approx(0.6)
    assert bench.buffer.dropped_s == pytest.approx(5.4)
    assert bench.buffer.inserted_s == pytest.approx(6.0)
    for number in range(51, 80):
        bench.put(number)
        assert bench.take() == number - 3


def test_memory_is_bounded_if_nobody_takes() -> None:
    bench, pcm = Bench(), np.zeros(TURN, np.float32)
    for _ in range(5_000):
        bench.buffer.put(None, pcm)
    assert len(bench.buffer._chunks) <= 256
    for number in range(10_000, 20_000):
        bench.buffer.put(number, pcm)
    assert len(bench.buffer._chunks) + len(bench.buffer._strangers) <= 320


def test_the_delay_after_a_stall_goes_away_within_two_minutes() -> None:
    bench = Bench()
    for number in range(700):
        if number == 20:
            for _ in range(3):
                bench.take()
            bench.put(20, 21, 22)  # the clocks differ by three chunks from here on
        quiet = number % 10 > 6
        bench.put(number + 3 if number >= 20 else number, value=-1 if quiet else 500)
        bench.take()
    # Once a chunk was late, 40 ms are kept, which here take a whole chunk.
    assert bench.buffer.behind_s == pytest.approx(0.2)
    assert bench.buffer.dropped_s == pytest.approx(0.4)
    assert bench.buffer.inserted_s == pytest.approx(0.6)


def test_a_source_that_ends_is_played_to_its_end() -> None:
    bench = Bench()
    bench.put(0, 1, 2)
    bench.buffer.close()
    heard = []
    while not bench.buffer.ended:
        heard.append(bench.take())
    assert heard == [0, 1, 2] and not bench.buffer.lost
    with pytest.raises(ValueError, match="after close"):
        bench.put(3)
    empty = Bench()
    empty.buffer.close()
    assert empty.buffer.ended


@pytest.mark.parametrize("index", [-1, 1.0, True, "3", np.float32(2)])
def test_a_number_that_is_none_is_refused_and_changes_nothing(index: object) -> None:
    bench = Bench()
    bench.put(0)
    with pytest.raises(ValueError, match=r"index: got .* count from 0"):
        bench.buffer.put(index, np.zeros(TURN, np.float32))  # type: ignore[arg-type]
    assert bench.take() == 0 and bench.counts() == (0, 0, 0, 0, 0)


# The sound itself.


def sine(start: int, samples: int) -> np.ndarray:
    """A tone of 200 Hz, float32[samples]: its period is 80 samples."""
    return (0.3 * np.sin(2 * np.pi * 200 * np.arange(start, start + samples) / RATE)).astype(
        np.float32
    )


def test_a_loss_is_filled_with_the_last_period_and_fades() -> None:
    bench, out = Bench(), []
    for turn in range(10):
        if turn not in (5, 6):
            bench.buffer.put(turn, sine(turn * TURN, TURN))
        out.append(bench.buffer.take())
        bench.now += 0.2
    heard = np.concatenate(out)
    whole = sine(0, 10 * TURN)
    gap, after = 5 * TURN, 7 * TURN
    # Full level for 20 ms, half of it at 120 ms, silence after 220 ms, the tone 5 ms after the gap.
    np.testing.assert_array_equal(heard[:gap], whole[:gap])
    np.testing.assert_allclose(heard[gap : gap + 320], whole[gap : gap + 320], atol=1e-4)
    np.testing.assert_allclose(heard[gap + 1_940], whole[gap + 1_940] / 2, atol=2e-3)
    assert np.abs(heard[gap + 3_400 : gap + 3_500]).max() > 1e-3
    assert not heard[gap + 3_520 : after].any()
    np.testing.assert_array_equal(heard[after + 80 :], whole[after + 80 :])
    assert np.abs(np.diff(heard)).max() <= 1.05 * np.abs(np.diff(whole)).max()


def test_a_cut_in_sound_makes_no_click() -> None:
    bench = Bench()
    bench.buffer.put(0, sine(20, TURN))  # it ends at a peak
    out = [bench.buffer.take()]
    for number in range(1, 11):
        bench.buffer.put(number, sine(20 + number * TURN + 33 * (number > 6), TURN))
    out.append(bench.buffer.take())  # seven chunks are waiting too many: 7 is next
    heard, step = np.concatenate(out), np.abs(np.diff(sine(0, TURN))).max()
    np.testing.assert_array_equal(heard[TURN + 80 :], sine(7 * TURN + 53, TURN)[80:])
    assert np.abs(np.diff(heard)).max() <= 1.5 * step


def test_the_pitch_is_that_of_the_sound_on_the_side_of_the_splice() -> None:
    place = np.arange(3_200)
    low = np.where(place < 1_600, np.sin(2 * np.pi * place / 80), np.sin(2 * np.pi * place / 100))
    tone = low.astype(np.float32)
    assert splices.pitch_shift(tone, 1_600, 1, RATE) in (100, 200)
    before = tone[::-1].copy()  # a period of 100 samples, then one of 80
    assert splices.pitch_shift(before, 1_440, -1, RATE) in (-100, -200)


@pytest.mark.parametrize("ppm", [-2_000, 2_000])
def test_a_tone_without_a_pause_is_spliced_by_whole_periods(ppm: int) -> None:
    # At 2,000 ppm the clocks part by 200 ms within 100 s: 800 s have 8 corrections.
    bench, out, turns = Bench(), [], 4_000
    times = 0.1 + np.arange(2 * turns) * 0.2 / (1 + ppm * 1e-6)
    sent = 0
    for turn in range(turns):
        while times[sent] <= turn * 0.2 + 0.15:
            bench.now = float(times[sent])
            bench.buffer.put(sent, sine(sent * TURN, TURN))
            sent += 1
        bench.now = turn * 0.2 + 0.15
        out.append(bench.buffer.take())
    heard = np.concatenate(out)
    corrected = bench.buffer.inserted_s if ppm < 0 else bench.buffer.dropped_s
    assert corrected == pytest.approx(abs(ppm) * 1e-6 * turns * 0.2, abs=0.31)
    assert bench.buffer.lost == 0 and bench.buffer.behind_s <= 0.41
    # A tone keeps x[n - 80] = x[n]. Only the first chunk that comes late is heard as a gap.
    broken = np.abs(heard[80:] - heard[:-80]) > 0.01
    assert broken.sum() <= (TURN + 160 if ppm < 0 else 0)


def test_one_thread_fills_while_another_empties() -> None:
    buffer, heard = PlayoutBuffer(TURN, RATE), []

    def fill() -> None:
        for number in range(2_000):
            buffer.put(number, np.full(TURN, 0.5, np.float32))
        buffer.close()

    thread = threading.Thread(target=fill)
    thread.start()
    while not buffer.ended:
        heard.append(buffer.take())
    thread.join()
    # Each chunk is played or dropped, and nothing is lost.
    assert all(np.isfinite(pcm).all() for pcm in heard)
    assert buffer.lost == buffer.late == buffer.doubled == 0
    assert buffer.behind_s == 0.0 and buffer.dropped_s <= 2_000 * 0.2


def test_a_slow_clock_is_met_in_silence_before_a_chunk_is_late() -> None:
    # Chunks come 6 ms before they are needed; at 200 ppm this is used up after 30 s.
    bench, out, sent = Bench(), [], 0
    times = 0.1 + np.arange(400) * 0.2 * (1 + 200e-6)
    rng = np.random.default_rng(0)
    words = [
        rng.uniform(0.1, 0.2, TURN).astype(np.float32) * ((n + 5) % 17 < 12) for n in range(400)
    ]
    for turn in range(300):
        while times[sent] <= turn * 0.2 + 0.106:
            bench.now = float(times[sent])
            bench.buffer.put(sent, words[sent])
            sent += 1
        bench.now = turn * 0.2 + 0.106
        out.append(bench.buffer.take())
    assert bench.buffer.inserted_s == pytest.approx(0.2)
    assert bench.buffer.lost == 0 and bench.buffer.dropped_s == 0
    heard, spoken = np.concatenate(out), np.concatenate(words)
    heard, spoken = heard[heard != 0], spoken[spoken != 0]
    np.testing.assert_array_equal(heard, spoken[: len(heard)])
    assert len(heard) > 200 * TURN
