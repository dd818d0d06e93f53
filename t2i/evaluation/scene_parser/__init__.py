"""Scenes read from pictures without any network: the known renderer run backwards, and captions held against it."""

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
