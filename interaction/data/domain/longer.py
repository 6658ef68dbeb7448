"""Intents whose answer repeats words of the request, and intents with long answers."""

from interaction.data.domain import words as w
from interaction.data.domain.form import Intent, Slots, hashed


def _distinct(slots: Slots) -> bool:
    return len(set(slots.values())) == len(slots)


def _repeat(count: int, weight: float) -> Intent:
    names = "abcd"[:count]
    order = " ".join("{" + name + "}" for name in names)
    return Intent(
        f"repeat{count}",
        lambda s: " ".join(s[name] for name in names),
        (
            f"repeat after me | {order}",
            f"please repeat | {order}",
            f"now say | {order}",
            f"say the words | {order}",
            f"copy these words | {order}",
        ),
        dict.fromkeys(names, w.REPEATABLE),
        valid=_distinct,
        held_out=hashed(f"repeat{count}"),
        weight=weight,
        long=count == 4,
    )


def _count(low: int, high: int) -> str:
    """Numbers from low to high, or downwards where low is larger."""
    step = 1 if high >= low else -1
    return " ".join(w.NUMBERS[n - 1] for n in range(low, high + step, step))


def _span(s: Slots) -> str:
    return _count(w.VALUE[s["a"]], w.VALUE[s["b"]])


OPEN = [
    _repeat(2, 1.2),
    _repeat(3, 1.6),
    _repeat(4, 0.7),
    Intent(
        "reverse",
        lambda s: f"{s['b']} {s['a']}",
        (
            "say backwards | {a} {b}",
            "turn around the words | {a} {b}",
            "swap the words | {a} and {b}",
        ),
        dict.fromkeys("ab", w.REPEATABLE),
        valid=_distinct,
        held_out=hashed("reverse"),
    ),
    Intent(
        "timer",
        lambda s: f"{s['n']} {s['unit']} starting now",
        (
            "set a timer for | {n} {unit}",
            "start a timer for | {n} {unit}",
            "i need a timer for | {n} {unit}",
            "let me know in | {n} {unit}",
        ),
        {
            "n": (*w.NUMBERS[1:8], "ten", "twelve", "twenty"),
            "unit": ("seconds", "minutes", "hours"),
        },
        held_out=hashed("timer"),
        weight=1.5,
    ),
    Intent(
        "alarm",
        lambda s: f"{s['n']} in the {s['part']}",
        (
            "set an alarm for | {n} in the {part}",
            "wake me up at | {n} in the {part}",
            "i want an alarm at | {n} in the {part}",
        ),
        {"n": w.NUMBERS, "part": ("morning", "afternoon", "evening")},
        held_out=hashed("alarm"),
        weight=1.2,
    ),
    Intent(
        "reminder",
        lambda s: f"okay {s['task']} {s['when']}",
        (
            "remind me to {task} | {when}",
            "do not let me forget to {task} | {when}",
            "make a note to {task} | {when}",
        ),
        {"task": w.TASKS, "when": w.WHENS},
        held_out=hashed("reminder"),
        weight=1.5,
        long=True,
        fix="when",
    ),
    Intent(
        "device",
        lambda s: f"{s['room']} {s['device']} {s['state']}",
        (
            "turn {state} the {device} in the | {room}",
            "switch {state} the {device} in the | {room}",
            "please turn {state} the | {room} {device}",
            "please switch {state} the | {room} {device}",
        ),
        {"state": ("on", "off"), "device": w.DEVICES, "room": w.ROOMS},
        held_out=hashed("device"),
        weight=1.3,
    ),
    Intent(
        "shopping",
        lambda s: f"{s['a']} and {s['b']} added",
        (
            "put on my list {a} and | {b}",
            "put on the shopping list {a} and | {b}",
            "i have to buy {a} and | {b}",
            "we are out of {a} and | {b}",
        ),
        dict.fromkeys("ab", w.GROCERIES),
        valid=_distinct,
        held_out=hashed("shopping"),
        weight=1.2,
        fix="b",
    ),
    Intent(
        "name",
        lambda s: f"nice to meet you {s['name']}",
        ("my name is | {name}", "i am called | {name}", "you can call me | {name}"),
        {"name": w.PEOPLE},
        fix="name",
    ),
    Intent(
        "greet",
        lambda s: f"hello {s['name']}",
        ("say hello to | {name}", "give my regards to | {name}"),
        {"name": w.PEOPLE},
        fix="name",
    ),
    Intent(
        "feeling",
        lambda s: w.FEELINGS[s["feeling"]],
        ("i feel so | {feeling}", "i am so | {feeling}", "today i am really | {feeling}"),
        {"feeling": tuple(w.FEELINGS)},
    ),
    Intent(
        "volume",
        lambda s: f"okay {s['level']}",
        ("make it a bit | {level}", "could you be a little | {level}"),
        {"level": ("louder", "softer", "slower", "faster")},
    ),
]

