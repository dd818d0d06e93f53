"""Low-rank adaptation (Hu et al. 2022): W + (alpha / rank) up down for a frozen layer W, with peft's layers."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping
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
KOHYA = {"network_dim": "rank", "network_alpha": "alpha", "conv_dim": "conv_rank"}  # names in kohya's trainer
FEED_FORWARD = ("FeedForward", "CLIPMLP", "T5LayerFF")  # class names; the last two are transformers'
BASE = ".base_layer"  # the frozen layer's name in peft
TRAINED = "default"


class LoraConfig(Section):
    """The layers that get a LoRA, and its size; kohya's names of the keys are accepted too."""

    rank: int = Field(default=4, gt=0, description="rank of the change to a layer; kohya: network_dim")
    alpha: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="scales the change by alpha / rank; default: rank",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the input of the change")
    targets: tuple[Target, ...] = Field(default=("attention",), min_length=1, description="of the transformer blocks")
    conv_rank: int | None = Field(
        default=None, gt=0, description="also for the residual blocks' convolutions; kohya: conv_dim"
    )
    conv_alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="default: conv_rank")
    text_encoder: bool = Field(default=False, description="train a LoRA of the text encoder too")

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if both := [f"{theirs} and {ours}" for theirs, ours in KOHYA.items() if theirs in values and ours in values]:
            raise ValueError(f"{both[0]} are the same: remove one of them")
        return {KOHYA.get(name, name): value for name, value in values.items()}

    @model_validator(mode="after")
    def _whole(self) -> "LoraConfig":
        if self.conv_alpha is not None and self.conv_rank is None:
            raise ValueError("conv_alpha scales a LoRA of the convolutions: set conv_rank too, or remove it")
        return self


class LoraLayer(NamedTuple):
    """The change to one layer: (alpha / rank) up down; a convolution's `up` is 1x1."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The rank of the change."""
        return len(self.down)

    def delta(self) -> Tensor:
        """Returns the change of the layer's weight, in float32 and in its shape."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.alpha / self.rank) * product.unflatten(1, self.down.shape[1:])


Adapter = dict[str, LoraLayer]  # by the layer's name in the network


def adaptable_layers(network: nn.Module) -> dict[str, Adaptable]:
    """Returns every linear layer and convolution of a network by its name, with or without a LoRA."""
    return {
        name.removesuffix(BASE): module
        for name, module in network.named_modules()
        if isinstance(module, Adaptable) and ".lora_" not in name
    }


def loras_of(network: nn.Module) -> list[str]:
    """Returns the names of the LoRAs that are applied to a network."""
    return list(getattr(network, "peft_config", {}))


def check_no_lora(network: nn.Module, problem: str) -> None:
    """Raises ValueError if a LoRA is applied to a network, whose tensors then have other names."""
    if names := loras_of(network):
        raise ValueError(f"{type(network).__name__} carries the LoRA {', '.join(names)}: {problem}")


def add_lora(network: nn.Module, config: LoraConfig, seed: int = 0) -> list[nn.Parameter]:
    """Adds a new LoRA, initialised by `seed` to no effect, to a network; returns the parameters to train.

    Everything else in the network is frozen.
    """
    check_no_lora(network, "a second one is not trained beside it; remove it first")
    sizes = target_layers(network, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(network, sizes, TRAINED, config.dropout)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def lora_state(network: nn.Module, name: str = TRAINED) -> Adapter:
    """Returns the LoRA `name` of a network; its tensors are those of the network, not copies."""
    adapter = {}
    for layer, wrapper in _wrappers(network).items():
        if name in wrapper.lora_A:
            down, up = wrapper.lora_A[name].weight, wrapper.lora_B[name].weight
            adapter[layer] = LoraLayer(down.detach(), up.detach(), float(wrapper.lora_alpha[name]))
    if not adapter:
        raise ValueError(f"{type(network).__name__} carries no LoRA {name!r}; it has {loras_of(network) or 'none'}")
    return adapter


def apply_adapter(network: nn.Module, adapter: Adapter, weight: float = 1.0, name: str = TRAINED) -> None:
    """Adds a LoRA, scaled by `weight`, to a network and its other LoRAs; the network's weights do not change."""
    check_fit(network, adapter)
    check_weight(weight)
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"LoRA name = {name!r}: letters, digits, _ and - only")
    if name in loras_of(network):
        raise ValueError(f"{type(network).__name__} carries a LoRA {name!r} already: give another name")
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
    """Sets the scale of each of the named LoRAs of a network."""
    if unknown := set(weights) - set(loras_of(network)):
        raise ValueError(f"no LoRA {sorted(unknown)[0]!r}; {type(network).__name__} has {loras_of(network) or 'none'}")
    for name, weight in weights.items():
        check_weight(weight)
        for wrapper in _wrappers(network).values():
            wrapper.set_scale(name, weight)


