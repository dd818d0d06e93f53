"""Keys and values of the text, computed once for all steps of a sampling run."""

import copy
from collections.abc import Callable

from torch import Tensor, nn

from t2i.conditioning import Conditioning
from t2i.generator.unet import UNet
from t2i.nn.attention import TransformerBlock


def cached_text(unet: UNet) -> Callable[[Conditioning], nn.Module]:
    """Returns a function from a conditioning to the network to call with it, for one sampling run.

    That network is a twin of `unet` in which the projected tokens and every key and value are constants. It is made
    when a conditioning first comes, and kept for as long as the same object comes. Its outputs are those of `unet`.
    """
    if unet._compiled_call_impl is not None:
        return lambda _: unet  # compiled in place: a twin would have to be compiled again for every prompt
    last: Conditioning | None = None
    network: nn.Module = unet

    def network_for(cond: Conditioning) -> nn.Module:
        nonlocal last, network
        if cond is not last:
            last, network = cond, _twin(unet, cond)
        return network

    return network_for


def _twin(unet: UNet, cond: Conditioning) -> nn.Module:
    """Returns a twin of `unet` for `cond` only; it shares the weights as they are now, so it is not for training."""
    tokens = unet.embed_text(cond)[0]
    twin = _with_keys_and_values(unet, tokens)
    return twin if unet.encoder_hid_proj is None else _replace(twin, encoder_hid_proj=Constant(tokens))


class Constant(nn.Module):
    """A layer whose output is already known."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, _: Tensor) -> Tensor:
        return self.output


def _with_keys_and_values(module: nn.Module, tokens: Tensor) -> nn.Module:
    if isinstance(module, TransformerBlock):
        attention = module.attn2
        to_k, to_v = Constant(attention.to_k(tokens)), Constant(attention.to_v(tokens))
        return _replace(module, attn2=_replace(attention, to_k=to_k, to_v=to_v))
    twins = {name: _with_keys_and_values(child, tokens) for name, child in module.named_children()}
    changed = {name: twin for name, twin in twins.items() if twin is not getattr(module, name)}
    return _replace(module, **changed) if changed else module


def _replace(module: nn.Module, **children: nn.Module) -> nn.Module:
    """Returns a shallow copy of `module` with other children: the parameters are shared, no tensor is copied."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = {**module._modules, **children}
    return twin
