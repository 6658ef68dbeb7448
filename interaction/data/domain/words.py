"""Vocabularies and tables of facts of the domain, in lower case without punctuation."""


def _pairs(text: str) -> dict[str, str]:
    """A table from text of the form `key:value key:value`."""
    return dict((pair.split(":")[0], pair.split(":")[1]) for pair in text.split())


NUMBERS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
VALUE = {word: index + 1 for index, word in enumerate(NUMBERS)}

REPEATABLE = tuple(
    "apple tiger window river candle garden monkey pepper silver doctor yellow music rocket "
    "butter island winter purple dragon summer table forest coffee zebra pencil sugar castle "
    "orange village seven hammer".split()
)

OPPOSITES = _pairs(
    "hot:cold big:small up:down left:right happy:sad fast:slow open:closed young:old "
    "rich:poor day:night early:late hard:soft full:empty light:dark strong:weak "
    "wet:dry clean:dirty near:far true:false first:last inside:outside black:white "
    "always:never begin:end love:hate"
)

CAPITALS = _pairs(
    "france:paris germany:berlin italy:rome spain:madrid england:london japan:tokyo "
    "egypt:cairo russia:moscow greece:athens austria:vienna portugal:lisbon ireland:dublin "
    "norway:oslo poland:warsaw canada:ottawa cuba:havana china:beijing kenya:nairobi "
    "hungary:budapest belgium:brussels"
)

COLORS = {
    "a banana": "yellow",
    "a lemon": "yellow",
    "a tomato": "red",
    "a strawberry": "red",
    "a carrot": "orange",
    "a pumpkin": "orange",
    "a frog": "green",
    "a cucumber": "green",
    "a crow": "black",
    "coal": "black",
    "a swan": "white",
    "snow": "white",
    "milk": "white",
    "a pig": "pink",
    "a flamingo": "pink",
    "an elephant": "gray",
    "the sky": "blue",
    "the ocean": "blue",
    "chocolate": "brown",
    "grass": "green",
}

SOUNDS = {
    "dog": "woof",
    "cat": "meow",
    "cow": "moo",
    "duck": "quack",
    "lion": "roar",
    "snake": "hiss",
    "bee": "buzz",
    "owl": "hoot",
    "wolf": "howl",
    "chicken": "cluck",
    "bird": "tweet",
    "donkey": "bray",
}

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
SEASONS = {
    month: ("winter", "spring", "summer", "autumn")[(index + 1) % 12 // 3]
    for index, month in enumerate(MONTHS)
}

NEXT_LETTER: dict[str, str] = dict(zip("hkloqruwxy", "ilmprsvxyz", strict=True))
PLURALS = _pairs(
    "mouse:mice child:children foot:feet tooth:teeth man:men goose:geese leaf:leaves "
    "knife:knives wolf:wolves person:people"
)
SPELLINGS = {word: " ".join(word) for word in "dog fox six bus moon owl kiwi robot".split()}
RHYMES = _pairs(
    "cat:hat dog:frog house:mouse tree:bee moon:spoon cake:lake light:night star:car "
    "king:ring ball:wall boat:goat chair:bear"
)
SIZES = ("ant", "mouse", "rabbit", "dog", "horse", "elephant", "whale")  # ascending
LEGS = {
    "dog": "four",
    "horse": "four",
    "bird": "two",
    "chicken": "two",
    "spider": "eight",
    "ant": "six",
    "snake": "none",
    "fish": "none",
    "human": "two",
    "table": "four",
}
BABIES = {
    "dog": "puppy",
    "cat": "kitten",
    "cow": "calf",
    "sheep": "lamb",
    "bear": "cub",
    "duck": "duckling",
    "frog": "tadpole",
    "chicken": "chick",
}
HOMES = {
    "fish": "in the water",
    "bee": "in a hive",
    "bird": "in a nest",
    "spider": "in a web",
    "camel": "in the desert",
    "monkey": "in the forest",
    "king": "in a castle",
}
CATEGORIES = {
    "fruit": ("banana", "lemon", "apple", "peach", "cherry"),
    "vegetable": ("carrot", "potato", "onion", "cabbage", "cucumber"),
    "animal": ("tiger", "zebra", "monkey", "rabbit", "camel"),
    "color": ("yellow", "purple", "silver", "brown", "green"),
    "city": ("paris", "london", "tokyo", "berlin", "madrid"),
}
KIND = {thing: kind for kind, things in CATEGORIES.items() for thing in things}
ARTICLE = {"animal": "an"}

PEOPLE = ("anna", "peter", "lisa", "thomas", "maria", "oscar", "kevin", "julia")
FEELINGS = {
    "tired": "get some sleep",
    "hungry": "eat something",
    "thirsty": "drink some water",
    "bored": "read a book",
    "cold": "put on a coat",
    "happy": "that is great",
    "lonely": "call a friend",
    "nervous": "take a deep breath",
}
TASKS = (
    "buy milk",
    "call anna",
    "water the plants",
    "feed the cat",
    "take out the trash",
    "pay the rent",
    "book a table",
    "wash the car",
    "send the letter",
    "visit the doctor",
)
WHENS = ("tomorrow", "tonight", "on monday", "on friday", "at noon", "next week", "in one hour")
ROOMS = ("kitchen", "bedroom", "garden", "office", "hallway")
DEVICES = ("light", "fan", "heater", "radio")
GROCERIES = ("milk", "bread", "butter", "cheese", "apples", "coffee", "sugar", "pepper", "rice")

STORIES = {
    "dog": "a dog found a red ball and ran to the river where he played all day",
    "cat": "a cat climbed the tall tree and slept there until the moon was high",
    "king": "an old king lost his ring and a little fish brought it back to him",
    "dragon": "a dragon was afraid of fire so he moved into a cold lake",
    "robot": "a small robot wanted to sing and the birds in the garden taught him how",
    "farmer": "a farmer planted one seed and in the morning a giant pumpkin filled his house",
    "sailor": "a sailor crossed the dark sea with one candle and found an island of sugar",
    "bear": "a bear looked for honey all summer and found it behind his own door",
}
FACTS = {
    "the moon": "the moon goes around the earth in one month",
    "honey": "honey never goes bad and bees make it from flowers",
    "whales": "whales are the largest animals of all and they sing in the sea",
    "the sun": "the sun is a star and it is very hot",
    "spiders": "spiders have eight legs and make a new web every night",
    "sharks": "sharks are older than trees and never stop to sleep",
    "camels": "camels can drink a lot of water and walk for two weeks",
    "chocolate": "chocolate is made from beans that grow on a tree",
}
LISTS = {
    "fruits": "apple banana orange lemon and cherry",
    "animals": "dog cat cow horse and sheep",
    "colors": "red blue green yellow and black",
    "vegetables": "carrot potato onion cabbage and cucumber",
    "cities": "paris london berlin rome and tokyo",
    "planets": "mercury venus earth mars jupiter and saturn",
    "seasons": "spring summer autumn and winter",
    "rooms": "kitchen bedroom bathroom office and hallway",
}
