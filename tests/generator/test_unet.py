from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from t2i.conditioning import Conditioning
from t2i.generator.kv_cache import cached_text
from t2i.generator.unet import UNet
from t2i.generator.unet_config import UNetConfig

from .tiny import SMALL, conditioning, latents, small_unet

SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
SD21: dict[str, Any] = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
THREE: dict[str, Any] = {
    "block_out_channels": (16, 32, 24),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
# name -> (config keys, latent height and width)
CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "conv projection": ({}, (8, 8)),
    "linear projection": ({"use_linear_projection": True}, (8, 6)),
    "odd size": ({}, (5, 7)),
    "odd size, three levels": (THREE, (11, 6)),
    "heads, layers and depth by level": (
        THREE
        | {
            "attention_head_dim": (1, 4, 3),
            "layers_per_block": (2, 1, 3),
            "transformer_layers_per_block": (1, 2, 3),
        },
        (8, 8),
    ),
    "context width by level": (THREE | {"cross_attention_dim": (9, 12, 12)}, (8, 8)),
    "projector": ({"encoder_hid_dim": 20, "encoder_hid_dim_type": "text_proj"}, (8, 8)),
    "no mid block": ({"mid_block_type": None}, (8, 8)),
    "time": ({"flip_sin_to_cos": False, "freq_shift": 1, "time_embedding_dim": 40}, (4, 4)),
    "scales": ({"mid_block_scale_factor": 1.5, "norm_eps": 1e-3, "center_input_sample": True}, (4, 4)),
    "convolutions": ({"downsample_padding": 0, "conv_in_kernel": 5, "conv_out_kernel": 1, "out_channels": 7}, (8, 8)),
    "channels": ({"in_channels": 9, "act_fn": "swish", "norm_num_groups": 4}, (4, 4)),
}


