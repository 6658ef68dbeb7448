"""Texts as they are read aloud; each one's words were written by hand."""

import random
import re
import time

import pytest

from interaction.background.number_words import cardinal, digits, ordinal, year
from interaction.background.spoken import complete, speakable

SPOKEN = {
    "It's **21°C**, $5.99 at 10:30, -3.5": "it's twenty one degrees celsius five dollars and "
    "ninety nine cents at ten thirty minus three point five",
    "It's **fifty-six**, e.g.\n- one_two": "it's fifty six for example one two",
    # Numbers.
    "0 7 13 40 99 100 999": "zero seven thirteen forty ninety nine one hundred nine hundred "
    "ninety nine",
    "1,234,567 people": "one million two hundred thirty four thousand five hundred sixty seven "
    "people",
    "1'000'000 or 1 000 000": "one million or one million",
    "1000000000000": "one trillion",
    "1234567890123456": "one two three four five six seven eight nine zero one two three four "
    "five six",
    "007 0.05 .5 12.50": "zero zero seven zero point zero five point five twelve point five zero",
    "1,2,3": "one two three",
    "1st 2nd 3rd 4th 12th 21st 30th 100th": "first second third fourth twelfth twenty first "
    "thirtieth one hundredth",
    "the 1,000th": "the one thousandth",
    "1/2 3/4 2/3 5/8 3 1/2 1½ ¾": "one half three quarters two thirds five eighths three and one "
    "half one and one half three quarters",
    "open 24/7": "open twenty four over seven",
    "1.2M views, 3k, 2.5 million, 7bn": "one point two million views three thousand two point "
    "five million seven billion",
    "6.02e23, 1e-9": "six point zero two times ten to the power of twenty three one times ten to "
    "the power of minus nine",
    "#1, No. 5, 3.11.2": "number one number five three point eleven point two",
    "COVID-19, GPT-4, H2O, A4": "covid nineteen gpt four h two o a four",
    "５ and ٣": "five and three",
    # Signs.
    "7 × 8 = 56, 7*8, 7 x 8": "seven times eight equals fifty six seven times eight seven times "
    "eight",
    "56 / 8 = 7, 56÷8": "fifty six divided by eight equals seven fifty six divided by eight",
    "8 - 3 = 5, 8-3=5, 8 − 3": "eight minus three equals five eight minus three equals five eight "
    "minus three",
    "2+2, +5, ±2, −1": "two plus two plus five plus or minus two minus one",
    "x² + 10⁶, 10^-3": "x squared plus ten to the power of six ten to the power of minus three",
    "≈5, ~7, < 8": "about five about seven eight",
    "3 < 5 > 4": "three less than five greater than four",
    "5–10, 5-10, 5%-10%": "five to ten five to ten five percent to ten percent",
    "50%, 3.5 %, 1%": "fifty percent three point five percent one percent",
    "R&D @ home": "r and d at home",
    # Money.
    "$5, $1, $0.50, -$5.01": "five dollars one dollar fifty cents minus five dollars and one cent",
    "5 €, 5,99 €, €1.5": "five euros five euros and ninety nine cents one point five euros",
    "£1.01, ¥500, ₹20": "one pound and one penny five hundred yen twenty rupees",
    "US$20, 20 USD, USD 20": "twenty dollars twenty dollars twenty dollars",
    "EUR 5, a CAD file": "five euros a cad file",
    "$1,234.56": "one thousand two hundred thirty four dollars and fifty six cents",
    "$1.2 billion, $50K, $5M": "one point two billion dollars fifty thousand dollars five million "
    "dollars",
    "$5/kg, $20/hour, $5-$10": "five dollars per kilogram twenty dollars per hour five dollars to "
    "ten dollars",
    # Times and dates.
    "10:30, 10:05, 10:00, 0:15": "ten thirty ten oh five ten o'clock zero fifteen",
    "10:30 am, 10pm, 9:00 P.M., 5 a.m.": "ten thirty a m ten p m nine p m five a m",
    "10:30:15, 16:9, 3:2": "ten thirty and fifteen seconds sixteen to nine three to two",
    "March 14, 2025": "march fourteenth twenty twenty five",
    "Jan. 3, 5 May, 21st of May 2024": "january third may fifth twenty first of may twenty twenty "
    "four",
    "2025-03-14, 12/25/2024": "march fourteenth twenty twenty five twelve slash twenty five slash "
    "twenty twenty four",
    "in 1999, since 2005, in 1905, by 1900": "in nineteen ninety nine since two thousand five in "
    "nineteen oh five by nineteen hundred",
    "1990-2005, the 1980s, the 90s": "nineteen ninety to two thousand five the nineteen eighties "
    "the nineties",
    "you may 5": "you may five",
    # Units.
    "1 km, 5 km, 60 km/h, 3 m/s": "one kilometer five kilometers sixty kilometers per hour three "
    "meters per second",
    "5 m², 2 kg, 90s, 5-min": "five square meters two kilograms ninety seconds five minutes",
    "-5°F, 21 ℃, 90°, 1°C": "minus five degrees fahrenheit twenty one degrees celsius ninety "
    "degrees one degree celsius",
    "16 GB, 2.4 GHz, 5 m away, 5 in all": "sixteen gigabytes two point four gigahertz five meters "
    "away five in all",
    # Telephone numbers and addresses.
    "555-1234, +1 555 123 4567": "five five five one two three four plus one five five five one "
    "two three four five six seven",
    "see [this](https://www.example.com/a?b=1)": "see this example dot com",
    "https://github.com/x.": "github dot com",
    # Words and formatting.
    "Dr. Smith vs. Mr. Jones, i.e. etc.": "doctor smith versus mister jones that is and so on",
    "It’s ‘fine’, the dogs' \"bowl\" — o'clock…": "it's fine the dogs bowl o'clock",
    "# Title\n* **one**\n> `two` ~~three~~ <b>four</b>": "title one two three four",
    "\\(7 \\times 8\\), \\frac{1}{2}, 21^\\circ C": "seven times eight one half twenty one "
    "degrees celsius",
    "six<|im_end|></s> 🙂": "six",
    "Café in São Paulo": "café in são paulo",
    " ... ": "",
}


