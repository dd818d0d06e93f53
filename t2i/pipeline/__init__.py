"""The three components as one: prompts in, images out. Its names import torch on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i.pipeline.folder import Defaults
    from t2i.pipeline.pipeline import Output, Pipeline
    from t2i.pipeline.request import Request

__all__ = ["Defaults", "Output", "Pipeline", "Request"]
_PLACES = {"Defaults": "folder", "Output": "pipeline", "Pipeline": "pipeline", "Request": "request"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
