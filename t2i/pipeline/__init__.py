"""The three components as one: prompts in, pictures out."""

from t2i.pipeline.folder import Defaults
from t2i.pipeline.pipeline import Output, Pipeline
from t2i.pipeline.request import Request

__all__ = ["Defaults", "Output", "Pipeline", "Request"]
