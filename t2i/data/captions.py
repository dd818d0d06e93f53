"""Captions that stand in no file: those in names, and tags in another order."""

import re

from t2i.randomness import permutation

COPY = re.compile(r"[\s_-]*(\(\d+\)|\d+)$")  # what tells apart pictures of one caption: " (2)", "_001"
REPEATED = re.compile(r"([1-9]\d*)_(.+)")  # kohya's N_name
MOST_REPEATS = 1000  # a larger number at the head of a folder's name is a year, or counts something


def name_caption(stem: str) -> str:
    """The caption in a picture's name: underscores are spaces, a number at the end is none of it."""
    return " ".join(COPY.sub("", stem).replace("_", " ").split())


def repeated_folder(name: str) -> tuple[int, str] | None:
    """(N, name) of a folder called as kohya's trainers have it, "10_sks dog"."""
    found = REPEATED.fullmatch(name)
    if found is None or len(found[1]) > len(str(MOST_REPEATS)) or int(found[1]) > MOST_REPEATS or not found[2].strip():
        return None
    return int(found[1]), found[2].strip()


def shuffle_tags(caption: str, kept: int, seed: int, epoch: int, index: int, separator: str = ",") -> str:
    """The tags of a caption, the first `kept` in place and the others in an order of (seed, epoch, index) alone.

    kohya's `shuffle_caption` and `keep_tokens`: tags are stripped, empty ones dropped, and joined by ", ".
    """
    if kept < 0:
        raise ValueError(f"keep_tokens = {kept}: how many tags stay at the head of a caption; 0 or more")
    if not separator.strip():
        raise ValueError(f"caption_separator = {separator!r}: tags are told apart by a mark such as ','")
    tags = [tag for part in caption.split(separator) if (tag := part.strip())]
    head, rest = tags[:kept], tags[kept:]
    order = permutation(len(rest), seed, "tags", epoch, index).tolist()
    return f"{separator.strip()} ".join(head + [rest[i] for i in order])