@pytest.mark.parametrize(("text", "words"), SPOKEN.items())
def test_a_text_is_read_aloud(text: str, words: str) -> None:
    assert speakable(text) == words


@pytest.mark.parametrize(("text", "words"), SPOKEN.items())
def test_a_text_that_streams_gives_the_same_words(text: str, words: str) -> None:
    said, rest = [], ""
    for character in text:
        front, rest = complete(rest + character)
        said.append(speakable(front))
    said.append(speakable(rest))
    assert " ".join(one for one in said if one) == words


def test_words_are_said_as_soon_as_nothing_can_change_them() -> None:
    assert complete("it is fif") == ("it is", " fif")
    assert complete("it costs $5 ") == ("it costs", " $5 ")  # million?
    assert complete("it costs $5 a day") == ("it costs", " $5 a day")
    assert complete("it costs $5 million now ") == ("it costs $5 million now", " ")
    assert complete("it was in ") == ("it was", " in ")  # a year?
    assert complete("on March ") == ("on", " March ")


def test_any_text_becomes_plain_words() -> None:
    draw = random.Random(0)
    signs = "0123456789.,-+:/ $€%°CmkxM^eE<>|[]()'*_th\\~=#&@½²٣é\n"
    plain = re.compile(r"(?:[^\W\d_]+(?:'[^\W\d_]+)*(?: |$))*")
    for _ in range(2_000):
        text = "".join(draw.choice(signs) for _ in range(draw.randrange(40)))
        assert plain.fullmatch(speakable(text)), text


def test_long_texts_take_no_time() -> None:
    """A pattern holds the interpreter's lock while it searches."""
    for text in ("1", "1,", "1.", "1-", "1/1 ", "1 ", "+1 ", "$1", "a", "<a ", "](", "http://"):
        start = time.thread_time()
        speakable(text * (2_000 // len(text)))
        assert time.thread_time() - start < 0.15, text  # 0.02 measured


def test_numbers_have_the_words_of_the_training() -> None:
    assert cardinal("525") == "five hundred twenty five"
    assert cardinal("1000000") == "one million" and cardinal("20001") == "twenty thousand one"
    assert digits("5-0a5") == "five zero five"
    assert [ordinal(one) for one in ("5", "8", "9", "20", "101")] == [
        *("fifth", "eighth", "ninth", "twentieth", "one hundred first")
    ]
    assert [year(one) for one in ("1066", "2000", "2009", "2010", "1901")] == [
        *("ten sixty six", "two thousand", "two thousand nine", "twenty ten", "nineteen oh one")
    ]
