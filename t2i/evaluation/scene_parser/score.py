"""Scenes read from pictures against what captions ask for, each picture's part in every skill."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from t2i.data.scenes import HELD_OUT, Scene, Thing, holds, parse_caption, place_of
from t2i.evaluation.scene_parser.reader import Unparseable, parse

SHAPE, COLOUR, BOTH, SIZE = 1.0, 0.9, 0.5, 0.1  # what a wanted and a found thing in common is worth to the assignment

MEANING = {
    "unparseable": "pictures that no scene explains; everything else counts them as wrong",
    "background": "pictures on the wanted background",
    "count": "pictures with as many things as wanted",
    "count_of_several": "of the captions that number their things: each kind of thing is there exactly as often",
    "presence": "wanted things for which there is one of their shape, whatever its colour",
    "shape": "wanted things whose assigned thing has their shape",
    "colour": "wanted things whose assigned thing has their colour",
    "size": "wanted things whose assigned thing has their size",
    "pair": "wanted things whose assigned thing has their colour and shape",
    "binding": "captions of unlike shapes and unlike colours: every wanted thing is there in its colour and shape",
    "binding_of_present": "of those, where all wanted shapes and all wanted colours are there: all in the right pairs",
    "place": "wanted places with the wanted thing there",
    "relation": "wanted relations with both things there, and so related",
    "relation_of_present": "of the wanted relations whose two things are there: those that hold",
    "negation": "captions with a `no`: the wanted things are there, and the unwanted one is not",
    "absence": "captions with a `no`: the unwanted thing is not there",
    "held_out_pairs": "wanted things of a held-out colour and shape, whose assigned thing has both",
    "held_out_words": "wanted things of captions in held-out templates, whose assigned thing has both",
    "exact": "pictures with the whole scene right: each thing and its size, background, place, relation, nothing more",
}  # name -> what is counted, out of what


class Part(NamedTuple):
    """What one picture adds to a skill: `hits` out of `n`."""

    hits: int
    n: int


Skills = dict[str, Part]  # those of MEANING that a caption has part in


def score(picture: UInt8[Tensor, "3 h w"], caption: str) -> Skills:
    """How far a picture shows what its caption says, skill by skill."""
    return score_all(picture[None], [caption])[0]


def score_all(pictures: UInt8[Tensor, "n 3 h w"], captions: Sequence[str]) -> list[Skills]:
    """`score` of each picture with its caption."""
    if len(pictures) != len(captions):
        raise ValueError(
            f"{len(pictures)} pictures, {len(captions)} captions: give each picture the one it was made of"
        )
    wanted = [parse_caption(caption) for caption in captions]  # before the work: a caption may be none of the grammar
    return [judge(found, scene) for found, scene in zip(parse(pictures), wanted, strict=True)]


def judge(found: Scene | Unparseable, wanted: Scene) -> Skills:
    """One picture's scene against the wanted one."""
    things = () if isinstance(found, Unparseable) else found.things
    fits = _assigned(things, wanted.things)
    many = len(wanted.things)
    right = [fit is not None and fit.pair == thing.pair for fit, thing in zip(fits, wanted.things, strict=True)]
    parsed = isinstance(found, Scene)
    ground = parsed and found.background == wanted.background
    claims = _claims(things, fits, right, parsed, wanted)
    parts = {
        "unparseable": (not parsed, 1),
        "background": (ground, 1),
        "count": (parsed and len(things) == many, 1),
        "presence": (_common(things, wanted.things, "shape"), many),
        "pair": (sum(right), many),
    }
    for name in ("shape", "colour", "size"):
        same = (fit is not None and getattr(fit, name) == getattr(w, name) for fit, w in _zip(fits, wanted))
        parts[name] = (sum(same), many)
    if _binds(wanted):
        parts["binding"] = (all(right), 1)
        if all(_common(things, wanted.things, name) == many for name in ("shape", "colour")):
            parts["binding_of_present"] = (all(right), 1)
    if held := [ok for ok, thing in zip(right, wanted.things, strict=True) if thing.pair in HELD_OUT]:
        parts["held_out_pairs"] = (sum(held), len(held))
    if wanted.wording.held_out:
        parts["held_out_words"] = (sum(right), many)
    whole = [parts["size"] == (many, many), all(right), ground, len(things) == many, *claims.values()]
    parts |= {name: (claim, 1) for name, claim in claims.items()} | {"exact": (all(whole), 1)}
    return {name: Part(int(hits), n) for name, (hits, n) in parts.items()}


def _claims(
    things: Sequence[Thing], fits: Sequence[Thing | None], right: Sequence[bool], parsed: bool, wanted: Scene
) -> dict[str, bool]:
    """What a caption says beyond its things: numbers, place, relation, what is absent."""
    found: dict[str, bool] = {}
    first, last = fits[0], fits[-1]
    if wanted.kind == "count":
        found["count_of_several"] = Counter(thing.pair for thing in things) == Counter(t.pair for t in wanted.things)
    if wanted.place:
        found["place"] = right[0] and first is not None and place_of(first) == wanted.place
    if wanted.relation:
        there = all(right) and first is not None and last is not None and holds(wanted.relation, first, last)
        found |= {"relation": there} | ({"relation_of_present": there} if all(right) else {})
    if wanted.absent:
        absence = parsed and all(thing.pair != wanted.absent.pair for thing in things)
        found |= {"absence": absence, "negation": absence and all(right)}
    return found


def _assigned(found: Sequence[Thing], wanted: Sequence[Thing]) -> list[Thing | None]:
    """For each wanted thing the found one that is its own, where all together have most in common."""
    fits: list[Thing | None] = [None] * len(wanted)
    if not found:
        return fits
    worth = np.array([[_worth(f, w) for f in found] for w in wanted])
    for row, column in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
        fits[row] = found[column]
    return fits


def _worth(found: Thing, wanted: Thing) -> float:
    shape, colour = found.shape == wanted.shape, found.colour == wanted.colour
    return SHAPE * shape + COLOUR * colour + BOTH * (shape and colour) + SIZE * (found.size == wanted.size)


def _common(found: Iterable[Thing], wanted: Iterable[Thing], name: str) -> int:
    """How many of the wanted words of that name the found things have, each counted once."""
    ours, theirs = (Counter(getattr(thing, name) for thing in things) for things in (wanted, found))
    return (ours & theirs).total()


def _binds(wanted: Scene) -> bool:
    """Whether colours and shapes could be paired otherwise."""
    return len({t.colour for t in wanted.things}) > 1 and len({t.shape for t in wanted.things}) > 1


def _zip(fits: Sequence[Thing | None], wanted: Scene) -> Iterable[tuple[Thing | None, Thing]]:
    return zip(fits, wanted.things, strict=True)
