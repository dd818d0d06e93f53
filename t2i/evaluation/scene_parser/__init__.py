"""Scenes read from images without any network, by inverting the renderer, and compared with captions."""

from t2i.evaluation.scene_parser.ceiling import ceiling, reconstructed
from t2i.evaluation.scene_parser.rates import Rate, aggregate
from t2i.evaluation.scene_parser.reader import VERSION, Reading, Unparseable, parse, read
from t2i.evaluation.scene_parser.score import MEANING, Part, Skills, judge, score, score_all

__all__ = [
    "MEANING",
    "VERSION",
    "Part",
    "Rate",
    "Reading",
    "Skills",
    "Unparseable",
    "aggregate",
    "ceiling",
    "judge",
    "parse",
    "read",
    "reconstructed",
    "score",
    "score_all",
]
