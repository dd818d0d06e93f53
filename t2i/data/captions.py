"""Captions derived from others or from file names: shorter forms, tags in another order."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from t2i.config import Section
from t2i.errors import ConfigError
from t2i.randomness import permutation

COPY = re.compile(r"[\s_-]*(\(\d+\)|\d+)$")  # the end of names of images with the same caption: " (2)", "_001"
REPEATED = re.compile(r"([1-9]\d*)_(.+)")  # kohya's N_name
MOST_REPEATS = 1000  # a larger number at the start of a folder's name is a year or a count


def name_caption(stem: str) -> str:
    """Returns the caption in an image's name: underscores are spaces, a number at the end is dropped."""
    return " ".join(COPY.sub("", stem).replace("_", " ").split())


def repeated_folder(name: str) -> tuple[int, str] | None:
    """Returns (N, name) of a folder named as in kohya's trainers, "10_sks dog"."""
    match = REPEATED.fullmatch(name)
    if match is None or len(match[1]) > len(str(MOST_REPEATS)) or int(match[1]) > MOST_REPEATS or not match[2].strip():
        return None
    return int(match[1]), match[2].strip()


def shuffle_tags(caption: str, kept: int, seed: int, epoch: int, index: int, separator: str = ",") -> str:
    """Returns a caption's tags, the first `kept` in place and the others in an order of (seed, epoch, index).

    As kohya's `shuffle_caption` and `keep_tokens`: tags are stripped, empty ones dropped, and joined by ", ".
    """
    if kept < 0:
        raise ConfigError("keep_tokens", "the number of tags that stay at the start of a caption is 0 or more", kept)
    if not separator.strip():
        raise ConfigError("caption_separator", "tags are separated by a mark such as ','", separator)
    tags = [tag for part in caption.split(separator) if (tag := part.strip())]
    head, tail = tags[:kept], tags[kept:]
    order = permutation(len(tail), seed, "tags", epoch, index).tolist()
    return f"{separator.strip()} ".join(head + [tail[i] for i in order])


FIELD = re.compile(r"\{(\w+)\}")


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


class CaptionForms(Section):
    """A pattern of captions, and the shorter forms of those that match it as a whole."""

    match: Annotated[str, AfterValidator(_compiles)] = Field(description="a regular expression with named groups")
    use: tuple[str, ...] = Field(min_length=1, description="shorter captions; {name} stands for that group's text")

    @model_validator(mode="after")
    def _fields_are_groups(self) -> "CaptionForms":
        groups = re.compile(self.match).groupindex
        for form in self.use:
            if unknown := [name for name in FIELD.findall(form) if name not in groups]:
                known = ", ".join(groups) or "none"
                raise ValueError(f"{form!r}: the pattern has no group {unknown[0]!r} (its groups: {known})")
        return self


class Captions(Section):
    """Replacement of training captions, so that a model also learns plain and incomplete prompts."""

    shorten: float = Field(
        default=0.0, ge=0, le=1, description="probability that a caption is replaced by one of its shorter forms"
    )
    forms: tuple[CaptionForms, ...] = Field(
        default=(CaptionForms(match=r"(?P<head>[^,]+),.*", use=("{head}",)),),
        description="the first entry that matches a caption gives its shorter forms; default: the text before a comma",
    )

    def shorter(self, caption: str) -> list[str]:
        """Returns the shorter forms of a caption; forms that need a group without text are left out."""
        for entry in self.forms:
            if match := re.fullmatch(entry.match, caption):
                usable = [form for form in entry.use if all(match[name] for name in FIELD.findall(form))]
                texts = [FIELD.sub(lambda field, match=match: match[field[1]], form) for form in usable]
                return [text for text in dict.fromkeys(texts) if text != caption]
        return []
