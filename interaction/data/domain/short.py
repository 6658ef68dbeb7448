"""Intents with short answers."""

from interaction.data.domain import words as w
from interaction.data.domain.form import Intent, Slots, combination_hash, hashed


def _fixed(name: str, answer: str, *templates: str, weight: float = 0.5) -> Intent:
    return Intent(name, lambda slots: answer, templates, weight=weight)


def _table(
    name: str, slot: str, table: dict[str, str], *templates: str, weight: float = 1.0
) -> Intent:
    return Intent(
        name,
        lambda slots: table[slots[slot]],
        templates,
        {slot: tuple(table)},
        weight=weight,
        fix=slot,
    )


def _cycle(
    name: str, items: tuple[str, ...], after: tuple[str, ...], before: tuple[str, ...]
) -> list[Intent]:
    """Intents that ask for the next and for the previous item of a cycle, such as days."""
    following = {item: items[(i + 1) % len(items)] for i, item in enumerate(items)}
    preceding = {item: items[i - 1] for i, item in enumerate(items)}
    return [
        _table(f"{name}_after", name, following, *after, weight=0.7),
        _table(f"{name}_before", name, preceding, *before, weight=0.7),
    ]


def _number(value: int) -> str:
    return w.NUMBERS[value - 1]


def _commuted_sum_held_out(slots: Slots) -> bool:
    """Holds out one order of the two numbers, for one pair in six; training has the other order."""
    low, high = sorted((slots["a"], slots["b"]), key=w.VALUE.__getitem__)
    code = combination_hash("sum", {"a": low, "b": high})
    return low != high and code % 6 == 0 and (slots["a"] == low) == (code // 6 % 2 == 0)


def _indefinite(word: str) -> str:
    return ("an " if word[0] in "aeio" else "a ") + word


SOCIAL = [
    _fixed("hello", "hello to you", "hello", "hi computer", "good day to you", "nice to see you"),
    _fixed("morning", "good morning", "good morning"),
    _fixed("evening", "good evening", "good evening"),
    _fixed("bye", "goodbye", "goodbye", "bye for now", "see you later", "talk to you soon"),
    _fixed("night", "sleep well", "good night", "i am going to bed"),
    _fixed(
        "thanks",
        "you are welcome",
        "thank you so much",
        "thanks a lot",
        "many thanks",
        "i appreciate it",
    ),
    _fixed(
        "how",
        "i am fine",
        "how are you today",
        "how do you feel",
        "are you well",
        "how is it going",
    ),
    _fixed("who", "i am your assistant", "who are you", "what is your name", "introduce yourself"),
    _fixed(
        "ability",
        "i answer short questions",
        "what can you do",
        "how can you help me",
        "what are you good at",
    ),
    _fixed("hear", "yes i hear you", "can you hear me", "are you listening"),
    _fixed("there", "yes i am here", "are you still there", "is anybody there"),
    _fixed("human", "no i am a machine", "are you a human", "are you a real person"),
]

ARITHMETIC = [
    Intent(
        "sum",
        lambda s: _number(w.VALUE[s["a"]] + w.VALUE[s["b"]]),
        (
            "what is {a} plus | {b}",
            "how much is {a} plus | {b}",
            "add {a} and | {b}",
            "what is the sum of {a} and | {b}",
            "tell me {a} plus | {b}",
        ),
        {"a": w.NUMBERS[:6], "b": w.NUMBERS[:6]},
        held_out=_commuted_sum_held_out,
        weight=1.6,
        fix="b",
    ),
    Intent(
        "difference",
        lambda s: _number(w.VALUE[s["a"]] - w.VALUE[s["b"]]),
        (
            "what is {a} minus | {b}",
            "how much is {a} minus | {b}",
            "subtract {b} from | {a}",
            "take {b} away from | {a}",
        ),
        {"a": w.NUMBERS[2:10], "b": w.NUMBERS[:5]},
        valid=lambda s: w.VALUE[s["a"]] > w.VALUE[s["b"]],
        weight=1.2,
    ),
    _table(
        "double",
        "n",
        {_number(n): _number(2 * n) for n in range(1, 7)},
        "double the number | {n}",
        "what is twice | {n}",
        "what is two times | {n}",
        "what do i get if i double | {n}",
    ),
    _table(
        "half",
        "n",
        {_number(2 * n): _number(n) for n in range(1, 7)},
        "what is half of | {n}",
        "divide by two the number | {n}",
        "how much is half of | {n}",
    ),
    Intent(
        "larger",
        lambda s: max(s["a"], s["b"], key=w.VALUE.__getitem__),
        (
            "which is larger {a} or | {b}",
            "which number is larger {a} or | {b}",
            "tell me the larger of {a} and | {b}",
        ),
        {"a": w.NUMBERS, "b": w.NUMBERS},
        valid=lambda s: s["a"] != s["b"],
        held_out=hashed("larger"),
    ),
    _table(
        "number_after",
        "number",
        {_number(n): _number(n + 1) for n in range(1, 12)},
        "what number comes after | {number}",
        "which number follows | {number}",
        weight=0.7,
    ),
    _table(
        "number_before",
        "number",
        {_number(n): _number(n - 1) for n in range(2, 13)},
        "what number comes before | {number}",
        "which number is right before | {number}",
        weight=0.7,
    ),
]

KNOWLEDGE = [
    _table(
        "opposite",
        "word",
        w.OPPOSITES,
        "what is the opposite of | {word}",
        "give me the opposite of | {word}",
        "tell me the opposite of | {word}",
        "which word means the opposite of | {word}",
        "i need the opposite of | {word}",
        weight=1.6,
    ),
    _table(
        "capital",
        "country",
        w.CAPITALS,
        "what is the capital of | {country}",
        "name the capital of | {country}",
        "which city is the capital of | {country}",
        "tell me the capital city of | {country}",
        "do you know the capital of | {country}",
        weight=1.6,
    ),
    _table(
        "country",
        "city",
        {city: country for country, city in w.CAPITALS.items()},
        "in which country is | {city}",
        "tell me which country has the city of | {city}",
    ),
    _table(
        "color",
        "thing",
        w.COLORS,
        "what is the color of | {thing}",
        "which color has | {thing}",
        "tell me the color of | {thing}",
        "do you know the color of | {thing}",
        weight=1.3,
    ),
    _table(
        "sound",
        "animal",
        w.SOUNDS,
        "what is the sound of a | {animal}",
        "make the sound of a | {animal}",
        "can you sound like a | {animal}",
        "show me how to sound like a | {animal}",
    ),
    Intent(
        "says",
        lambda s: w.SOUNDS[s["animal"]],
        ("what does a | {animal} say", "what noise does a | {animal} make"),
        {"animal": tuple(w.SOUNDS)},
    ),
    *_cycle(
        "day",
        w.DAYS,
        (
            "what day comes after | {day}",
            "which day follows | {day}",
            "what is the day after | {day}",
        ),
        ("what day comes before | {day}", "what is the day before | {day}"),
    ),
    *_cycle(
        "month",
        w.MONTHS,
        ("what month comes after | {month}", "which month follows | {month}"),
        ("what month comes before | {month}", "which month is right before | {month}"),
    ),
    Intent(
        "season",
        lambda s: w.SEASONS[s["month"]],
        ("what season is it in | {month}", "tell me the season in | {month}"),
        {"month": w.MONTHS},
        fix="month",
    ),
    _table(
        "letter",
        "letter",
        w.NEXT_LETTER,
        "what letter comes after | {letter}",
        "which letter follows | {letter}",
        "tell me the letter after | {letter}",
        weight=0.7,
    ),
    _table(
        "plural",
        "word",
        w.PLURALS,
        "what is the plural of | {word}",
        "tell me the plural of | {word}",
        "make the plural of | {word}",
    ),
    _table(
        "rhyme",
        "word",
        w.RHYMES,
        "what rhymes with | {word}",
        "give me a rhyme for | {word}",
        "find a word that rhymes with | {word}",
        "i need a rhyme for | {word}",
    ),
    _table(
        "baby", "animal", w.BABIES, "what do you call a baby | {animal}", "name a baby | {animal}"
    ),
    Intent(
        "legs",
        lambda s: w.LEGS[s["thing"]],
        ("how many legs has a | {thing}", "tell me the number of legs of a | {thing}"),
        {"thing": tuple(w.LEGS)},
        fix="thing",
    ),
    Intent(
        "home",
        lambda s: w.HOMES[s["who"]],
        ("where does a | {who} live", "where can i find a | {who}"),
        {"who": tuple(w.HOMES)},
    ),
    Intent(
        "bigger",
        lambda s: "the " + max(s["x"], s["y"], key=w.SIZES.index),
        ("which is bigger a {x} or a | {y}", "which animal is bigger a {x} or a | {y}"),
        {"x": w.SIZES[1:5] + w.SIZES[6:], "y": w.SIZES[1:5] + w.SIZES[6:]},
        valid=lambda s: s["x"] != s["y"],
        held_out=hashed("bigger"),
    ),
    Intent(
        "smaller",
        lambda s: "the " + min(s["x"], s["y"], key=w.SIZES.index),
        ("which is smaller a {x} or a | {y}", "which animal is smaller a {x} or a | {y}"),
        {"x": w.SIZES[1:5] + w.SIZES[6:], "y": w.SIZES[1:5] + w.SIZES[6:]},
        valid=lambda s: s["x"] != s["y"],
        held_out=hashed("smaller"),
    ),
    Intent(
        "category",
        lambda s: "yes it is" if w.KIND[s["thing"]] == s["kind"] else "no it is not",
        (
            "is {thing} a | {kind}",
            "tell me if {thing} is a | {kind}",
            "would you call {thing} a | {kind}",
        ),
        {"thing": tuple(w.KIND), "kind": tuple(w.CATEGORIES)},
        held_out=hashed("category"),
        weight=1.2,
    ),
    Intent(
        "kind",
        lambda s: _indefinite(w.KIND[s["thing"]]),
        ("what kind of thing is | {thing}", "what sort of thing is | {thing}"),
        {"thing": tuple(w.KIND)},
        fix="thing",
    ),
]

SHORT = [*SOCIAL, *ARITHMETIC, *KNOWLEDGE]
