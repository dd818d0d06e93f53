"""Blocks, attention and embeddings against those of diffusers, with its parameter names."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention import FeedForward as DiffusersFeedForward
from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding as DiffusersTimestepEmbedding
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D

from t2i.nn.attention import (
    Attention,
    FeedForward,
    PixelAttention,
    SpatialTransformer,
    TransformerBlock,
    to_pixels,
    to_tokens,
)
from t2i.nn.embeddings import TimestepEmbedding, sinusoid
from t2i.nn.resnet import Downsample, ResnetBlock, Upsample


def same_weights(ours, reference):
    """Both networks with one set of random weights; a name or shape that differs is an error."""
    rng = torch.Generator().manual_seed(0)
    state = {key: value + 0.1 * torch.randn(value.shape, generator=rng) for key, value in ours.state_dict().items()}
    ours.load_state_dict(state)
    reference.load_state_dict(state)
    return ours.eval(), reference.eval()


def assert_same(ours, reference):
    assert ours.shape == reference.shape
    apart = (ours - reference).abs().max() / reference.abs().max()
    assert float(apart.detach()) <= 1e-5


@pytest.mark.parametrize("out_channels", [16, 24])
@pytest.mark.parametrize("time_dim", [None, 12])
@pytest.mark.parametrize("output_scale", [1.0, 2.0])
def test_resnet_block(out_channels, time_dim, output_scale):
    ours, reference = same_weights(
        ResnetBlock(16, out_channels, time_dim=time_dim, groups=4, eps=1e-5, output_scale=output_scale),
        ResnetBlock2D(
            in_channels=16,
            out_channels=out_channels,
            temb_channels=time_dim,
            groups=4,
            eps=1e-5,
            output_scale_factor=output_scale,
        ),
    )
    x, temb = torch.randn(2, 16, 6, 10), None if time_dim is None else torch.randn(2, time_dim)
    assert_same(ours(x, temb), reference(x, temb))


def test_resnet_block_dropout_acts_in_training_only():
    block, x = ResnetBlock(16, 16, time_dim=None, groups=4, eps=1e-5, dropout=0.5), torch.randn(1, 16, 4, 4)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_downsample(padding, size):
    ours, reference = same_weights(
        Downsample(8, padding=padding), Downsample2D(8, use_conv=True, padding=padding, name="op")
    )
    x = torch.randn(2, 8, *size)
    assert_same(ours(x), reference(x))


@pytest.mark.parametrize("size", [None, (9, 11)])
def test_upsample(size):
    ours, reference = same_weights(Upsample(8), Upsample2D(8, use_conv=True))
    x = torch.randn(2, 8, 5, 6)
    assert_same(ours(x, size), reference(x, size))


@pytest.mark.parametrize(("context_dim", "bias"), [(None, False), (7, True)])
def test_attention(context_dim, bias):
    ours, reference = same_weights(
        Attention(24, context_dim, 3, 16, bias=bias), DiffusersAttention(24, context_dim, 3, dim_head=16, bias=bias)
    )
    x, context = torch.randn(2, 10, 24), None if context_dim is None else torch.randn(2, 5, context_dim)
    assert_same(ours(x, context), reference(x, context))


def test_pixel_attention():
    ours, reference = same_weights(
        PixelAttention(16, groups=4, eps=1e-6),
        DiffusersAttention(16, heads=1, dim_head=16, norm_num_groups=4, eps=1e-6, bias=True, residual_connection=True),
    )
    x = torch.randn(2, 16, 4, 6)
    assert_same(ours(x), reference(x))


def test_feed_forward():
    ours, reference = same_weights(FeedForward(12), DiffusersFeedForward(12, activation_fn="geglu"))
    x = torch.randn(2, 5, 12)
    assert_same(ours(x), reference(x))


def test_transformer_block_with_and_without_mask():
    ours, reference = same_weights(
        TransformerBlock(32, 2, 16, context_dim=7), BasicTransformerBlock(32, 2, 16, cross_attention_dim=7)
    )
    x, context, mask = torch.randn(2, 10, 32), torch.randn(2, 5, 7), torch.arange(5) < torch.tensor([[5], [2]])
    assert_same(ours(x, context), reference(x, encoder_hidden_states=context))
    reference_mask = ~mask[:, None] * -1e9
    assert_same(
        ours(x, context, mask), reference(x, encoder_hidden_states=context, encoder_attention_mask=reference_mask)
    )


def test_masked_tokens_are_as_if_absent():
    block, x, context = Attention(16, 7, 2, 8), torch.randn(2, 10, 16), torch.randn(2, 5, 7)
    mask = (torch.arange(5) < 3).expand(2, 5)
    torch.testing.assert_close(block(x, context, mask), block(x, context[:, :3]))


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_spatial_transformer(linear, layout):
    ours, reference = same_weights(
        SpatialTransformer(24, 2, 16, context_dim=7, depth=2, groups=4, linear=linear),
        Transformer2DModel(
            2,
            16,
            in_channels=24,
            num_layers=2,
            norm_num_groups=4,
            cross_attention_dim=7,
            use_linear_projection=linear,
        ),
    )
    x, context = torch.randn(2, 24, 4, 6).to(memory_format=layout), torch.randn(2, 5, 7)
    assert_same(ours(x, context), reference(x, context).sample)


def test_tokens_are_pixels_row_by_row_and_a_view_of_channels_last():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(to_tokens(x)[1, 2 * 5 + 3], x[1, :, 2, 3])
    assert torch.equal(to_pixels(to_tokens(x), x), x)
    x = x.to(memory_format=torch.channels_last)
    assert to_pixels(to_tokens(x), x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("dim", [32, 33])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
def test_sinusoid(dim, flip, shift):
    t = torch.tensor([0, 1, 500, 999])
    reference = get_timestep_embedding(t, dim, flip_sin_to_cos=flip, downscale_freq_shift=shift)
    assert torch.equal(sinusoid(t, dim, flip, shift), reference)


def test_sinusoid_is_float32_and_takes_real_times():
    half = sinusoid(torch.tensor([999.0, 1000.0]).half(), 32)
    assert half.dtype == torch.float32
    assert torch.equal(half, sinusoid(torch.tensor([999, 1000]), 32))
    angle = torch.tensor(0.5)
    torch.testing.assert_close(sinusoid(torch.tensor([0.5]), 2)[0], torch.stack([angle.sin(), angle.cos()]))


def test_timestep_embedding():
    ours, reference = same_weights(TimestepEmbedding(8, 12), DiffusersTimestepEmbedding(8, 12))
    x = torch.randn(3, 8)
    assert_same(ours(x), reference(x))


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_that_trains_in_bfloat16_rounds_once(autocast):
    """Values and gradients are those of float32 on the same rounded inputs, but for the rounding of the result."""
    ours = Attention(16, heads=2, head_dim=8).requires_grad_(False)
    reference, x = Attention(16, heads=2, head_dim=8).requires_grad_(False), torch.randn(2, 5, 16)
    for layer in (ours, reference):  # so that queries, keys and values are the rounded inputs themselves
        for linear in (layer.to_q, layer.to_k, layer.to_v, layer.to_out[0]):
            torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(layer.to_out[0].bias)
    rounded = x.bfloat16().requires_grad_()
    exact = x.bfloat16().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = (ours if autocast else ours.bfloat16())(rounded)
    expected = reference(exact)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected.bfloat16())
    out.backward(torch.ones_like(out))
    expected.backward(torch.ones_like(expected))
    torch.testing.assert_close(rounded.grad.float(), exact.grad, rtol=0.02, atol=0.01)


def test_the_layout_of_a_small_map_changes_nothing_but_rounding():
    torch.manual_seed(0)
    block = ResnetBlock(32, 64, time_dim=16, groups=8, eps=1e-5).eval()
    x, temb = torch.randn(2, 32, 8, 8), torch.randn(2, 16)
    last = x.contiguous(memory_format=torch.channels_last)
    wanted = block(last, temb)  # with gradients: as in training
    with torch.no_grad():
        for given in (x, last):
            assert (block(given, temb) - wanted).abs().max() < 1e-5
        block.to(memory_format=torch.channels_last)
        assert (block(last, temb) - wanted).abs().max() < 1e-5
