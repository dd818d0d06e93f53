"""Multi-head attention and the transformer of the U-Net."""

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def _sdpa(
    q: Float[Tensor, "b n heads d"],
    k: Float[Tensor, "b m heads d"],
    v: Float[Tensor, "b m heads d"],
    mask: Bool[Tensor, "b m"] | None,
) -> Float[Tensor, "b n heads d"]:
    """Returns softmax(q k^T / sqrt(d)) v over the keys where `mask` is True (Vaswani et al. 2017, eq. 1), by torch."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    keys = None if mask is None else mask[:, None, None, :]
    if q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # torch's backward pass of this kernel takes 5 times as long in bfloat16 on a CPU as in float32.
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=keys).to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    return out.transpose(1, 2)


def _xformers(
    q: Float[Tensor, "b n heads d"],
    k: Float[Tensor, "b m heads d"],
    v: Float[Tensor, "b m heads d"],
    mask: Bool[Tensor, "b m"] | None,
) -> Float[Tensor, "b n heads d"]:
    """Returns the same by xformers' memory-efficient kernel."""
    attention = importlib.import_module("xformers.ops").memory_efficient_attention
    if mask is None:
        return attention(q, k, v)
    (b, n, heads, _), m = q.shape, k.shape[1]
    # The kernel reads the bias in rows of 8: allocate whole rows and pass a slice.
    bias = q.new_zeros(b, 1, 1, (m + 7) // 8 * 8)[..., :m].masked_fill_(~mask[:, None, None, :], float("-inf"))
    return attention(q, k, v, attn_bias=bias.expand(b, heads, n, m))


BACKENDS: dict[str, Kernel] = {"sdpa": _sdpa, "xformers": _xformers}


class Attention(nn.Module):
    """to_out(attention(to_q x, to_k context, to_v context)) on token states; without a context, self-attention."""

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        head_dim: int = 64,
        *,
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        inner, context_dim = heads * head_dim, context_dim or query_dim
        self.to_q = nn.Linear(query_dim, inner, bias=bias)
        self.to_k = nn.Linear(context_dim, inner, bias=bias)
        self.to_v = nn.Linear(context_dim, inner, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(dropout) if dropout else nn.Identity())
        self.heads, self.head_dim, self.backend = heads, head_dim, "sdpa"

    def forward(
        self,
        x: Float[Tensor, "b n q"],
        context: Float[Tensor, "b m c"] | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n q"]:
        source = x if context is None else context
        shape = (self.heads, self.head_dim)
        q = self.to_q(x).unflatten(-1, shape)
        k, v = self.to_k(source).unflatten(-1, shape), self.to_v(source).unflatten(-1, shape)
        return self.to_out(BACKENDS[self.backend](q, k, v, mask).flatten(2))


class PixelAttention(Attention):
    """x + self-attention over the pixels of group_norm(x): the one-head block in the middle of the autoencoder."""

    def __init__(self, channels: int, *, groups: int, eps: float):
        super().__init__(channels, heads=1, head_dim=channels, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x + to_pixels(super().forward(to_tokens(self.group_norm(x))), x)


class GEGLU(nn.Module):
    """h * gelu(gate), both halves of one projection (Shazeer 2020); the exact gelu."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n i"]:
        h, gate = self.proj(x).chunk(2, dim=-1)
        return h * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU of four times the width, then a projection back."""

    def __init__(self, dim: int, *, dropout: float = 0.0):
        super().__init__()
        drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), drop, nn.Linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context and feed-forward, each x + f(layer_norm(x))."""

    def __init__(self, dim: int, heads: int, head_dim: int, *, context_dim: int, dropout: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, None, heads, head_dim, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, context_dim, heads, head_dim, dropout=dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, dropout=dropout)

    def forward(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """x + proj_out(blocks(proj_in(norm(x)))) over the pixels; the projections are 1x1 convolutions, or `linear`."""

    def __init__(
        self,
        channels: int,
        heads: int,
        head_dim: int,
        *,
        context_dim: int,
        depth: int = 1,
        groups: int = 32,
        linear: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        inner = heads * head_dim
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if linear else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(inner, heads, head_dim, context_dim=context_dim, dropout=dropout) for _ in range(depth)
        )
        self.proj_out = nn.Linear(inner, channels) if linear else nn.Conv2d(inner, channels, 1)
        self.linear = linear

    def forward(
        self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b m k"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        h = self.norm(x)
        tokens = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            tokens = block(tokens, context, mask)
        return x + (to_pixels(self.proj_out(tokens), x) if self.linear else self.proj_out(to_pixels(tokens, x)))


def to_tokens(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """Returns the pixels row by row as tokens: a view if `x` is channels_last, else one copy for all later layers."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def to_pixels(tokens: Float[Tensor, "b n c"], like: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c h w"]:
    """Inverts `to_tokens`; always a view, so the result is channels_last."""
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def set_attention_backend(module: nn.Module, name: str, dtype: torch.dtype | None = None) -> None:
    """Sets the backend of every `Attention` in `module` to `name`, after checking it against sdpa on random blocks.

    `dtype` is the dtype of the computation if it differs from that of the weights (autocast).
    """
    if name not in BACKENDS:
        raise ValueError(f"attention backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    layers = [layer for layer in module.modules() if isinstance(layer, Attention)]
    if name != "sdpa":
        if not layers:
            raise ValueError(f"attention backend {name!r}: {type(module).__name__} has no attention layer; choose sdpa")
        for head_dim in sorted({layer.head_dim for layer in layers}):
            weight = next(layer for layer in layers if layer.head_dim == head_dim).to_q.weight
            _check_backend(name, head_dim, weight.device, dtype or weight.dtype)
    for layer in layers:
        layer.backend = name


def _check_backend(name: str, head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError if outputs or gradients, with or without a mask, differ from sdpa's."""
    rng = torch.Generator().manual_seed(0)
    block = torch.randn(3, 2, 21, 2, head_dim, generator=rng).to(device, dtype)
    mask = torch.arange(21, device=device) < torch.tensor([[21], [13]], device=device)
    tolerance = 4 * max(torch.finfo(dtype).eps, 2**-10)  # float32 may compute in TF32
    for keys in (None, mask):
        try:
            ours, reference = _block_gradients(BACKENDS[name], block, keys), _block_gradients(_sdpa, block, keys)
        except Exception as error:
            raise ValueError(
                f"attention backend {name!r} does not run on {device} in {dtype} with head size {head_dim} "
                f"({type(error).__name__}: {error}); choose sdpa, or install a build of {name} that fits"
            ) from error
        difference = (ours - reference).abs().max() / reference.abs().max()
        if not difference <= tolerance:  # also when NaN
            raise ValueError(
                f"attention backend {name!r} differs from sdpa by {difference:.1e} of the largest value (allowed "
                f"{tolerance:.1e}) on {device} in {dtype} with head size {head_dim}; choose sdpa"
            )


def _block_gradients(kernel: Kernel, block: Tensor, mask: Tensor | None) -> Tensor:
    leaf = block.clone().requires_grad_()
    with torch.enable_grad():
        out = kernel(leaf[0], leaf[1], leaf[2], mask)
        (gradient,) = torch.autograd.grad(out.float().square().sum(), leaf)
    return torch.cat([out.detach().float().flatten(), gradient.float().flatten()])
