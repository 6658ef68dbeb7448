"""Makes the tokenizer of the demo from the text of the domain."""

from pathlib import Path

from absl import app, flags

from interaction.data import domain, tokenizer as tokenizers

OUT = flags.DEFINE_string("out", str(tokenizers.PATH), "JSON file to write.")


def main(_: list[str]) -> None:
    """Makes the tokenizer and writes it."""
    words = sorted({*domain.answer_words(), *domain.said_words()})
    asides = domain.asides
    short = asides.STOPS + asides.BACKCHANNELS + asides.OPENERS + asides.CORRECTIONS
    lines = [*asides.SIDE_SPEECH, *short * 20, *asides.OVERHEARD * 10, *words]
    tool_requests = domain.tool_requests
    later = [
        *sorted({word for text in short for word in text.split()}),
        *tool_requests.said_words(),
    ]
    made = tokenizers.train(words, lines, later=later, pieces=tool_requests.call_pieces())
    made.save(Path(OUT.value))
    print(f"{OUT.value}: {made.vocab} tokens, {len(words)} whole words")


if __name__ == "__main__":
    app.run(main)
