"""Low-rank adaptation (Hu et al. 2022): W + (alpha / rank) up down beside a frozen layer W, by peft's layers."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.config import Section
from t2i.nn.attention import SpatialTransformer
from t2i.nn.resnet import Downsample, ResnetBlock, Upsample

Target = Literal["attention", "projections", "feed_forward"]
Adaptable = nn.Linear | nn.Conv2d
KOHYA = {"network_dim": "rank", "network_alpha": "alpha", "conv_dim": "conv_rank"}  # what its trainer calls them
FEED_FORWARD = ("FeedForward", "CLIPMLP", "T5LayerFF")  # classes, by their names: two are transformers'
BASE = ".base_layer"  # where peft keeps the frozen layer
TRAINED = "default"


class LoraConfig(Section):
    """Which layers get a LoRA, and of which size; also by the names that kohya's trainer has for it."""

    rank: int = Field(default=4, gt=0, description="of the change to a layer; kohya: network_dim")
    alpha: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="it is scaled by alpha / rank; by default 1"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of what the change sees of a layer's input")
    targets: tuple[Target, ...] = Field(default=("attention",), min_length=1, description="of the transformers")
    conv_rank: int | None = Field(default=None, gt=0, description="the residual blocks' convolutions too; conv_dim")
    conv_alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="by default conv_rank")
    text_encoder: bool = Field(default=False, description="the text encoder too")

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if both := [f"{theirs} and {ours}" for theirs, ours in KOHYA.items() if theirs in values and ours in values]:
            raise ValueError(f"{both[0]} are the same: give one of them")
        return {KOHYA.get(name, name): value for name, value in values.items()}

    @model_validator(mode="after")
    def _whole(self) -> "LoraConfig":
        if self.conv_alpha is not None and self.conv_rank is None:
            raise ValueError("conv_alpha scales a LoRA of the convolutions: give conv_rank too, or leave it out")
        return self


class LoraLayer(NamedTuple):
    """The change to one layer: (alpha / rank) up down; a convolution's `up` is 1x1."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The inner width."""
        return len(self.down)

    def delta(self) -> Tensor:
        """What is added to the layer's weight, in float32 and in its shape."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.alpha / self.rank) * product.unflatten(1, self.down.shape[1:])


Adapter = dict[str, LoraLayer]  # by the layer's name in the network


def adaptable(network: nn.Module) -> dict[str, Adaptable]:
    """Every linear layer and convolution of a network by its name, whether or not a LoRA stands before it."""
    return {
        name.removesuffix(BASE): module
        for name, module in network.named_modules()
        if isinstance(module, Adaptable) and ".lora_" not in name
    }


def carried(network: nn.Module) -> list[str]:
    """The names of the LoRAs that a network carries."""
    return list(getattr(network, "peft_config", {}))


def refuse_carried(network: nn.Module, what: str) -> None:
    """A ValueError where a network carries a LoRA: its tensors then have other names."""
    if names := carried(network):
        raise ValueError(f"{type(network).__name__} carries the LoRA {', '.join(names)}: {what}")


def add_lora(network: nn.Module, config: LoraConfig, seed: int = 0) -> list[nn.Parameter]:
    """Put a new LoRA, drawn by `seed` and without effect, before a network's layers: the parameters to train.

    Everything else in the network is frozen.
    """
    refuse_carried(network, "a second one is not trained beside it; take it off first")
    sizes = targeted(network, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(network, sizes, TRAINED, config.dropout)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def lora_state(network: nn.Module, name: str = TRAINED) -> Adapter:
    """The LoRA called `name` that a network carries; its tensors are the live ones."""
    found = {}
    for layer, wrapper in _wrappers(network).items():
        if name in wrapper.lora_A:
            down, up = wrapper.lora_A[name].weight, wrapper.lora_B[name].weight
            found[layer] = LoraLayer(down.detach(), up.detach(), float(wrapper.lora_alpha[name]))
    if not found:
        raise ValueError(f"{type(network).__name__} carries no LoRA {name!r}; it has {carried(network) or 'none'}")
    return found


def apply_adapter(network: nn.Module, adapter: Adapter, weight: float = 1.0, name: str = TRAINED) -> None:
    """Put a LoRA before a network's layers, beside those that it carries, `weight` times; the weights stay."""
    check_fit(network, adapter)
    check_weight(weight)
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"LoRA name = {name!r}: letters, digits, _ and - only")
    if name in carried(network):
        raise ValueError(f"{type(network).__name__} carries a LoRA {name!r} already: give this one another name")
    _inject(network, {layer: (change.rank, change.alpha) for layer, change in adapter.items()}, name, 0.0)
    wrappers = _wrappers(network)
    with torch.no_grad():
        for layer, change in adapter.items():
            wrappers[layer].lora_A[name].weight.copy_(change.down)
            wrappers[layer].lora_B[name].weight.copy_(change.up)
    for wrapper in wrappers.values():
        wrapper.set_adapter(list(wrapper.lora_A), inference_mode=True)
    set_lora_weights(network, {name: weight})


def set_lora_weights(network: nn.Module, weights: Mapping[str, float]) -> None:
    """How many times each of the named LoRAs that a network carries counts."""
    if unknown := set(weights) - set(carried(network)):
        raise ValueError(f"no LoRA {sorted(unknown)[0]!r}; {type(network).__name__} has {carried(network) or 'none'}")
    for name, weight in weights.items():
        check_weight(weight)
        for wrapper in _wrappers(network).values():
            wrapper.set_scale(name, weight)