def remove_lora(network: nn.Module) -> None:
    """Removes every LoRA, which restores the original network."""
    for name, wrapper in _wrappers(network).items():
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, wrapper.base_layer)
    if loras_of(network):
        del network.peft_config  # pyright: ignore[reportAttributeAccessIssue]


def merge_adapter(network: nn.Module, adapter: Adapter, weight: float = 1.0) -> None:
    """Adds a LoRA, scaled by `weight`, to the network's weights."""
    check_no_lora(network, "merge before one is applied, or remove it first")
    check_fit(network, adapter)
    layers = adaptable_layers(network)
    for name, change in adapter.items():
        base = layers[name].weight
        layers[name].weight = nn.Parameter(merged_weight(base.detach(), change, weight, name), base.requires_grad)


def merged_weight(base: Float[Tensor, "..."], change: LoraLayer, weight: float, name: str) -> Float[Tensor, "..."]:
    """Returns base + weight * change in base's dtype, added in float32 or wider; `name` is for messages."""
    check_weight(weight)
    wide = torch.promote_types(base.dtype, torch.float32)
    total = (base.to(wide) + weight * change.delta().to(base.device, wide)).to(base.dtype)
    if not total.isfinite().all():
        raise ValueError(f"{name}: with the LoRA added, {weight} times, its weight is not finite in {base.dtype}")
    return total


def check_weight(weight: float) -> None:
    """Raises ValueError if a LoRA's weight is not finite."""
    if not math.isfinite(weight):
        raise ValueError(f"LoRA weight = {weight} is not a finite number")


def check_fit(network: nn.Module, adapter: Adapter) -> None:
    """Raises ValueError naming the first layer of the LoRA that the network lacks or has in another shape."""
    layers = adaptable_layers(network)
    for name, (down, up, _) in adapter.items():
        if name not in layers:
            raise ValueError(f"{type(network).__name__} has no layer {name}, which the LoRA changes")
        shape, rank = layers[name].weight.shape, len(down)
        expected = ((rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2)))
        if (tuple(down.shape), tuple(up.shape)) != expected:
            raise ValueError(
                f"{name} has a weight of {tuple(shape)}, the LoRA's down and up are {tuple(down.shape)} and "
                f"{tuple(up.shape)}, expected are {expected[0]} and {expected[1]}: it is for another architecture"
            )


def target_layers(network: nn.Module, config: LoraConfig) -> dict[str, tuple[int, float]]:
    """Returns (rank, alpha) of every layer that the config selects; ValueError if a rank is too large for a layer."""
    sizes = {}
    for name, layer in adaptable_layers(network).items():
        kind = _kind(network, name)
        if kind == "convolution" and isinstance(layer, nn.Conv2d) and config.conv_rank is not None:
            sizes[name] = (config.conv_rank, config.conv_alpha or config.conv_rank)
        elif kind in config.targets:
            sizes[name] = (config.rank, config.alpha or config.rank)
        else:
            continue
        inputs, outputs, rank = layer.weight[0].numel(), len(layer.weight), sizes[name][0]
        if rank > min(inputs, outputs):
            key = "conv_rank" if kind == "convolution" else "rank"
            raise ValueError(
                f"{key} = {rank}: the layer {name} takes {inputs} inputs and has {outputs} outputs, so "
                f"{min(inputs, outputs)} is its largest rank: set at most that, or other targets"
            )
    if not sizes:
        raise ValueError(f"{type(network).__name__} has no layer for targets = {', '.join(config.targets)}")
    return sizes


def _kind(network: nn.Module, name: str) -> str | None:
    """Returns the kind of module that a layer belongs to, by the modules that contain it, innermost first."""
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
    """Returns peft's layers by the names of the layers that they wrap."""
    if not loras_of(network):
        return {}
    from peft.tuners.lora import LoraLayer as Wrapper  # peft is imported only if a LoRA is applied

    return {name: module for name, module in network.named_modules() if isinstance(module, Wrapper)}


def peft_config(sizes: Mapping[str, tuple[int, float]], dropout: float = 0.0) -> Any:
    """Returns peft's config of a LoRA; `sizes` maps layers to (rank, alpha)."""
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
    """Adds a LoRA to a network and freezes all other parameters; `sizes` maps layers to (rank, alpha)."""
    import peft

    config = peft_config(sizes, dropout)
    network.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*peft_config.*")  # a second LoRA is intended
        peft.inject_adapter_in_model(config, network, name)
    wrappers = _wrappers(network)
    assert {layer for layer, wrapper in wrappers.items() if name in wrapper.lora_A} == set(sizes)
    for wrapper in wrappers.values():
        wrapper.train(wrapper.base_layer.training)
