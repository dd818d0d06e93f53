"""Scores of scenes read from images against their captions: hits of each image in every skill."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from t2i.data.scenes import HELD_OUT, Scene, Thing, holds, parse_caption, place_of
from t2i.evaluation.scene_parser.reader import Unparseable, parse

SHAPE, COLOUR, BOTH, SIZE = 1.0, 0.9, 0.5, 0.1  # weights of equal properties in the assignment of read to target things

MEANING = {
    "unparseable": "images that no scene explains; all other skills count them as wrong",
    "background": "images on the wanted background",
    "count": "images with as many things as wanted",
    "count_of_several": "captions that number their things: each kind of thing appears exactly as often",
    "presence": "wanted things whose shape appears, in any colour",
    "shape": "wanted things whose assigned thing has their shape",
    "colour": "wanted things whose assigned thing has their colour",
    "size": "wanted things whose assigned thing has their size",
    "pair": "wanted things whose assigned thing has their colour and shape",
    "binding": "captions of unlike shapes and unlike colours: every wanted thing appears in its colour and shape",
    "binding_of_present": "of those with all wanted shapes and colours present: all in the right pairs",
    "place": "wanted places with the wanted thing in them",
    "relation": "wanted relations with both things present and so related",
    "relation_of_present": "of the wanted relations with both things present: those that hold",
    "negation": "captions with a `no`: the wanted things appear, and the unwanted one does not",
    "absence": "captions with a `no`: the unwanted thing does not appear",
    "held_out_pairs": "wanted things of a held-out colour and shape, whose assigned thing has both",
    "held_out_words": "wanted things of captions in held-out templates, whose assigned thing has both",
    "exact": "images with the whole scene right: each thing and its size, background, place, relation, nothing more",
}  # name -> what is counted, out of what


class Part(NamedTuple):
    """The contribution of one image to a skill: `hits` out of `n`."""

    hits: int
    n: int


Skills = dict[str, Part]  # those of MEANING that a caption asks for


def score(image: UInt8[Tensor, "3 h w"], caption: str) -> Skills:
    """Scores an image against its caption, skill by skill."""
    return score_all(image[None], [caption])[0]


def score_all(images: UInt8[Tensor, "n 3 h w"], captions: Sequence[str]) -> list[Skills]:
    """Scores each image against its caption."""
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images, {len(captions)} captions: give one caption an image")
    target = [parse_caption(caption) for caption in captions]  # raises for other captions
    return [judge(read, scene) for read, scene in zip(parse(images), target, strict=True)]


def judge(read: Scene | Unparseable, target: Scene) -> Skills:
    """Scores the scene read from an image against the wanted one."""
    things = () if isinstance(read, Unparseable) else read.things
    fits = _assigned(things, target.things)
    many = len(target.things)
    right = [fit is not None and fit.pair == thing.pair for fit, thing in zip(fits, target.things, strict=True)]
    parsed = isinstance(read, Scene)
    ground = parsed and read.background == target.background
    claims = _claims(things, fits, right, parsed, target)
    parts = {
        "unparseable": (not parsed, 1),
        "background": (ground, 1),
        "count": (parsed and len(things) == many, 1),
        "presence": (_common(things, target.things, "shape"), many),
        "pair": (sum(right), many),
    }
    for name in ("shape", "colour", "size"):
        same = (fit is not None and getattr(fit, name) == getattr(w, name) for fit, w in _zip(fits, target))
        parts[name] = (sum(same), many)
    if _binds(target):
        parts["binding"] = (all(right), 1)
        if all(_common(things, target.things, name) == many for name in ("shape", "colour")):
            parts["binding_of_present"] = (all(right), 1)
    if held := [ok for ok, thing in zip(right, target.things, strict=True) if thing.pair in HELD_OUT]:
        parts["held_out_pairs"] = (sum(held), len(held))
    if target.wording.held_out:
        parts["held_out_words"] = (sum(right), many)
    whole = [parts["size"] == (many, many), all(right), ground, len(things) == many, *claims.values()]
    parts |= {name: (claim, 1) for name, claim in claims.items()} | {"exact": (all(whole), 1)}
    return {name: Part(int(hits), n) for name, (hits, n) in parts.items()}


def _claims(
    things: Sequence[Thing], fits: Sequence[Thing | None], right: Sequence[bool], parsed: bool, target: Scene
) -> dict[str, bool]:
    """Checks what a caption claims beyond its things: numbers, place, relation, absence."""
    claims: dict[str, bool] = {}
    first, last = fits[0], fits[-1]
    if target.kind == "count":
        claims["count_of_several"] = Counter(thing.pair for thing in things) == Counter(t.pair for t in target.things)
    if target.place:
        claims["place"] = right[0] and first is not None and place_of(first) == target.place
    if target.relation:
        related = all(right) and first is not None and last is not None and holds(target.relation, first, last)
        claims |= {"relation": related} | ({"relation_of_present": related} if all(right) else {})
    if target.absent:
        absence = parsed and all(thing.pair != target.absent.pair for thing in things)
        claims |= {"absence": absence, "negation": absence and all(right)}
    return claims


def _assigned(things: Sequence[Thing], target: Sequence[Thing]) -> list[Thing | None]:
    """Assigns to each wanted thing the read thing that maximises the sum of their common properties."""
    fits: list[Thing | None] = [None] * len(target)
    if not things:
        return fits
    worth = np.array([[_worth(thing, w) for thing in things] for w in target])
    for row, column in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
        fits[row] = things[column]
    return fits


def _worth(thing: Thing, target: Thing) -> float:
    shape, colour = thing.shape == target.shape, thing.colour == target.colour
    return SHAPE * shape + COLOUR * colour + BOTH * (shape and colour) + SIZE * (thing.size == target.size)


def _common(things: Iterable[Thing], target: Iterable[Thing], name: str) -> int:
    """Counts the wanted values of a property that the read things have, each once."""
    ours, theirs = (Counter(getattr(thing, name) for thing in part) for part in (target, things))
    return (ours & theirs).total()


def _binds(target: Scene) -> bool:
    """Returns True if colours and shapes could be paired differently."""
    return len({t.colour for t in target.things}) > 1 and len({t.shape for t in target.things}) > 1


def _zip(fits: Sequence[Thing | None], target: Scene) -> Iterable[tuple[Thing | None, Thing]]:
    return zip(fits, target.things, strict=True)