def remove_lora(network: nn.Module) -> None:
    """Take every LoRA off: the network as it was."""
    for name, wrapper in _wrappers(network).items():
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, wrapper.base_layer)
    if carried(network):
        del network.peft_config  # pyright: ignore[reportAttributeAccessIssue]


def merge_adapter(network: nn.Module, adapter: Adapter, weight: float = 1.0) -> None:
    """Add a LoRA, `weight` times, to the weights themselves."""
    refuse_carried(network, "merge before one is applied, or take it off first")
    check_fit(network, adapter)
    layers = adaptable(network)
    for name, change in adapter.items():
        base = layers[name].weight
        layers[name].weight = nn.Parameter(merged(base.detach(), change, weight, name), base.requires_grad)


def merged(base: Float[Tensor, "..."], change: LoraLayer, weight: float, name: str) -> Float[Tensor, "..."]:
    """A layer's weight with the change, `weight` times, added in float32 at least; `name` is for messages."""
    check_weight(weight)
    wide = torch.promote_types(base.dtype, torch.float32)
    found = (base.to(wide) + weight * change.delta().to(base.device, wide)).to(base.dtype)
    if not found.isfinite().all():
        raise ValueError(f"{name}: with the LoRA added, {weight} times, its weight is not finite in {base.dtype}")
    return found


def check_weight(weight: float) -> None:
    """Refuse a weight that is no finite number."""
    if not math.isfinite(weight):
        raise ValueError(f"LoRA weight = {weight} is no finite number")


def check_fit(network: nn.Module, adapter: Adapter) -> None:
    """A ValueError that names the first layer that is not there or has another shape."""
    layers = adaptable(network)
    for name, (down, up, _) in adapter.items():
        if name not in layers:
            raise ValueError(f"{type(network).__name__} has no layer {name}, which the LoRA changes")
        shape, rank = layers[name].weight.shape, len(down)
        wanted = ((rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2)))
        if (tuple(down.shape), tuple(up.shape)) != wanted:
            raise ValueError(
                f"{name} has a weight of {tuple(shape)}, the LoRA's down and up are {tuple(down.shape)} and "
                f"{tuple(up.shape)}, where {wanted[0]} and {wanted[1]} fit: it is for another architecture"
            )


def targeted(network: nn.Module, config: LoraConfig) -> dict[str, tuple[int, float]]:
    """(rank, alpha) of every layer that the config means; a rank that a layer has not is a ValueError."""
    found = {}
    for name, layer in adaptable(network).items():
        kind = _kind(network, name)
        if kind == "convolution" and isinstance(layer, nn.Conv2d) and config.conv_rank is not None:
            found[name] = (config.conv_rank, config.conv_alpha or config.conv_rank)
        elif kind in config.targets:
            found[name] = (config.rank, config.alpha or config.rank)
        else:
            continue
        inputs, outputs, rank = layer.weight[0].numel(), len(layer.weight), found[name][0]
        if rank > min(inputs, outputs):
            key = "conv_rank" if kind == "convolution" else "rank"
            raise ValueError(
                f"{key} = {rank}: the layer {name} takes {inputs} numbers and gives {outputs}, so "
                f"{min(inputs, outputs)} is its highest rank: give at most that, or other targets"
            )
    if not found:
        raise ValueError(f"{type(network).__name__} has no layer for targets = {', '.join(config.targets)}")
    return found


def _kind(network: nn.Module, name: str) -> str | None:
    """What a layer belongs to, by the modules around it, the innermost first."""
    path = name.split(".")
    for end in range(len(path) - 1, 0, -1):
        module = network.get_submodule(".".join(path[:end]))
        if type(module).__name__.endswith("Attention"):
            return "attention"
        if type(module).__name__.startswith(FEED_FORWARD):
            return "feed_forward"
        if isinstance(module, SpatialTransformer):
            return "projections"
        if isinstance(module, ResnetBlock | Downsample | Upsample):
            return "convolution"
    return None


def _wrappers(network: nn.Module) -> dict[str, Any]:
    """peft's layers by the names of those that they stand before."""
    return dict(_find(network)) if carried(network) else {}


def _find(network: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer as Wrapper  # peft is loaded where a LoRA is carried, never before

    for name, module in network.named_modules():
        if isinstance(module, Wrapper):
            yield name, module


def peft_config(sizes: Mapping[str, tuple[int, float]], dropout: float = 0.0) -> Any:
    """peft's config of a LoRA of `sizes` = (rank, alpha) by layers."""
    import peft

    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    return peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=dropout,
        target_modules="|".join(re.escape(layer) for layer in sizes),
        rank_pattern={f"^{re.escape(layer)}": size[0] for layer, size in sizes.items() if size[0] != rank},
        alpha_pattern={f"^{re.escape(layer)}": size[1] for layer, size in sizes.items() if size[1] != alpha},
    )


def _inject(network: nn.Module, sizes: Mapping[str, tuple[int, float]], name: str, dropout: float) -> None:
    """A LoRA of `sizes` = (rank, alpha) by layers in a network, of which the new parameters alone are to be trained."""
    import peft

    config = peft_config(sizes, dropout)
    network.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*peft_config.*")  # a second one is meant
        peft.inject_adapter_in_model(config, network, name)
    wrappers = _wrappers(network)
    assert {layer for layer, wrapper in wrappers.items() if name in wrapper.lora_A} == set(sizes)
    for wrapper in wrappers.values():
        wrapper.train(wrapper.base_layer.training)
