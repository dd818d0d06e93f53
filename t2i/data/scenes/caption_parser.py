"""Parses captions by the templates that made them: a caption alone determines what its image must contain."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import product

from t2i.data.scenes.grammar import cells_of, minimal_pairs
from t2i.data.scenes.wording import HELD_OUT_TEMPLATES, NUMERALS, TEMPLATES, groups, plural, synonyms_of, with_caption
from t2i.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    MAX_THINGS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Absent,
    Scene,
    Thing,
    Wording,
)

MEDIUM = "medium"  # the size without a word in captions
ROOMY = 4  # up to so many things may be of any size; more of them are small

_NAMES = {
    word: name
    for name in (*SHAPES, *SIZES, *RELATIONS)
    for way in synonyms_of(name)
    for word in ((way, plural(way)) if name in SHAPES else (way,))
}  # a word of a caption -> the scene's word
Words = Mapping[str, str | None]


def parse_caption(caption: str) -> Scene:
    """Returns the scene that a caption of the grammar describes, in typical places; raises a ValueError for others."""
    for kind, number, held_out, pattern in _patterns():
        match = pattern.fullmatch(caption)
        scene = match and _scene(kind, match.groupdict())
        if not scene:
            continue
        for shape, size, relation in product(range(2), range(3), range(2)):
            candidate = with_caption(replace(scene, wording=Wording(number, held_out, shape, size, relation)))
            if candidate.caption == caption:
                return candidate
    raise ValueError(
        f"{caption!r} is no caption of the built-in scenes; only their images can be judged exactly: "
        "use captions of `data: {source: scenes}`, or write one like 'a red circle left of a small blue square on a "
        "white background'"
    )


def attributes_of(caption: str) -> list[list[str]]:
    """Returns a caption's content: a list of words for each group of things, the absent one and the background."""
    scene, attributes = parse_caption(caption), []
    for role, (n, thing) in zip(("first", "second"), groups(scene), strict=False):
        where = [scene.place] if scene.place else [f"{role} {scene.relation}"] if scene.relation else []
        attributes.append([NUMERALS[n], thing.shape, thing.colour, thing.size or MEDIUM, *where])
    if scene.absent:
        attributes.append([NUMERALS[0], scene.absent.shape, scene.absent.colour])
    return [*attributes, [f"{scene.background} background"]]


def minimal_captions(caption: str) -> dict[str, str]:
    """Returns the captions that differ from this one in one respect, by its name: see `minimal_pairs`."""
    return {name: scene.caption for name, scene in minimal_pairs(parse_caption(caption)).items()}


def _any(names: Iterable[str], plurals: bool = False) -> str:
    """Returns a pattern of every synonym of these words, with `plurals` also of their plurals, the longest first."""
    words = [way for name in names for way in synonyms_of(name)]
    words += [plural(word) for word in words] if plurals else []
    return "|".join(sorted(words, key=len, reverse=True))


def _thing(slot: str, size: bool = True, colour: bool = True, plurals: bool = False) -> str:
    return (
        (rf"(?:(?P<{slot}_size>{_any(filter(None, SIZES))}) )?" if size else "")
        + (rf"(?P<{slot}_colour>{_any(COLOURS)}) " if colour else "")
        + rf"(?P<{slot}_shape>{_any(SHAPES, plurals)})"
    )


def _group(slot: str) -> str:
    return rf"(?P<{slot}_count>{_any(NUMERALS[1:])}) {_thing(slot, plurals=True)}"


@cache
def _patterns() -> list[tuple[str, int, bool, re.Pattern[str]]]:
    """Returns every template as (kind, number in its kind, True if held out, pattern)."""
    slots = {
        "a": f"an? {_thing('a')}",
        "b": f"an? {_thing('b')}",
        "plain_a": f"an? {_thing('a', size=False, colour=False)}",
        "plain_b": f"an? {_thing('b', size=False, colour=False)}",
        "sized_b": f"an? {_thing('b', colour=False)}",
        "first": f"(?:{_any(SHAPES)})",
        "second": f"(?:{_any(SHAPES)})",
        "shared": rf"(?:(?P<a_size>{_any(filter(None, SIZES))}) and )?(?P<a_colour>{_any(COLOURS)})",
        "groups": rf"{_group('a')}(?: and {_group('b')})?",
        "are": "(?:is|are)",
        "absent": _thing("absent", size=False),
        "place": f"(?P<place>{_any(PLACES)})",
        "relation": f"(?P<relation>{_any(RELATIONS)})",
        "ground": f"(?P<ground>{_any(BACKGROUNDS)})",
    }
    return [
        (kind, number, families is HELD_OUT_TEMPLATES, re.compile(template.format(**slots)))
        for families in (TEMPLATES, HELD_OUT_TEMPLATES)
        for kind, templates in families.items()
        for number, template in enumerate(templates)
    ]


def _scene(kind: str, words: Words) -> Scene | None:
    """Returns the scene of a template's words without its wording, or None if no image can show it."""
    first = _named("a", words, (0.5, 0.5))
    counts, things = [_count("a", words)], [first]
    if words.get("b_shape"):
        second = _named("b", words, (0.5, 0.5))
        things.append(replace(first, shape=second.shape) if kind == "same" else second)
        counts.append(_count("b", words))
    place, relation, ground = (words.get(name) or "" for name in ("place", "relation", "ground"))
    relation = _NAMES.get(relation, "")
    things = [thing for thing, n in zip(things, counts, strict=True) for _ in range(n)]
    centres = [PLACES[place]] if place else RELATIONS[relation] if relation else cells_of(len(things))
    things = tuple(replace(thing, centre=centre) for thing, centre in zip(things, centres, strict=False))
    absent = _named("absent", words, (0.5, 0.5)) if kind == "negation" else None
    scene = Scene(things, ground, kind, place, relation, absent and Absent(absent.shape, absent.colour))
    return scene if len(things) == sum(counts) and _shows(scene) else None


def _named(slot: str, words: Words, centre: tuple[float, float]) -> Thing:
    size, shape = words.get(f"{slot}_size"), words[f"{slot}_shape"]
    assert shape
    return Thing(_NAMES[shape], words.get(f"{slot}_colour") or "", _NAMES[size] if size else "", centre)


def _count(slot: str, words: Words) -> int:
    numeral = words.get(f"{slot}_count")
    return NUMERALS.index(numeral) if numeral else 1


def _shows(scene: Scene) -> bool:
    """True if an image can show the scene: no thing in the background's colour, room for all, no contradiction."""
    things = scene.things
    room = len(things) <= ROOMY or (len(things) <= MAX_THINGS and all(thing.size == "small" for thing in things))
    pairs = {thing.pair for thing in things}
    return (
        room and all(c != scene.background for c, _ in pairs) and (not scene.absent or scene.absent.pair not in pairs)
    )
