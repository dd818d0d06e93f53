"""The distribution of scenes: five families, four subsets, and minimal pairs of captions."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, TypeVar, get_args

import torch

from t2i.data.scenes.wording import TEMPLATES, groups, with_caption
from t2i.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    GAP,
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
from t2i.randomness import generator

ScenesSubset = Literal["train", "validation", "heldout-pairs", "heldout-templates"]
SUBSETS: tuple[ScenesSubset, ...] = get_args(ScenesSubset)
KINDS = tuple(TEMPLATES)
FRACTIONS = {"place": 0.2, "relation": 0.35, "count": 0.2, "negation": 0.12, "same": 0.13}
# Each colour once, the shapes in turn: only scenes of `heldout-pairs` contain one.
HELD_OUT = frozenset(zip(COLOURS, (list(SHAPES)[3 * i % len(SHAPES)] for i in range(len(COLOURS))), strict=True))
VALIDATION = 16  # one in so many contents is kept from `train`
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
MIRRORED = {place: next(p for p, at in PLACES.items() if at == (1 - x, 1 - y)) for place, (x, y) in PLACES.items()}
EDGE = 0.01  # least distance of a thing from the edge, in sides of the image

T = TypeVar("T")


class _Draws:
    """Random choices of one stream, drawn in blocks."""

    def __init__(self, *stream: int | str):
        self._generator = generator(0, *stream)
        self._block: list[float] = []

    def uniform(self) -> float:
        if not self._block:
            self._block = torch.rand(64, generator=self._generator, dtype=torch.float64).tolist()
        return self._block.pop()

    def below(self, n: int) -> int:
        return int(self.uniform() * n)

    def choose(self, options: Iterable[T]) -> T:
        options = list(options)
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        keys = [self.uniform() for _ in options]
        return [options[i] for i in sorted(range(len(options)), key=keys.__getitem__)]


def scene_of(index: int, seed: int = 0, subset: ScenesSubset = "train") -> Scene:
    """Returns scene `index` of a seed and a subset, a function of these three only.

    `validation` has contents that `train` never has, whatever the seeds; `heldout-templates` has the scenes of
    `validation` in other words.
    """
    draws = _Draws("scene", seed, "validation" if subset == "heldout-templates" else subset, index)
    while True:
        scene = _sample(draws, subset == "heldout-pairs", subset == "heldout-templates")
        if subset == "heldout-pairs" or _for_validation(scene) == (subset != "train"):
            return with_caption(scene)


def holds_out(scene: Scene) -> bool:
    """True if one of the things is of a held-out pair of colour and shape."""
    return any(thing.pair in HELD_OUT for thing in scene.things)


def minimal_pairs(scene: Scene) -> dict[str, Scene]:
    """Returns the scenes that differ from this one in one respect, by its name, in the same wording.

    Colours, shapes and numbers are exchanged between two things, or between a thing and the absent one, so that the
    captions consist of the same words; a place, a relation or a single number is changed. The pair may be held out.
    """
    first, second, absent = scene.things[0], scene.things[-1], scene.absent
    pairs: dict[str, Scene] = {}
    if absent is not None:
        other = replace(first, colour=absent.colour, shape=absent.shape)
        pairs["negation"] = replace(scene, things=(other,), absent=Absent(first.shape, first.colour))
    elif scene.place:
        mirror = MIRRORED[scene.place]
        (x, y), (u, v), (c, d) = first.centre, PLACES[scene.place], PLACES[mirror]
        pairs["place"] = replace(scene, things=(replace(first, centre=(c + x - u, d + y - v)),), place=mirror)
    elif scene.kind == "count" and len(groups(scene)) == 1:
        if len(scene.things) > 1:
            pairs["count"] = replace(scene, things=scene.things[:-1])
    else:
        pairs |= _of_two(scene, first, second)
    if scene.relation:
        swapped = (replace(first, centre=second.centre), replace(second, centre=first.centre))
        pairs["relation"] = replace(scene, things=swapped, relation=OPPOSITE[scene.relation])
    return {name: with_caption(pair) for name, pair in pairs.items() if _content(pair) != _content(scene)}


def _of_two(scene: Scene, first: Thing, second: Thing) -> dict[str, Scene]:
    """Returns scenes with colours, shapes or numbers exchanged between two things or groups."""
    is_like_first = [thing.pair == first.pair for thing in scene.things]

    def exchanged(**words: tuple[str, str]) -> Scene:
        new = [
            replace(thing, **{name: b if is_first else a for name, (a, b) in words.items()})
            for thing, is_first in zip(scene.things, is_like_first, strict=True)
        ]
        return replace(scene, things=tuple(new))

    pairs = {}
    if first.colour != second.colour and first.shape != second.shape:  # else the result equals an exchange of places
        pairs["colour"] = exchanged(colour=(first.colour, second.colour))
        pairs["shape"] = exchanged(shape=(first.shape, second.shape))
    if scene.kind == "count" and first.size == second.size:
        counts = groups(scene)
        words = [first] * counts[1][0] + [second] * counts[0][0]
        things = (replace(w, centre=thing.centre) for w, thing in zip(words, scene.things, strict=True))
        pairs["count"] = replace(scene, things=tuple(things))
    return pairs


def _content(scene: Scene) -> tuple:
    """Returns a scene's content without its wording; "a left of b" and "b right of a" are equal."""
    things = [(thing.size, *thing.pair) for thing in scene.things]
    relation = scene.relation
    if relation in ("right of", "below"):
        things, relation = things[::-1], OPPOSITE[relation]
    if not relation:
        things.sort()
    return tuple(things), relation, scene.place, scene.background, scene.absent and scene.absent.pair


