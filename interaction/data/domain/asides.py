"""What users say that needs no answer: stops, backchannels, and speech to somebody else."""

import zlib

STOPS = (
    "stop",
    "stop it",
    "okay stop",
    "please stop",
    "stop talking",
    "be quiet",
    "quiet please",
    "that's enough",
    "okay that's enough",
    "never mind",
)
BACKCHANNELS = ("uh huh", "yeah", "right", "i see", "wow", "okay", "nice", "really", "sure", "oh")

# Said before a request. None of them is a request or a stop, or the beginning of one.
OPENERS = (
    "um",
    "uh",
    "okay so",
    "so",
    "please",
    "excuse me",
    "listen",
    "hey there",
    "well",
    "alright",
)
# Inside a request that corrects itself: "... france no wait germany".
SELF_FIXES = ("no wait", "no i mean", "sorry i meant", "i mean")
# At the beginning of a correction that interrupts an answer or follows it.
CORRECTIONS = ("no i mean", "no wait", "sorry i meant", "no i meant")

ADDRESSED = tuple(
    line.strip()
    for line in """
    can you pass me the salt
    where are my shoes
    dinner is ready
    did you lock the front door
    please close that window
    your phone is ringing
    have you seen my keys
    come over here for a moment
    i will be there in a second
    what would you like for lunch
    did you do your homework
    put your jacket on we are leaving
    the taxi is waiting downstairs
    do we have any clean plates
    are you coming with us later
    give me a hand with this box
    who left the fridge open
    i am on a call right now
    look at that huge truck
    mind the step over there
    could you hold my bag
    we need to leave in a minute
    don't forget your umbrella
    how was school this morning
    who is at the door
    """.strip().splitlines()
)
NAMES = ("anna", "peter", "mom", "dad", "lisa", "thomas", "grandma", "kevin", "maria", "oscar")
OVERHEARD = tuple(
    line.strip()
    for line in """
    sorry darling i was not talking to you
    honey the kids are asleep already
    yes officer i parked it over there
    no thanks we already have one at home
    i told him that the train was late again
    she said the meeting moved to thursday
    this soup needs a bit more pepper
    my back has been hurting all day long
    they painted the whole house last summer
    we should visit your parents next weekend
    that movie was way too long for me
    i think the neighbors got a new puppy
    the waiter forgot our drinks again
    there is sand in my shoes everywhere
    he plays the guitar in a small band
    it has been raining since early morning
    your sister called me last night
    the elevator is broken so we take the stairs
    i left my wallet in the other jacket
    those tickets were really expensive
    just put the groceries on the counter darling
    the doctor said it is nothing serious
    our flight leaves from the other terminal
    i can't believe we lost that game
    """.strip().splitlines()
)
SIDE_SPEECH = (*(f"{name} {line}" for name in NAMES for line in ADDRESSED), *OVERHEARD)


def side_speech_held_out(text: str) -> bool:
    """Whether training never has this sentence for somebody else; one in eight is held out."""
    return zlib.crc32(text.encode()) % 8 == 0
