"""`speakable`: text in plain lower-case words, as it is read aloud.

Numbers, signs, currencies, times, dates, units and abbreviations become words; formatting is left
out. The rules are those of English text as language models write it.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable

from interaction.background import number_words as n

_MONTHS = (
    "January February March April May June July August September October November December".split()
)
_SHORT_MONTHS = {"Sept": "September"} | {one[:3]: one for one in _MONTHS}
_UNITS = {  # one, several
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "kph": ("kilometer per hour", "kilometers per hour"),
    "mph": ("mile per hour", "miles per hour"),
    "m/s": ("meter per second", "meters per second"),
    "km^2": ("square kilometer", "square kilometers"),
    "m^2": ("square meter", "square meters"),
    "ft^2": ("square foot", "square feet"),
    "m^3": ("cubic meter", "cubic meters"),
    "°C": ("degree celsius", "degrees celsius"),
    "°F": ("degree fahrenheit", "degrees fahrenheit"),
    "°": ("degree", "degrees"),
    "%": ("percent", "percent"),
    "ft": ("foot", "feet"),
    "Hz": ("hertz", "hertz"),
    "kHz": ("kilohertz", "kilohertz"),
    "MHz": ("megahertz", "megahertz"),
    "GHz": ("gigahertz", "gigahertz"),
} | {
    name: (word, f"{word}s")
    for names, word in (
        ("km", "kilometer"),
        ("m", "meter"),
        ("cm", "centimeter"),
        ("mm", "millimeter"),
        ("mi", "mile"),
        ("yd", "yard"),
        ("kg", "kilogram"),
        ("g", "gram"),
        ("mg", "milligram"),
        ("lb lbs", "pound"),
        ("oz", "ounce"),
        ("l L", "liter"),
        ("ml mL", "milliliter"),
        ("h hr hrs", "hour"),
        ("min mins", "minute"),
        ("s sec secs", "second"),
        ("ms", "millisecond"),
        ("W", "watt"),
        ("kW", "kilowatt"),
        ("kWh", "kilowatt hour"),
        ("V", "volt"),
        ("KB", "kilobyte"),
        ("MB", "megabyte"),
        ("GB", "gigabyte"),
        ("TB", "terabyte"),
        ("kcal", "kilocalorie"),
        ("ha", "hectare"),
    )
    for name in names.split()
}
_SCALES = {"k": "thousand", "M": "million", "m": "million", "B": "billion", "bn": "billion"}
_ABBREVIATIONS = {
    "e.g.": "for example",
    "i.e.": "that is",
    "etc.": "and so on",
    "vs.": "versus",
    "approx.": "about",
    "dr.": "doctor",
    "mr.": "mister",
    "mrs.": "missus",
    "a.m.": "a m",
    "p.m.": "p m",
}
_SIGNS = {
    "&": "and",
    "@": "at",
    "=": "equals",
    "≈": "about",
    "±": "plus or minus",
    "×": "times",
    "÷": "divided by",
    "≤": "at most",
    "≥": "at least",
    "√": "square root of",
    "π": "pi",
    "μ": "micro",
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_LATEX = {"times": "×", "cdot": "×", "div": "÷", "approx": "≈", "circ": "°", "pm": "±"}


def _any(names: Iterable[str]) -> str:
    """A pattern for any of these names, the longest first."""
    return "|".join(re.escape(one) for one in sorted(names, key=len, reverse=True))


_NEW = r"(?<![\w.,:/])"  # before a number, where no other one ends
_END = r"(?![\w^])"  # behind a name
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\w.])\.\d+)"
_AMOUNT = rf"(?P<amount>\d+,\d\d(?![\d,])|{_NUMBER})"
_SCALE = (
    rf"(?:\s?(?P<scale>hundred|thousand|million|billion|trillion|{_any([*_SCALES, 'K'])}){_END})?"
)
_PER = r"(?:/(?P<per>[A-Za-z]+))?"
_SIGN = "[$€£¥₹₩]"
_CODE = _any(one for one in n.CURRENCIES if len(one) == 3)
_LOWER = (one.lower() for one in _MONTHS if one not in ("March", "May"))  # these are words as well
_MONTH = rf"(?P<month>{_any([*_MONTHS, *_SHORT_MONTHS, *_LOWER])})"
_DAY = r"(?P<day>3[01]|[12]\d|0?[1-9])(?:st|[nr]d|th)?"
_YEAR = r"(?P<year>1[1-9]\d\d|20\d\d)"


def _date(found: re.Match[str]) -> str:
    parts = found.groupdict()
    month, day, year = parts["month"], parts.get("day"), parts.get("year")
    month = _MONTHS[int(month) - 1] if month.isdecimal() else _SHORT_MONTHS.get(month, month)
    words = [month, n.ordinal(str(int(day))) if day else "", n.year(year) if year else ""]
    return f" {' '.join(words)} "


def _time(found: re.Match[str]) -> str:
    hour, minute, second, half = found.group("hour", "minute", "second", "half")
    words = [n.cardinal(str(int(hour)))]
    if int(minute):
        words += ["oh"] * (int(minute) < 10) + [n.cardinal(str(int(minute)))]
    elif half is None:
        words.append("o'clock")
    if second and int(second):
        words.append(f"and {n.cardinal(str(int(second)))} seconds")
    return f" {' '.join(words)} {f'{half} m' if half else ''} "


def _mixed(found: re.Match[str]) -> str:
    whole, part, of = found.groups()
    both = "and" if int(part) < int(of) else ""
    return f" {f'{n.cardinal(whole)} {both}' if whole else ''} {n.fraction(part, of)} "


def _per(found: re.Match[str]) -> str:
    per = found["per"]
    return f" per {_UNITS[per][0] if per in _UNITS else per} " if per else " "


def _price(found: re.Match[str]) -> str:
    amount, scale = found.group("amount", "scale")
    if re.fullmatch(r"\d+,\d\d", amount):
        amount = amount.replace(",", ".")
    scale = "thousand" if scale == "K" else _SCALES.get(scale, scale)
    return f" {n.price(amount, scale or '', found['currency'])}{_per(found)}"


def _measure(found: re.Match[str]) -> str:
    number, (one, several) = found["number"], _UNITS[found["unit"]]
    return f" {n.decimal(number)} {one if n.is_one(number) else several}{_per(found)}"


def _power(found: re.Match[str]) -> str:
    sign, number = found.groups()
    short = {"2": "squared", "3": "cubed"}.get(number) if not sign else None
    return f" {short or f'to the power of {_minus(sign)} {n.cardinal(number)}'} "


def _scientific(found: re.Match[str]) -> str:
    number, sign, power = found.groups()
    return f" {n.decimal(number)} times ten to the power of {_minus(sign)} {n.cardinal(power)} "


def _minus(sign: str) -> str:
    return "minus" if sign == "-" else ""


_Replacement = str | Callable[[re.Match[str]], str]
# In this order; what a rule has put into words is left alone by the rules behind it.
_RULES: list[tuple[str, _Replacement]] = [
    # Formatting.
    (r"(?<=\d) (?=000(?!\d))", ""),
    (r"<\|[^|]*\|>|</?[A-Za-z][^<>]*>", " "),
    (r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r" \1/\2 "),
    (r"\^?\\(times|cdot|div|approx|circ|pm)\b", lambda found: _LATEX[found[1]]),
    (r"\\[A-Za-z]+", " "),
    (r"°\s(?=[CF]\b)", "°"),
    (r"https?://(?:www\.)?([^\s/)>\]]+)\S*", r" \1 "),
    (r"\]\([^)\s]*\)", " "),
    (r"\.(?=(?:com|org|net|io|edu|gov|ai|dev)\b)", " dot "),
    (rf"(?i)(?<!\w)(?:{_any(_ABBREVIATIONS)})", lambda found: _ABBREVIATIONS[found[0].lower()]),
    (r"#(?=\d)|\bNo\.\s?(?=\d)", " number "),
    # Dates.
    (r"(?<![\w-])(?P<year>\d{4})-(?P<month>0[1-9]|1[0-2])-(?P<day>\d\d)(?!\w|-)", _date),
    (rf"\b{_MONTH}\.?\s{_DAY}\b(?![:/]|\.\d)(?:,?\s{_YEAR}\b)?", _date),
    (rf"{_NEW}{_DAY}\s{_MONTH}{_END}(?:,?\s{_YEAR}\b)?", _date),
    (rf"\b{_MONTH},?\s{_YEAR}\b", _date),
    (
        rf"{_NEW}(\d\d?)/(\d\d?)/{_YEAR}\b",
        lambda found: (
            f"{n.cardinal(found[1])} slash {n.cardinal(found[2])} slash {n.year(found[3])} "
        ),
    ),
    (r"\b((?:1[1-9]|20)\d0)'?s\b", lambda found: n.decade(found[1])),
    (r"(?i)\b((?:the|early|late|mid)[\s-])'?([2-9]0)s\b", lambda f: f[1] + n.decade(f[2])),
    (
        r"\b((?:1[1-9]|20)\d\d)\s?[-–]\s?((?:1[1-9]|20)\d\d)(?![\w-])",
        lambda found: f"{n.year(found[1])} to {n.year(found[2])} ",
    ),
    # Times and ratios.
    (
        rf"{_NEW}(?P<hour>[01]?\d|2[0-4]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?!\d|:\d)"
        r"(?:\s?(?P<half>[AaPp])(?:\.\s?[Mm]\.|\s?[Mm]\b))?",
        _time,
    ),
    (rf"{_NEW}(1[0-2]|0?[1-9])\s?([AaPp])(?:\.\s?[Mm]\.|\s?[Mm]\b)", r" \1 \2 m "),
    (rf"{_NEW}(\d+):(?=\d+(?![\d:]))", r"\1 to "),
    # Telephone numbers, ranges, signs between numbers.
    (
        r"(?<![\w.,-])(?:\+\d[\d -]{6,}\d|\d+(?:-\d+){2,}|\d{3}-\d{4})(?![\w-])",
        lambda found: f" {'plus' if found[0][0] == '+' else ''} {n.digits(found[0])} ",
    ),
    (rf"{_NEW}(?:(\d+)\s)?(\d\d?)/(\d\d?\d?)(?![\d/]|\.\d)", _mixed),
    (r"(?<=\d)\s-\s(?=\d)|(?<=\d)-(?=\d+(?:\.\d+)?\s*=)", " minus "),
    (rf"(?<=[\d%])-(?={_SIGN}?\d)|(?<=\S)–(?={_SIGN}?\d)|(?<=\d) – (?=\d)", " to "),
    (rf"(?<![\w)\]^])(?<!\^[({{])-(?={_SIGN}?\.?\d)", " minus "),
    (rf"(?<!\w)\+(?={_SIGN}?\.?\d)|(?<=[\d)])\s?\+\s?(?=[(\d])", " plus "),
    (rf"~(?=\s?{_SIGN}?\d)", " about "),
    (r"(?<=\d)\s?[*x]\s?(?=\d)|(?<=\d)x\b", " times "),
    (r"(?<=\d)\s?/\s?(?=\d)", " divided by "),
    (r"(?<=[\w)])\s?<\s?(?=[-\d])", " less than "),
    (r"(?<=[\w)])\s?>\s?(?=[-\d])", " greater than "),
    # Amounts.
    (
        rf"(?:\b[A-Z]{{1,2}}(?=\$))?(?P<currency>{_SIGN}|\b(?:{_CODE})(?=\s?\d))\s?{_AMOUNT}{_SCALE}"
        rf"(?:\s(?:dollars|euros|pounds)\b)?{_PER}",
        _price,
    ),
    (rf"{_NEW}{_AMOUNT}{_SCALE}\s?(?P<currency>{_SIGN}|(?:{_CODE})\b){_PER}", _price),
    (rf"{_NEW}(\d+(?:\.\d+)?)[eE]([+-]?)(\d+)\b", _scientific),
    (rf"{_NEW}(?P<number>{_NUMBER})[\s-]?(?P<unit>{_any(_UNITS)}){_END}{_PER}", _measure),
    (r"\^[({]?(-?)(\d+)", _power),
    (
        rf"{_NEW}({_NUMBER})({_any(_SCALES)})\b",
        lambda found: f" {n.decimal(found[1])} {_SCALES[found[2]]} ",
    ),
    (
        r"(?i)(?<![\d,])(\d{1,3}(?:,\d{3})+|\d+)(?:st|[nr]d|th)\b",
        lambda found: f" {n.ordinal(found[1].replace(',', ''))} ",
    ),
    (
        rf"(?i)\b((?:in|since|year|by|until|before|after|from|of)\s){_YEAR}\b(?![,.:]\d)",
        lambda found: f"{found[1]}{n.year(found[2])} ",
    ),
    # Other numbers and signs.
    (r"(?<!\d)\d+(?:\.\d+){2,}", lambda f: f" {' point '.join(map(n.cardinal, f[0].split('.')))} "),
    (_NUMBER, lambda found: f" {n.decimal(found[0])} "),
    (f"[{''.join(_SIGNS)}]", lambda found: f" {_SIGNS[found[0]]} "),
    (r"[^\w\s']|_", " "),
    (r"(?<!\w)'|'(?!\w)", " "),
]
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]


def speakable(text: str) -> str:
    """A text in plain lower-case words, without punctuation, digits and formatting.

    Args:
      text: English text, which may have Markdown in it.

    Returns:
      Its words with single spaces: "It's **21°C**" becomes "it's twenty one degrees celsius".
    """
    text = re.sub("[’‘ʼ]", "'", text)
    text = re.sub(r"(?<=\d)[\u00a0\u202f\u2009'](?=\d{3}(?!\d))", "", text)
    text = re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: f"^{found[0].translate(_SUPERSCRIPTS)}", text)
    text = re.sub("(?<=\\d)(?=[¼½¾⅐-⅞])", " ", text)
    text = unicodedata.normalize("NFKC", re.sub("[™®©]", " ", text))
    text = text.translate({0x2044: "/", 0x2212: "-", 0x2010: "-", 0x2011: "-"})
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    return " ".join(text.lower().split())


_COMPLETED = {  # words that a number behind them belongs to
    *(one.lower() for one in (*_MONTHS, *_SHORT_MONTHS)),
    *"in since year by until before after from of the early late mid no plus minus".split(),
    *(one.lower() for one in n.CURRENCIES),
}


def complete(text: str) -> tuple[str, str]:
    """Splits a text that streams, so that words behind it change nothing in its first part.

    Args:
      text: The text so far.

    Returns:
      The text up to the last word that is complete and has no part in a number, and the rest.
    """
    words = re.findall(r"\s*\S+(?=\s)", text)
    while words and not _stands_alone(words[-1]):
        words.pop()
    front = "".join(words)
    return front, text[len(front) :]


def _stands_alone(word: str) -> bool:
    letters = "".join(one for one in word if one.isalpha()).lower()
    alone = len(letters) > 1 and letters not in _COMPLETED
    return alone and not any(one.isnumeric() or one in _SIGN for one in word)