def _for_validation(scene: Scene) -> bool:
    digest = hashlib.blake2b(repr(_content(scene)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VALIDATION == 0


def _sample(draws: _Draws, held_pair: bool, held_template: bool) -> Scene:
    """Draws a scene of the grammar, without its caption; with `held_pair` one thing or group is of a held-out pair."""
    kind = _kind(draws)
    background = draws.choose(BACKGROUNDS)
    wording = Wording(draws.below(60), held_template, *(_synonym(draws) for _ in range(3)))
    make = {"place": _place, "relation": _relation, "count": _count, "negation": _negation, "same": _same}[kind]
    pairs = [(colour, shape) for colour in COLOURS if colour != background for shape in SHAPES]
    held = [pair for pair in pairs if pair in HELD_OUT]
    seen = [pair for pair in pairs if pair not in HELD_OUT]
    return replace(make(draws, seen, held if held_pair else []), kind=kind, background=background, wording=wording)


def _kind(draws: _Draws) -> str:
    level = draws.uniform()
    for kind, fraction in FRACTIONS.items():
        if (level := level - fraction) < 0:
            return kind
    return KINDS[-1]


def _synonym(draws: _Draws) -> int:
    """Draws the number of a synonym: 0, the plain word, for half of the captions."""
    return 0 if draws.uniform() < 0.5 else 1 + draws.below(2)


Pairs = list[tuple[str, str]]


def _two(draws: _Draws, seen: Pairs, held: Pairs) -> Pairs:
    """Draws two different pairs; one of them is held out if `held` has any."""
    first = draws.choose(held or seen)
    second = draws.choose(pair for pair in seen if pair != first)
    return draws.shuffled([first, second])


def _place(draws: _Draws, seen: Pairs, held: Pairs) -> Scene:
    place, size = draws.choose(PLACES), draws.choose(SIZES)
    colour, shape = draws.choose(held or seen)
    thing = Thing(shape, colour, size, _near(draws, PLACES[place], 0.03))
    return Scene((thing,), "", place=place)


def _relation(draws: _Draws, seen: Pairs, held: Pairs) -> Scene:
    pairs = _two(draws, seen, held)
    return _related(draws, [(shape, colour, draws.choose(SIZES)) for colour, shape in pairs])


def _same(draws: _Draws, seen: Pairs, held: Pairs) -> Scene:
    """Draws two shapes of one colour and size."""
    colour, shape = draws.choose(held or seen)
    other = draws.choose(s for c, s in seen if c == colour and s != shape)
    size = draws.choose(SIZES)
    return _related(draws, [(s, colour, size) for s in draws.shuffled([shape, other])])


def _related(draws: _Draws, words: list[tuple[str, str, str]]) -> Scene:
    relation = draws.choose(RELATIONS)
    level = relation in ("left of", "right of")
    things = []
    for (shape, colour, size), (x, y) in zip(words, RELATIONS[relation], strict=True):
        along, across = _jitter(draws, 0.02), _jitter(draws, 0.08)
        dx, dy = (along, across) if level else (across, along)
        things.append(Thing(shape, colour, size, (x + dx, y + dy)))
    return Scene(tuple(things), "", relation=relation)


def _count(draws: _Draws, seen: Pairs, held: Pairs) -> Scene:
    """Draws one to six things of one kind, or one to three of each of two."""
    if draws.uniform() < 0.5:
        counts, pairs = [1 + draws.below(MAX_THINGS)], [draws.choose(held or seen)]
    else:
        counts, pairs = [1 + draws.below(3), 1 + draws.below(3)], _two(draws, seen, held)
    sizes = [draws.choose(SIZES) if sum(counts) <= 4 else "small" for _ in counts]
    words = [(s, c, size) for (c, s), size, n in zip(pairs, sizes, counts, strict=True) for _ in range(n)]
    return Scene(_scattered(draws, words), "")


def _negation(draws: _Draws, seen: Pairs, held: Pairs) -> Scene:
    """Draws one thing and an absent one: of the same colour, the same shape, or different, with equal probability."""
    colour, shape = draws.choose(held or seen)
    like = draws.below(3)
    others = [p for p in seen if p != (colour, shape) and (like == 2 or (p[0] == colour, p[1] == shape)[like])]
    absent_colour, absent_shape = draws.choose(others)
    words = [(shape, colour, draws.choose(SIZES))]
    return Scene(_scattered(draws, words), "", absent=Absent(absent_shape, absent_colour))


def _scattered(draws: _Draws, words: list[tuple[str, str, str]]) -> tuple[Thing, ...]:
    """Places things in cells of two by two, or of two by three for more than four."""
    many = len(words) > 4
    cells = draws.shuffled(cells_of(len(words), upright=many and draws.uniform() >= 0.5))
    largest = max(SIZES[size] for *_, size in words)
    apart = 1 / 3 if many else 1 / 2
    free = min(0.05, (apart - 2 * largest - GAP) / 2, apart / 2 - largest - EDGE)
    return tuple(Thing(*word, _near(draws, cell, free)) for word, cell in zip(words, cells, strict=False))


def cells_of(n: int, upright: bool = False) -> list[tuple[float, float]]:
    """Returns the centres of cells for `n` things: two by two; for more than four three by two, or two by three."""
    columns = rows = (1 / 4, 3 / 4)
    if n > 4:
        thirds = (1 / 6, 1 / 2, 5 / 6)
        columns, rows = (columns, thirds) if upright else (thirds, rows)
    return [(x, y) for x in columns for y in rows]


def _near(draws: _Draws, centre: tuple[float, float], free: float) -> tuple[float, float]:
    return centre[0] + _jitter(draws, free), centre[1] + _jitter(draws, free)


def _jitter(draws: _Draws, free: float) -> float:
    return (2 * draws.uniform() - 1) * free
