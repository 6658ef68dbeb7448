"""Confidence intervals and word accuracy, in closed form."""

import math
from collections.abc import Sequence

Z95 = 1.959964  # two-sided 95% point of the normal distribution


def wilson(successes: int, trials: int) -> tuple[float, float] | None:
    """Wilson's 95% interval of a rate (Wilson, JASA 22, 1927); None without a trial."""
    if trials == 0:
        return None
    rate, z2 = successes / trials, Z95 * Z95
    middle = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials * trials))
    half *= Z95 / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def poisson(count: int, exposure: float) -> tuple[float, float] | None:
    """95% interval of a Poisson rate, by Byar's approximation (Breslow and Day 1987).

    Args:
      count: Number of events.
      exposure: Time in which they happened, in any unit.

    Returns:
      Bounds in events per unit of time; None without exposure.
    """
    if exposure <= 0:
        return None
    upper = (count + 1) * (1 - 1 / (9 * (count + 1)) + Z95 / (3 * math.sqrt(count + 1))) ** 3
    lower = 0.0
    if count:
        lower = count * max(0.0, 1 - 1 / (9 * count) - Z95 / (3 * math.sqrt(count))) ** 3
    return lower / exposure, upper / exposure


def word_errors(wanted: Sequence[str], got: Sequence[str]) -> int:
    """The least number of substituted, missing and extra words (Levenshtein distance)."""
    row = list(range(len(got) + 1))
    for i, word in enumerate(wanted, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(got, 1):
            diagonal, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other)),
            )
    return row[-1]


def word_accuracy(wanted: Sequence[str], got: Sequence[str]) -> float | None:
    """1 - word error rate over pairs of sentences, at least 0; None without a wanted word.

    Args:
      wanted: n reference sentences, with spaces between words.
      got: n recognised sentences.

    Raises:
      ValueError: The numbers of sentences differ.
    """
    if len(wanted) != len(got):
        raise ValueError(
            f"got: got {len(got)} sentences, wanted {len(wanted)}; pass one for each reference"
        )
    words = sum(len(sentence.split()) for sentence in wanted)
    if not words:
        return None
    wrong = sum(word_errors(a.split(), b.split()) for a, b in zip(wanted, got, strict=True))
    return max(0.0, 1 - wrong / words)


def common_words(wanted: Sequence[str], got: Sequence[str]) -> int:
    """The most wanted words that were got in their order (longest common subsequence)."""
    row = [0] * (len(got) + 1)
    for word in wanted:
        diagonal = 0
        for j, other in enumerate(got, 1):
            best = diagonal + 1 if word == other else max(row[j], row[j - 1])
            diagonal, row[j] = row[j], best
    return row[-1]