def apart(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def outputs(ours: UNet, reference: UNet2DConditionModel, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    width = ours.config.context_dim
    cond = conditioning(2, width if isinstance(width, int) else width[-1])
    x, t = latents(2, ours.config.in_channels, *size), torch.tensor([3, 977])
    with torch.no_grad():
        return ours(x, t, cond), reference(x, t, cond.tokens).sample


@pytest.mark.parametrize("name", [name for name in CASES if name != "context width by level"])
def test_output_is_that_of_diffusers(name, tmp_path):
    keys, size = CASES[name]
    ours = small_unet(**keys)
    ours.save(tmp_path)
    reference = UNet2DConditionModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert apart(*outputs(ours, reference, size)) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_weights_of_diffusers_load(name, tmp_path):
    keys, size = CASES[name]
    torch.manual_seed(0)
    reference = UNet2DConditionModel(**{**SMALL, **keys}).eval()
    reference.save_pretrained(tmp_path)
    ours = UNet.load(tmp_path)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in reference.state_dict().items()}
    if name != "context width by level":  # one context serves every level, so stock has no way to run this either
        assert apart(*outputs(ours, reference, size)) <= 1e-5


def test_every_key_of_diffusers_config_is_written_and_has_its_default(tmp_path):
    small_unet().save(tmp_path)
    written = UNet2DConditionModel.load_config(tmp_path)
    with torch.device("meta"):
        stock = dict(UNet2DConditionModel().config)
    public = {k for k in stock if not k.startswith("_")}
    assert {k for k in written if not k.startswith("_")} == public
    ours = UNetConfig().model_dump()
    assert ours == {k: tuple(stock[k]) if isinstance(stock[k], list) else stock[k] for k in public}


@pytest.mark.parametrize(("keys", "parameters"), [(SD15, 859_520_964), (SD21, 865_910_724)])
def test_stable_diffusion_has_its_keys_and_parameters(keys, parameters):
    with torch.device("meta"):
        ours, reference = UNet(UNetConfig(**keys)), UNet2DConditionModel(**keys)
    assert len(ours.state_dict()) == 686
    assert sum(p.numel() for p in ours.parameters()) == parameters
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in reference.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("keys", [SD15, SD21], ids=["sd15", "sd21"])
def test_stable_diffusion_output_is_that_of_diffusers(keys):
    reference = UNet2DConditionModel(**keys).eval()
    with torch.device("meta"):
        ours = UNet(UNetConfig(**keys)).eval()
    ours.load_state_dict(reference.state_dict(), assign=True)
    assert apart(*outputs(ours, reference, (8, 8))) <= 1e-5


def test_time_may_be_fractional_and_is_embedded_in_float32(tmp_path):
    ours = small_unet()
    ours.save(tmp_path)
    reference = UNet2DConditionModel.from_pretrained(tmp_path)
    x, t, cond = latents(2, 4, 4, 4), torch.tensor([499.25, 0.5]), conditioning(2)
    with torch.no_grad():
        assert apart(ours(x, t, cond), reference(x, t, cond.tokens).sample) <= 1e-5
        ours.bfloat16()
        near = ours.embed_time(torch.tensor([998, 999]))
    assert near.dtype == torch.bfloat16 and not torch.equal(near[0], near[1])


def test_padding_is_attended_to_unless_it_is_masked():
    unet, x, t, cond = small_unet(), latents(2, 4, 4, 4), torch.tensor([5, 5]), conditioning(2)
    noisy = Conditioning(torch.where(cond.mask[..., None], cond.tokens, cond.tokens + 1), cond.mask)
    short = Conditioning(cond.tokens[:, :3], cond.mask[:, :3])
    with torch.no_grad():
        assert apart(unet(x, t, noisy), unet(x, t, cond)) > 1e-4
        unet.mask_padding = True
        assert torch.equal(unet(x, t, noisy), unet(x, t, cond))
        assert apart(unet(x, t, cond), unet(x, t, short)) <= 1e-6


def gradients(unet: UNet, dropout_seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    unet.zero_grad()
    torch.manual_seed(dropout_seed)
    out = unet(latents(2, 4, 5, 6), torch.tensor([1, 900]), conditioning(2))
    out.square().sum().backward()
    return out.detach(), {k: p.grad.clone() for k, p in unet.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_memory_and_no_number():
    unet = small_unet(dropout=0.3).train()

    def saved() -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            unet(latents(2, 4, 8, 8), torch.tensor([1, 900]), conditioning(2))
        return sum(sizes)

    plain, plain_saved = gradients(unet, 7), saved()
    unet.enable_gradient_checkpointing()
    checked, checked_saved = gradients(unet, 7), saved()
    assert torch.equal(plain[0], checked[0])
    assert plain[1].keys() == checked[1].keys() == dict(unet.named_parameters()).keys()
    assert all(torch.equal(plain[1][k], checked[1][k]) for k in plain[1])
    assert checked_saved < plain_saved / 2


@pytest.mark.parametrize("keys", [{}, {"encoder_hid_dim": 12}, THREE], ids=["plain", "projector", "three levels"])
def test_cached_text_gives_the_same_floats(keys):
    unet, x = small_unet(**keys), latents(2, 4, 8, 8)
    one, other = conditioning(2, seed=1), conditioning(2, seed=8)
    network_for = cached_text(unet)
    with torch.no_grad():
        for t, cond in [(900, one), (500, one), (500, other), (20, one)]:
            steps = torch.tensor([t, t])
            assert torch.equal(network_for(cond)(x, steps, cond), unet(x, steps, cond))


def test_cached_text_is_computed_once_and_leaves_the_network_alone():
    unet, cond, runs = small_unet(encoder_hid_dim=12), conditioning(1), []
    before = unet.state_dict().keys()
    watched = [m.attn2.to_k for m in unet.modules() if hasattr(m, "attn2")] + [unet.encoder_hid_proj]
    for layer in watched:
        layer.register_forward_hook(lambda *_: runs.append(1))
    network_for = cached_text(unet)
    with torch.no_grad():
        for t in (9, 5, 1):
            network_for(cond)(latents(1, 4, 4, 4), torch.tensor([t]), cond)
    assert len(runs) == len(watched) > 3
    assert unet.state_dict().keys() == before
    with torch.no_grad():
        for p in unet.parameters():
            p.mul_(1.01)
        fresh = unet(latents(1, 4, 4, 4), torch.tensor([1]), cond)
        assert torch.equal(cached_text(unet)(cond)(latents(1, 4, 4, 4), torch.tensor([1]), cond), fresh)


def test_a_compiled_network_is_run_as_it_is():
    unet = small_unet()
    unet.compile()
    assert cached_text(unet)(conditioning(1)) is unet


REFUSED: dict[str, Any] = {
    "only_cross_attention": True,
    "reverse_transformer_layers_per_block": [1, 1],
    "num_attention_heads": 8,
    "dual_cross_attention": True,
    "class_embed_type": "timestep",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "num_class_embeds": 10,
    "resnet_time_scale_shift": "scale_shift",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4,
    "time_embedding_type": "fourier",
    "time_embedding_act_fn": "silu",
    "timestep_post_act": "silu",
    "time_cond_proj_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "attention_type": "gated",
    "class_embeddings_concat": True,
    "mid_block_only_cross_attention": True,
    "cross_attention_norm": "layer_norm",
    "addition_embed_type_num_heads": 32,
    "encoder_hid_dim_type": "image_proj",
    "act_fn": "gelu",
    "down_block_types": ["CrossAttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_num_groups": 7,
    "layers_per_block": [1, 2, 3],
    "attention_head_dim": 3,
    "conv_in_kernel": 4,
    "downsample_padding": 2,
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_built_is_refused_by_name(key):
    with pytest.raises(ValueError, match=f"`{key}"):
        UNetConfig.parse(SMALL | {key: REFUSED[key]}, "unet/config.json")


def test_a_projector_has_a_width():
    with pytest.raises(ValueError, match="`encoder_hid_dim`"):
        UNetConfig.parse(SMALL | {"encoder_hid_dim_type": "text_proj"}, "unet/config.json")
    with pytest.raises(ValueError, match="`cross_attention_dim`"):
        UNetConfig.parse(SMALL | {"encoder_hid_dim": 8, "cross_attention_dim": [12, 12]}, "unet/config.json")
    assert UNetConfig.parse(SMALL | {"encoder_hid_dim": 8}, "here").encoder_hid_dim_type == "text_proj"
