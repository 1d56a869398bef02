"""Prompts with words to be written, in one pair of quotes: a thing that carries them, a place, and one to three words."""

from __future__ import annotations

from marble_core.prompts.filters import normal
from marble_core.prompts.kinds import Generator, Kind
from marble_core.types import Prompt

SINGLE = (
    *("Open", "Closed", "Welcome", "Bakery", "Library", "Museum", "Station", "Garden", "Harbor", "Market", "Coffee", "Books"),
    *("Flowers", "Pizza", "Exit", "Stop", "Sale", "Hotel", "Cinema", "Bridge", "Summer", "Winter", "Music", "Dream", "Peace"),
    *("Adventure", "Freedom", "Tomorrow", "Galaxy", "Lighthouse", "Thunder", "Victory", "Fragile", "Danger", "Recycle"),
    *("Express", "Champion", "Harvest", "Journey", "Wonder", "Keepsake", "Quantum", "Velvet", "Zephyr", "Jigsaw"),
)
FIRST = (
    *("Golden", "Silent", "Happy", "Fresh", "Northern", "Hidden", "Midnight", "Velvet", "Green", "Lucky", "Ancient", "Royal"),
    *("Little", "Rusty", "Electric", "Wild", "Sunny", "Quiet", "Crystal", "Brave"),
)
SECOND = (
    *("Harbor", "Bakery", "Valley", "Garden", "Fox", "Lantern", "Market", "River", "Orchard", "Studio", "Kitchen", "Railway"),
    *("Compass", "Theater", "Island", "Workshop", "Whale", "Canyon", "Voyage", "Jukebox"),
)
WRITTEN = (  # what carries the words
    'a neon sign that reads "{}"',
    'a wooden signpost with "{}" carved into it',
    'a chalkboard with "{}" written in white chalk',
    'a vintage poster that says "{}" in bold letters',
    'a paper coffee cup printed with "{}"',
    'a book cover with the title "{}"',
    'a birthday cake with "{}" written in icing',
    'a brick wall with the graffiti "{}"',
    'a white t-shirt with "{}" printed on the front',
    'a brass plaque engraved with "{}"',
    'a shop window with "{}" painted on the glass',
    'a road sign that says "{}"',
    'a hand-written note that reads "{}"',
    'a movie marquee announcing "{}"',
    'a cardboard box stamped with "{}"',
    'a computer screen displaying "{}" in large type',
)
PLACES = (
    *("", ", in the rain at night", ", in soft morning light", ", in a busy street", ", close-up photograph"),
    *(", with a blurred background", ", watercolor painting", ", in front of a snowy mountain", ", on a rustic table"),
    *(", cinematic lighting", ", seen from below", ", under a clear blue sky"),
)
CASES = (str, str.upper)


def _written(thing: str, place: str, words: str, tag: str) -> Prompt:
    return Prompt(thing.format(words) + place, "ocr", {"text": words, "tag": tag})


GENERATOR = Generator(
    kinds={
        "one_word": Kind((WRITTEN, PLACES, SINGLE, CASES), lambda t, p, a, case: _written(t, p, case(a), "one_word")),
        "two_words": Kind(
            (WRITTEN, PLACES, FIRST, SECOND, CASES),
            lambda t, p, a, b, case: _written(t, p, case(f"{a} {b}"), "two_words"),
        ),
        "three_words": Kind(
            (WRITTEN, PLACES, FIRST, SECOND, CASES),
            lambda t, p, a, b, case: _written(t, p, case(f"The {a} {b}"), "three_words"),
        ),
    },
    shares={"one_word": 0.4, "two_words": 0.35, "three_words": 0.25},
    meaning=lambda prompt: normal(prompt.text),  # upper and lower case ask for one image
    is_test=lambda meaning: False,  # no public file has such a text; whoever is judged by one has it in ``avoid``
)
