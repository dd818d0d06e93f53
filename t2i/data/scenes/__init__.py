"""Captioned shapes drawn on demand, with exact ground truth: data for users without data of their own."""

from t2i.data.scenes.caption_parser import attributes_of, minimal_captions, parse_caption
from t2i.data.scenes.grammar import HELD_OUT, KINDS, SUBSETS, ScenesSubset, holds_out, minimal_pairs, scene_of
from t2i.data.scenes.render import pixels, render
from t2i.data.scenes.source import LEAST_PIXELS, PIXELS, VERSION, ScenesSource
from t2i.data.scenes.wording import VOCABULARY
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
    holds,
    place_of,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HELD_OUT",
    "KINDS",
    "LEAST_PIXELS",
    "MAX_THINGS",
    "PIXELS",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SUBSETS",
    "VERSION",
    "VOCABULARY",
    "Absent",
    "Scene",
    "ScenesSource",
    "ScenesSubset",
    "Thing",
    "attributes_of",
    "holds",
    "holds_out",
    "minimal_captions",
    "minimal_pairs",
    "parse_caption",
    "pixels",
    "place_of",
    "render",
    "scene_of",
]
