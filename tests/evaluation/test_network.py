"""The simulated network, and the playout buffer under each of its impairments."""

import numpy as np
import pytest

from interaction.evaluation import network
from interaction.evaluation.network import IMPAIRMENTS, make_trace, simulate

SECONDS = 600.0


@pytest.mark.parametrize("impairment", IMPAIRMENTS)
def test_heard_again_within_a_second_and_never_more_than_600_ms_behind(impairment: str) -> None:
    found = simulate(make_trace(impairment, SECONDS))
    assert found.heard_again_s_max <= 1.0
    assert found.behind_s_max <= 0.6 + 1e-9
    assert found.heard >= (1 - 6.0 / SECONDS if impairment == "stall" else 0.99)
    if "pauses" not in impairment:
        assert found.late <= 2 and found.lost <= found.never_arrived + 2


def test_a_perfect_sender_is_heard_whole() -> None:
    found = simulate(make_trace("perfect", 300.0))
    assert found.heard == 1.0 and found.behind_s_max == 0.0
    assert found.heard_again_s_max == pytest.approx(0.05)  # from 0.05 s to the micro-turn at 0.1 s
    assert found.dropped_s == found.inserted_s == found.lost == 0


@pytest.mark.parametrize(
    ("impairment", "left_out_s"),
    [("slow_200", -0.4), ("fast_200", 0.4)],
)
def test_drift_is_corrected_by_what_the_clocks_part(impairment: str, left_out_s: float) -> None:
    # 200 parts in a million of 2,000 s; a correction is 0.2 s, and up to 0.34 s may be pending.
    # All in one direction.
    found = simulate(make_trace(impairment, 2_000.0))
    assert found.dropped_s - found.inserted_s == pytest.approx(left_out_s, abs=0.35)
    assert 0.0 in (found.dropped_s, found.inserted_s)
    assert found.heard == 1.0 and found.lost == 0


def test_a_lossy_network_loses_what_it_loses() -> None:
    found = simulate(make_trace("loss", 600.0))
    assert found.lost == found.never_arrived == pytest.approx(60, abs=25)  # 2% of 3,000
    assert found.inserted_s == found.dropped_s == 0.0


def test_a_pause_whose_time_is_counted_is_lost_and_another_is_inserted() -> None:
    trace = make_trace("pauses_jump", 600.0)
    missing = int(trace.number[-1]) + 1 - len(trace.number)
    assert abs(simulate(trace).lost - missing) <= 1
    plain = make_trace("pauses", 600.0)
    found = simulate(plain)
    paused = plain.time[-1] - plain.time[0] - 0.2 * (len(plain.time) - 1)
    assert found.lost == 0 and found.inserted_s - found.dropped_s == pytest.approx(paused, abs=0.4)


def test_each_reconnect_is_found() -> None:
    trace = make_trace("reconnects", 1_200.0)
    found = simulate(trace)
    starts = np.flatnonzero(trace.number == 0)
    assert len(starts) > 4 and found.reanchored == len(starts) - 1
    assert starts[1] == 4 and found.lost == 0  # the first one comes after four chunks


def test_the_same_seed_gives_the_same_figures() -> None:
    assert simulate(make_trace("jitter", 300.0, 5)) == simulate(make_trace("jitter", 300.0, 5))
    one, other = make_trace("jitter", 300.0, 5), make_trace("jitter", 300.0, 6)
    assert not np.array_equal(one.time, other.time)


def test_sound_tells_its_number() -> None:
    for serial in (0, 1, 11, 12, 7_999, 8_000, 53_999):
        told = network.read_serials(network.marked_chunk(serial)[::400], serial + 3)
        assert told.tolist() == [serial] * 8
    assert (network.read_serials(np.zeros(5, np.float32), 100) == -1).all()
    assert (network.read_serials(np.full(5, 0.0512, np.float32), 100) == -1).all()


def test_jitter_is_as_said() -> None:
    trace = make_trace("jitter", 3_000.0)
    late = trace.time - (0.05 + 0.2 * trace.serial)
    assert late.min() >= 0.0 and 0.6 < late.max() < 1.2
    assert np.median(late) == pytest.approx(0.06 * np.log(2), rel=0.15)  # of an exponential


def test_an_unknown_impairment_is_named() -> None:
    with pytest.raises(ValueError, match=r"impairment: got 'rain', wanted one of perfect, "):
        make_trace("rain", 10.0)
