"""The objective of a text encoder's recipe, by the sections that it has."""

from pathlib import Path
from typing import Any

import yaml

from t2i.training.span_corruption import SpanRecipe, SpanTask
from t2i.training.text_encoder import TextEncoderRecipe, TextEncoderTask


def text_encoder_training(path: Path) -> tuple[type[TextEncoderRecipe] | type[SpanRecipe], Any]:
    """Returns the recipe and task classes of a file: span corruption if it has a section `t5`, else contrastive."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        values = None  # the error is raised where the recipe is read
    if isinstance(values, dict) and "t5" in values:
        return SpanRecipe, SpanTask
    return TextEncoderRecipe, TextEncoderTask
