"""Numbers, years, fractions, prices and amounts in spoken words.

Numbers are read as the training data of the demo says them: without "and" and without hyphens.
"""

from fractions import Fraction

from interaction.data.domain.tool_requests import number_words

_SCALES = ("", " thousand", " million", " billion", " trillion")
_DIGITS = 15  # longer numbers are read digit by digit
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
# Sign or code: one, several, a hundredth, hundredths; "" where there is no hundredth.
_DOLLARS, _CENTS = ("dollar", "dollars"), ("cent", "cents")
CURRENCIES = {
    "$": (*_DOLLARS, *_CENTS),
    "€": ("euro", "euros", *_CENTS),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "", ""),
    "USD": (*_DOLLARS, *_CENTS),
    "EUR": ("euro", "euros", *_CENTS),
    "GBP": ("pound", "pounds", "penny", "pence"),
    "JPY": ("yen", "yen", "", ""),
    "CHF": ("swiss franc", "swiss francs", "", ""),
    "CAD": ("canadian dollar", "canadian dollars", *_CENTS),
    "AUD": ("australian dollar", "australian dollars", *_CENTS),
}


def digits(text: str) -> str:
    """Each digit of a text as a word; other characters are left out."""
    return " ".join(number_words(int(one)) for one in text if one.isdecimal())


def cardinal(text: str) -> str:
    """A whole number of decimal digits; one with a leading zero is read digit by digit."""
    if len(text) > _DIGITS or (len(text) > 1 and int(text[0]) == 0):
        return digits(text)
    number, words = int(text), []
    if number == 0:
        return "zero"
    for scale in _SCALES:
        number, group = divmod(number, 1_000)
        if group:
            words.append(number_words(group) + scale)
    return " ".join(reversed(words))


def ordinal(text: str) -> str:
    """The ordinal of a whole number: "21" is twenty first."""
    *front, last = cardinal(text).split()
    if last.endswith("y"):
        last = f"{last[:-1]}ieth"
    else:
        last = _ORDINALS.get(last, f"{last}th")
    return " ".join([*front, last])


def year(text: str) -> str:
    """A year of four digits: "1905" is nineteen oh five."""
    number = int(text)
    hundreds, rest = divmod(number, 100)
    if number % 1_000 < 10:
        return cardinal(text)
    if rest == 0:
        return f"{cardinal(str(hundreds))} hundred"
    return f"{cardinal(str(hundreds))} {'oh ' if rest < 10 else ''}{cardinal(str(rest))}"


def decade(text: str) -> str:
    """The first year of a decade: "1990" is nineteen nineties, "80" is eighties."""
    *front, last = (year(text) if len(text) == 4 else cardinal(text)).split()
    return " ".join([*front, f"{last[:-1]}ies" if last.endswith("y") else f"{last}s"])


def decimal(text: str) -> str:
    """A number such as "1,234.5" or ".5"; the digits behind the point are read one by one."""
    whole, point, rest = text.replace(",", "").partition(".")
    words = [cardinal(whole)] if whole else []
    return " ".join([*words, *(["point", digits(rest)] if point and rest else [])])


def fraction(part: str, of: str) -> str:
    """A fraction: "3" and "4" are three quarters, "24" and "7" are twenty four over seven."""
    if not 0 < int(part) < int(of):
        return f"{cardinal(part)} over {cardinal(of)}"
    one = {2: "half", 4: "quarter"}.get(int(of)) or ordinal(of)
    several = "halves" if int(of) == 2 else f"{one}s"
    return f"{cardinal(part)} {one if int(part) == 1 else several}"


def is_one(text: str) -> bool:
    """Whether a number takes the singular."""
    return Fraction(text.replace(",", "")) == 1


def price(text: str, scale: str, currency: str) -> str:
    """A price: "5.99", "" and "$" are five dollars and ninety nine cents.

    Args:
      text: The number.
      scale: "" or a word such as "million" that stands behind it.
      currency: A key of `CURRENCIES`.
    """
    one, several, hundredth, hundredths = CURRENCIES[currency]
    if scale:
        return f"{decimal(text)} {scale} {several}"
    whole, _, rest = text.replace(",", "").partition(".")
    whole, small = whole or "0", str(int(rest or "0"))
    if not hundredth or len(rest) not in (0, 2):
        return f"{decimal(text)} {one if is_one(text) else several}"
    parts = []
    if int(whole) or small == "0":
        parts.append(f"{cardinal(whole)} {one if is_one(whole) else several}")
    if small != "0":
        parts.append(f"{cardinal(small)} {hundredth if small == '1' else hundredths}")
    return " and ".join(parts)
