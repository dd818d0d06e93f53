"""Captions: the templates of each family, and the synonyms."""

import re
from dataclasses import replace
from itertools import groupby

from t2i.data.scenes.world import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Scene, Thing

NUMERALS = ("no", "one", "two", "three", "four", "five", "six")
SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus sign"),
    "small": ("small", "tiny", "little"),
    "large": ("large", "big"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}  # words without an entry have no synonyms
TEMPLATES: dict[str, tuple[str, ...]] = {
    "place": (
        "{a} {place} on a {ground} background",
        "on a {ground} background, {a} {place}",
        "{place} there is {a}, the background is {ground}",
        "a picture of {a} {place}, on {ground}",
    ),
    "relation": (
        "{a} {relation} {b} on a {ground} background",
        "on a {ground} background, {a} is {relation} {b}",
        "there is {a} {relation} {b}, the background is {ground}",
        "a picture of {a} {relation} {b}, on {ground}",
        "{b} with {a} {relation} it, on a {ground} background",
    ),
    "count": (
        "{groups} on a {ground} background",
        "on a {ground} background, {groups}",
        "there {are} {groups}, the background is {ground}",
        "a picture of {groups}, on {ground}",
    ),
    "negation": (
        "{a} and no {absent} on a {ground} background",
        "on a {ground} background, there is {a} but no {absent}",
        "there is no {absent} but {a}, the background is {ground}",
        "a picture of {a} and no {absent}, on {ground}",
    ),
    "same": (
        "{plain_a} {relation} {plain_b} on a {ground} background, both are {shared}",
        "on a {ground} background, {plain_a} is {relation} {plain_b} and both are {shared}",
        "{a} {relation} {sized_b} of the same colour, on {ground}",
        "a picture of {a} and {sized_b} of the same colour, the {first} is {relation} the {second}, on {ground}",
    ),
}
HELD_OUT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "place": ("the background is {ground} and {a} is {place}", "there is {a} {place} of a {ground} picture"),
    "relation": (
        "{relation} {b} there is {a}, on {ground}",
        "the background is {ground} and {b} is with {a} {relation} it",
    ),
    "count": ("the background is {ground} with {groups}", "{groups}, the background is {ground}"),
    "negation": (
        "no {absent} but {a}, on a {ground} background",
        "the background is {ground} and there is {a}, no {absent}",
    ),
    "same": (
        "both are {shared}, {plain_a} {relation} {plain_b}, on a {ground} background",
        "the background is {ground}, {plain_a} and {plain_b} of the same colour, both are {shared}, "
        "the {first} is {relation} the {second}",
    ),
}  # of words that TEMPLATES use too


def synonyms_of(name: str) -> tuple[str, ...]:
    """Returns the synonyms of a word of scenes, the plain word first."""
    return SYNONYMS.get(name, (name,))


def article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(words: str) -> str:
    return f"{words}es" if words.endswith(("s", "x")) else f"{words}s"


VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"a", "an", "and", "are", "is", *BACKGROUNDS, *COLOURS, *NUMERALS}
        | {word for place in PLACES for word in place.split()}
        | {word for name in (*SHAPES, *SIZES, *RELATIONS) for way in synonyms_of(name) for word in way.split()}
        | {plural(way).split()[-1] for name in SHAPES for way in synonyms_of(name)}
        | {
            word
            for families in (TEMPLATES, HELD_OUT_TEMPLATES)
            for templates in families.values()
            for template in templates
            for word in re.findall("[a-z]+", re.sub(r"{\w+}", "", template))
        }
    )
)  # every word of any caption, commas aside


def with_caption(scene: Scene) -> Scene:
    """Returns the scene with the caption of its kind and wording."""
    wording = scene.wording
    templates = (HELD_OUT_TEMPLATES if wording.held_out else TEMPLATES)[scene.kind]
    return replace(scene, caption=templates[wording.template % len(templates)].format(**_slots(scene)))


def groups(scene: Scene) -> list[tuple[int, Thing]]:
    """Returns (count, thing) of each group, in the order of the caption."""
    runs = [list(run) for _, run in groupby(scene.things, lambda thing: (thing.pair, thing.size))]
    return [(len(run), run[0]) for run in runs]


def _slots(scene: Scene) -> dict[str, str]:
    """Returns the text for each slot of the templates."""
    wording = scene.wording

    def word(name: str, pick: int) -> str:
        return synonyms_of(name)[pick % len(synonyms_of(name))]

    def named(thing: Thing, size: bool = True, colour: bool = True) -> str:
        words = [word(thing.size, wording.size) if size else "", thing.colour if colour else ""]
        return " ".join(filter(None, [*words, word(thing.shape, wording.shape)]))

    first, second = scene.things[0], scene.things[-1]
    counted = [f"{NUMERALS[n]} {named(thing) if n == 1 else plural(named(thing))}" for n, thing in groups(scene)]
    size = word(first.size, wording.size)
    absent = scene.absent
    return {
        "a": article(named(first)),
        "b": article(named(second)),
        "plain_a": article(named(first, size=False, colour=False)),
        "plain_b": article(named(second, size=False, colour=False)),
        "sized_b": article(named(second, colour=False)),
        "first": word(first.shape, wording.shape),
        "second": word(second.shape, wording.shape),
        "shared": f"{size} and {first.colour}" if size else first.colour,
        "groups": " and ".join(counted),
        "are": "is" if groups(scene)[0][0] == 1 else "are",
        "absent": f"{absent.colour} {word(absent.shape, wording.shape)}" if absent else "",
        "place": scene.place,
        "relation": word(scene.relation, wording.relation),
        "ground": scene.background,
    }


assert {*SYNONYMS} <= {*SHAPES, *SIZES, *RELATIONS} and not {*COLOURS, *BACKGROUNDS} & {*SYNONYMS}
