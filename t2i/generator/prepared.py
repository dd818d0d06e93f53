"""What depends on the text alone, computed once for all steps of a sampling run."""

import copy
from collections.abc import Callable

from torch import Tensor, nn

from t2i.conditioning import Conditioning
from t2i.generator.unet import UNet
from t2i.nn.attention import TransformerBlock


def remember_text(unet: UNet) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
    """`unet` for one sampling run: the projected tokens and every key and value are made when a conditioning is first
    seen, and kept for as long as the same object comes. The floats are those of `unet` itself."""
    if unet._compiled_call_impl is not None:
        return unet  # compiled in place: a twin would have to be compiled again for every prompt
    seen: Conditioning | None = None
    network: nn.Module = unet

    def call(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        nonlocal seen, network
        if cond is not seen:
            seen, network = cond, prepare(unet, cond)
        return network(x, t, cond)

    return call


def prepare(unet: UNet, cond: Conditioning) -> nn.Module:
    """A twin of `unet` for this `cond` only; it shares the weights as they are now, so it is not for training."""
    tokens = unet.embed_text(cond)[0]
    twin = _with_keys_and_values(unet, tokens)
    return twin if unet.encoder_hid_proj is None else _replace(twin, encoder_hid_proj=Given(tokens))


class Given(nn.Module):
    """A layer whose output is already known."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, _: Tensor) -> Tensor:
        return self.output


def _with_keys_and_values(module: nn.Module, tokens: Tensor) -> nn.Module:
    if isinstance(module, TransformerBlock):
        attention = module.attn2
        to_k, to_v = Given(attention.to_k(tokens)), Given(attention.to_v(tokens))
        return _replace(module, attn2=_replace(attention, to_k=to_k, to_v=to_v))
    twins = {name: _with_keys_and_values(child, tokens) for name, child in module.named_children()}
    changed = {name: twin for name, twin in twins.items() if twin is not getattr(module, name)}
    return _replace(module, **changed) if changed else module


def _replace(module: nn.Module, **children: nn.Module) -> nn.Module:
    """A shallow copy of `module` with other children: same parameters, no copy of a tensor."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = {**module._modules, **children}
    return twin
