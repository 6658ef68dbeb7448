"""Measures intelligibility with an independent speech recogniser, pocketsphinx.

The acoustic model and the dictionary are those of its package, for American English. The language
model gives all words of a closed vocabulary the same probability, so that it knows no sentence.
"""

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from interaction.evaluation import activity
from interaction.evaluation.statistics import word_accuracy

PAD_S = 0.25  # s of faint noise before and after each clip
# Standard deviation of the noise in steps of 16-bit PCM. Digital silence disturbs the front end.
PAD_LEVEL = 4.0


class Clip(NamedTuple):
    """A text as the model says it and as the speech engine says it."""

    text: str
    generated: np.ndarray  # float32[n], 16 kHz
    original: np.ndarray  # float32[m], 16 kHz


def flat_arpa(words: Iterable[str]) -> str:
    """A unigram language model in ARPA format that gives all words the same probability."""
    words = sorted(set(words))
    probability = math.log10(1.0 / (len(words) + 1))
    lines = ["\\data\\", f"ngram 1={len(words) + 2}", "", "\\1-grams:", "-99.0 <s> 0.0"]
    lines += [f"{probability:.4f} {word} 0.0" for word in ("</s>", *words)]
    return "\n".join([*lines, "", "\\end\\", ""])


class Recognizer:
    """A recogniser of a closed vocabulary, which adapts from utterance to utterance."""

    def __init__(self, vocabulary: Iterable[str]) -> None:
        """Builds a new decoder.

        Args:
          vocabulary: Lower-case words. Those without a pronunciation are put into `missing`.

        Raises:
          ImportError: pocketsphinx is not installed.
          ValueError: No word has a pronunciation.
        """
        try:
            import pocketsphinx
        except ImportError as error:
            raise ImportError(
                "pocketsphinx: got no such package, wanted it for word accuracy; "
                "pip install pocketsphinx"
            ) from error
        root = Path(pocketsphinx.get_model_path("en-us"))
        known = _dictionary(root / "cmudict-en-us.dict")
        words = sorted(set(vocabulary))
        self.vocabulary = frozenset(word for word in words if word in known)
        self.missing = frozenset(words) - self.vocabulary
        self.same = homophones({word: known[word] for word in sorted(self.vocabulary)})
        if not self.vocabulary:
            raise ValueError(
                f"vocabulary: got {len(words)} words, none of them in the pronunciation "
                "dictionary; pass lower-case English words"
            )
        with tempfile.TemporaryDirectory() as folder:
            model, dictionary = Path(folder) / "flat.arpa", Path(folder) / "words.dict"
            model.write_text(flat_arpa(self.vocabulary))
            dictionary.write_text(_dictionary_text({w: known[w] for w in sorted(self.vocabulary)}))
            self._decoder: Any = pocketsphinx.Decoder(
                lm=str(model), dict=str(dictionary), hmm=str(root / "en-us"), loglevel="FATAL"
            )

    def knows(self, text: str) -> bool:
        """Whether every word of a text has a pronunciation."""
        return all(word in self.vocabulary for word in text.split())

    def __call__(self, pcm: np.ndarray) -> str:
        """Recognises the words of a clip.

        Args:
          pcm: float32[n] in [-1, 1], 16 kHz.

        Returns:
          The words, "" if there are none.
        """
        noise = np.random.default_rng(0).normal(0, PAD_LEVEL, len(pcm) + 2 * int(PAD_S * 16_000))
        start = int(PAD_S * 16_000)
        noise[start : start + len(pcm)] += np.asarray(pcm, np.float64) * 32_767
        samples = np.clip(np.round(noise), -32_768, 32_767).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis is not None else ""


def _dictionary(path: Path) -> dict[str, list[str]]:
    """Pronunciations by word of a CMU dictionary; "read(2)" is the second one of "read"."""
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                word, phones = line.strip().split(maxsplit=1)
                found.setdefault(word.split("(")[0], []).append(phones)
    return found


def _dictionary_text(pronunciations: Mapping[str, Sequence[str]]) -> str:
    lines = [
        f"{word}({number}) {phones}" if number > 1 else f"{word} {phones}"
        for word, every in pronunciations.items()
        for number, phones in enumerate(every, 1)
    ]
    return "\n".join(lines) + "\n"


def homophones(pronunciations: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Maps words that can sound the same, such as "two" and "to", to one of them.

    Without a sentence around them they cannot be distinguished.
    """
    name = {word: word for word in pronunciations}
    owner: dict[str, str] = {}
    for word in sorted(pronunciations):
        for phones in pronunciations[word]:
            other = owner.setdefault(phones, word)
            old, new = name[word], name[other]
            name = {key: new if value == old else value for key, value in name.items()}
    return name


def talk_accuracy(text: str, pcm: np.ndarray, vocabulary: Iterable[str]) -> float | None:
    """Word accuracy of all that was said in a talk, utterance after utterance.

    Words that sound the same count as the same word.

    Args:
      text: All words that were said.
      pcm: float32[n] in [-1, 1], 16 kHz, the sound of them.
      vocabulary: All words that are recognised.

    Returns:
      1 - word error rate, at least 0; None without a word.
    """
    recognize = Recognizer(vocabulary)
    spoken = activity.merge(activity.active_intervals(pcm), activity.MERGE_S)
    pieces = [pcm[start:end] for start, end in np.round(16_000 * spoken).astype(int)]
    got = " ".join(recognize(piece) for piece in pieces)
    same = recognize.same
    wanted, got = (" ".join(same.get(w, w) for w in words.split()) for words in (text, got))
    return word_accuracy([wanted], [got])


def compare(clips: Sequence[Clip], vocabulary: Iterable[str]) -> dict[str, Any]:
    """Word accuracy of generated and of original speech of the same texts.

    Each set goes through its own recogniser in the same order, because a recogniser adapts. Words
    that sound the same count as the same word.

    Args:
      clips: Texts with both recordings.
      vocabulary: All words that are recognised.

    Returns:
      A dict for JSON with "asr_word_accuracy_generated", "asr_word_accuracy_original",
      "asr_word_accuracy_ratio", "clips", "words", "unknown" (number of clips with a word without
      pronunciation, which are left out), "missing_words" and "transcripts". Figures are None
      without a clip.
    """
    vocabulary = set(vocabulary)
    probe = Recognizer(vocabulary)
    usable = [clip for clip in clips if clip.text and probe.knows(clip.text)]
    texts = [clip.text for clip in usable]
    recognised = {}
    for name in ("generated", "original"):
        recognize = Recognizer(vocabulary)
        recognised[name] = [recognize(getattr(clip, name)) for clip in usable]

    def sounds(sentences: Sequence[str]) -> list[str]:
        return [" ".join(probe.same.get(w, w) for w in line.split()) for line in sentences]

    generated, original = (
        word_accuracy(sounds(texts), sounds(recognised[name])) for name in ("generated", "original")
    )
    ratio = generated / original if generated is not None and original else None
    return {
        "asr_word_accuracy_generated": generated,
        "asr_word_accuracy_original": original,
        "asr_word_accuracy_ratio": ratio,
        "clips": len(usable),
        "words": sum(len(text.split()) for text in texts),
        "unknown": len(clips) - len(usable),
        "missing_words": sorted(probe.missing),
        "transcripts": [list(row) for row in zip(texts, *recognised.values(), strict=True)],
    }
