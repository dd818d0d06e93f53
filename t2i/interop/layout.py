"""The places of a component's tensors in another layout: their keys and their forms."""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

THIRDS = ("q", "k", "v")
Shape = tuple[int, ...]


class Place(NamedTuple):
    """A key, and how our tensor lies there: as it is, as a 1x1 convolution, transposed, or a third of a fused one."""

    key: str
    form: Literal["same", "pixels", "transposed", "q", "k", "v"] = "same"


def shapes_there(places: Mapping[str, Place], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Returns the shapes in the other layout of our tensors' `shapes`."""
    others = {}
    for name, (key, form) in places.items():
        shape = shapes[name]
        if form == "pixels":
            shape = (*shape, 1, 1)
        elif form == "transposed":
            shape = shape[::-1]
        elif form in THIRDS:
            shape = (3 * shape[0], *shape[1:])
        others[key] = shape
    return others


def bring(places: Mapping[str, Place], get: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Returns our tensors, read from the other layout; each key is read once, and copied only if its form changes."""
    fused: dict[str, tuple[Tensor, ...]] = {}
    state = {}
    for name, (key, form) in places.items():
        if form in THIRDS:
            if key not in fused:
                fused[key] = get(key).chunk(3)
            state[name] = fused[key][THIRDS.index(form)]
        elif form == "pixels":
            state[name] = get(key).flatten(1)
        elif form == "transposed":
            state[name] = get(key).T.contiguous()
        else:
            state[name] = get(key)
    return state


def send(places: Mapping[str, Place], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our tensors in the other layout."""
    tensors: dict[str, Tensor] = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, (key, form) in places.items():
        tensor = state[name]
        if form in THIRDS:
            fused.setdefault(key, {})[form] = tensor
        elif form == "pixels":
            tensors[key] = tensor[:, :, None, None]
        elif form == "transposed":
            tensors[key] = tensor.T.contiguous()
        else:
            tensors[key] = tensor
    return tensors | {key: torch.cat([parts[third] for third in THIRDS]) for key, parts in fused.items()}


def rename(key: str, modules: Mapping[str, str], inner: Mapping[str, Mapping[str, str]]) -> str:
    """Returns a key with its module renamed by `modules` and, within a kind of module, its layer by `inner`."""
    head, leaf = key, ""
    while head not in modules:
        head, dot, last = head.rpartition(".")
        assert dot, key
        leaf = f".{last}{leaf}"
    for kind, layers in inner.items():
        if f".{kind}." in f".{head}":
            for ours, theirs in layers.items():
                if leaf.startswith(f".{ours}."):
                    leaf = f".{theirs}{leaf.removeprefix(f'.{ours}')}"
                    break
    return modules[head] + leaf


def number(keys: Iterable[str], prefix: str) -> int:
    """Returns the number of blocks below `prefix`, by the highest number that follows it."""
    numbers = {key.removeprefix(prefix).partition(".")[0] for key in keys if key.startswith(prefix)}
    return max((int(n) + 1 for n in numbers if n.isdecimal()), default=0)
