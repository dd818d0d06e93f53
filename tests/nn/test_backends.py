"""The choice of the attention kernel: checked when it is made, refused with the cause."""

import importlib.util

import pytest
import torch

from t2i.nn.attention import BACKENDS, Attention, SpatialTransformer, set_attention_backend


def network():
    return SpatialTransformer(32, 2, 16, context_dim=7, groups=4)


def by_hand(q, k, v, mask):
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)


def without_scale(q, k, v, mask):
    return by_hand(q * q.shape[-1] ** 0.5, k, v, mask)


def without_mask(q, k, v, mask):
    return by_hand(q, k, v, None)


def without_gradient_of_keys(q, k, v, mask):
    return by_hand(q, k.detach(), v, mask)


def nan_gradient(q, k, v, mask):
    return by_hand(q, k, v, mask) + (q - q.detach()).abs().sqrt()


def crash(q, k, v, mask):
    raise RuntimeError("no kernel image")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_kernel_is_taken_and_used(dtype, monkeypatch):
    block, x, context = network(), torch.randn(1, 32, 4, 4), torch.randn(1, 5, 7)
    reference = block(x, context)
    calls = []
    monkeypatch.setitem(BACKENDS, "mine", lambda *args: calls.append(1) or by_hand(*args))
    set_attention_backend(block, "mine", dtype)
    calls.clear()
    torch.testing.assert_close(block(x, context), reference)
    assert len(calls) == 2


@pytest.mark.parametrize("kernel", [without_scale, without_mask, without_gradient_of_keys, nan_gradient])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_kernel_is_refused(kernel, dtype, monkeypatch):
    monkeypatch.setitem(BACKENDS, "mine", kernel)
    block = network().to(dtype)
    with pytest.raises(ValueError, match=r"'mine' differs from sdpa by .* head size 16"):
        set_attention_backend(block, "mine")
    assert {layer.backend for layer in block.modules() if isinstance(layer, Attention)} == {"sdpa"}


def test_a_kernel_that_does_not_run_is_refused_with_its_cause(monkeypatch):
    monkeypatch.setitem(BACKENDS, "mine", crash)
    with pytest.raises(ValueError, match=r"does not run on cpu in torch\.float32 .*RuntimeError: no kernel image"):
        set_attention_backend(network(), "mine")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"'flash' is unknown; choose one of sdpa, xformers"):
        set_attention_backend(network(), "flash")


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed")
def test_a_missing_xformers_is_refused_with_its_cause():
    with pytest.raises(ValueError, match=r"No module named 'xformers'.*choose sdpa"):
        set_attention_backend(network(), "xformers")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="xformers' kernels need a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_xformers_agrees_on_a_gpu(dtype):
    pytest.importorskip("xformers")
    block = network().to("cuda", dtype)
    x, context = torch.randn(2, 32, 4, 6, device="cuda", dtype=dtype), torch.randn(2, 5, 7, device="cuda", dtype=dtype)
    mask = torch.arange(5, device="cuda") < torch.tensor([[5], [2]], device="cuda")
    reference = block(x, context, mask)
    set_attention_backend(block, "xformers")
    torch.testing.assert_close(block(x, context, mask), reference, atol=2e-2, rtol=2e-2)


def test_sdpa_is_the_closed_form():
    q, k, v = torch.randn(3, 2, 6, 3, 8).unbind()
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    for keys in (None, mask):
        torch.testing.assert_close(BACKENDS["sdpa"](q, k, v, keys), by_hand(q, k, v, keys))


def test_a_backend_that_nothing_would_use_is_refused():
    with pytest.raises(ValueError, match="'xformers': Linear has no attention layer; choose sdpa"):
        set_attention_backend(torch.nn.Linear(2, 2), "xformers")
    set_attention_backend(torch.nn.Linear(2, 2), "sdpa")
