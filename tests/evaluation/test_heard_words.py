"""Words through networks: the sound that arrives, and how words are counted."""

import numpy as np
import pytest

from interaction.evaluation import heard_words
from interaction.evaluation.network import TURN, make_trace
from interaction.evaluation.statistics import common_words
from interaction.types import Reply

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("wanted", "got", "common"),
    [
        ("a b c d", "a b c d", 4),
        ("a b c d", "a x c d e", 3),
        ("a b c", "c b a", 1),
        ("a b a b", "b a", 2),
        ("a", "", 0),
        ("", "a", 0),
    ],
)
def test_common_words_by_hand(wanted: str, got: str, common: int) -> None:
    assert common_words(wanted.split(), got.split()) == common
    assert common_words(got.split(), wanted.split()) == common


def _user(turns: int) -> np.ndarray:
    return RNG.normal(0, 0.1, turns * TURN).astype(np.float32)


def test_a_perfect_network_changes_no_sample() -> None:
    user = _user(50)
    heard = heard_words.through(user, make_trace("perfect", 10.0, 0), 0.1)
    start = next(
        at
        for at in range(0, len(heard), TURN)
        if np.array_equal(heard[at : at + TURN], user[:TURN])
    )
    np.testing.assert_array_equal(heard[start : start + len(user) - TURN], user[:-TURN])


def test_lost_chunks_are_not_heard() -> None:
    user, trace = _user(250), make_trace("loss", 50.0, 3)
    lost = sorted(set(range(250)) - set(trace.number.tolist()))
    assert 1 <= len(lost) <= 12  # 2% of 250
    heard = heard_words.through(user, trace, 0.1)
    parts = {part.tobytes() for part in heard.reshape(-1, TURN)}
    gone = [n for n in range(250) if user[n * TURN : (n + 1) * TURN].tobytes() not in parts]
    assert set(lost) <= set(gone)
    assert len(gone) <= 3 * len(lost)  # only their neighbours are faded into what replaces them


class Echo:
    """Transcribes each chunk whose first sample is n / 1000 as word n."""

    def init_state(self, sessions: int, seed: object) -> None:
        return None

    def step(self, state: None, chunk: object) -> tuple:
        word = np.round(1_000 * np.asarray(chunk.audio)[:, :1]).astype(np.int32)
        silent = np.zeros(len(word), np.int32)
        audio = np.zeros((len(word), TURN), np.float32)
        return None, Reply(audio, silent, word, np.zeros(len(word), bool))

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def test_the_ratio_counts_the_words_of_lost_chunks() -> None:
    ids = np.arange(20, 220)
    user = np.repeat(ids / 1_000, TURN).astype(np.float32)
    record = {"user": user, "user_transcript": ids}
    found = heard_words.count_words(Echo(), [record], seed=5)
    assert found["words"] == 200
    assert found["words_right"]["perfect"] >= 198
    lost = 200 - found["words_right"]["loss"]
    assert 1 <= lost <= 20
    assert 0.9 <= found["transcript_ratio"] < 1