COUNTING = [
    Intent(
        "count",
        lambda s: _count(1, w.VALUE[s["n"]]),
        (
            "count to | {n}",
            "count up to | {n}",
            "can you count to | {n}",
            "let me hear you count to | {n}",
            "count all the way to | {n}",
        ),
        {"n": w.NUMBERS[2:]},
        weight=1.6,
        long=True,
        fix="n",
    ),
    Intent(
        "count_down",
        lambda s: _count(w.VALUE[s["n"]], 1),
        (
            "count down from | {n}",
            "do a countdown from | {n}",
            "start a countdown at | {n}",
        ),
        {"n": w.NUMBERS[2:]},
        weight=1.2,
        long=True,
        fix="n",
    ),
    Intent(
        "range",
        _span,
        (
            "count from {a} to | {b}",
            "give me the numbers from {a} to | {b}",
            "go up from {a} to | {b}",
        ),
        {"a": w.NUMBERS[1:9], "b": w.NUMBERS[3:]},
        valid=lambda s: w.VALUE[s["b"]] >= w.VALUE[s["a"]] + 2,
        held_out=hashed("range"),
        weight=1.2,
        long=True,
        fix="b",
    ),
    Intent(
        "range_down",
        _span,
        ("count backwards from {a} to | {b}", "go down from {a} to | {b}"),
        {"a": w.NUMBERS[3:], "b": w.NUMBERS[:9]},
        valid=lambda s: w.VALUE[s["a"]] >= w.VALUE[s["b"]] + 2,
        held_out=hashed("range_down"),
        weight=0.8,
        long=True,
        fix="b",
    ),
]


def _told(name: str, slot: str, table: dict[str, str], weight: float, *templates: str) -> Intent:
    return Intent(
        name,
        lambda s: table[s[slot]],
        templates,
        {slot: tuple(table)},
        weight=weight,
        long=True,
        fix=slot,
    )


def _piece(name: str, answer: str, *templates: str) -> Intent:
    return Intent(name, lambda s: answer, templates, weight=0.5, long=True)


TOLD = [
    _told(
        "story", "hero", w.STORIES, 2.0,
        "tell me a story about a | {hero}",
        "i want to hear a story about a | {hero}",
        "read me the story of the | {hero}",
        "do you have a story about a | {hero}",
        "let us hear the story of the | {hero}",
    ),
    _told(
        "fact", "topic", w.FACTS, 1.6,
        "tell me a fact about | {topic}",
        "what do you know about | {topic}",
        "teach me something about | {topic}",
        "explain to me | {topic}",
    ),
    _told(
        "list", "things", w.LISTS, 1.4,
        "name some | {things}",
        "give me a list of | {things}",
        "tell me some | {things}",
    ),
    _piece(
        "days", " ".join(w.DAYS), "name the days of the week", "list all days of the week",
        "what are the days of the week",
    ),
    _piece(
        "months", " ".join(w.MONTHS), "name the months of the year", "list all months of the year"
    ),
    _piece(
        "joke",
        "why did the chicken cross the road to get to the other side",
        "tell me a joke", "make me laugh", "do you know a joke", "say something funny",
    ),
    _piece(
        "joke2",
        "what has two hands but cannot clap it is a clock",
        "tell me another joke", "one more joke please", "give me a riddle",
    ),
    _piece(
        "poem",
        "roses are red violets are blue sugar is sweet and so are you",
        "say a poem for me", "recite something", "i would like a poem",
    ),
    _piece(
        "song",
        "row row row your boat gently down the stream",
        "sing me a song", "can you sing", "let us hear a song",
    ),
]  # fmt: skip

LONGER = [*OPEN, *COUNTING, *TOLD]
