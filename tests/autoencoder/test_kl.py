"""AutoencoderKL against diffusers' own, its config and its files."""

import json

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersKL
from safetensors.torch import load_file, save_file
from torch.distributions import Normal, kl_divergence

from t2i.autoencoder.kl import AutoencoderKL, AutoencoderKLConfig, Gaussian

WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL = {
    "block_out_channels": (16, 24, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "sample_size": 16,
}
CONFIGS = {
    "default": SMALL,
    "plain": SMALL | {"mid_block_add_attention": False, "use_quant_conv": False, "use_post_quant_conv": False},
    "deep": SMALL | {"layers_per_block": 2, "latent_channels": 3, "in_channels": 1, "out_channels": 2},
    "quant only": SMALL | {"use_post_quant_conv": False, "scaling_factor": 0.5, "force_upcast": False},
}
STABLE_DIFFUSION = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}


def shaken(network):
    """Every parameter random: no norm is the identity, no bias zero, and activations stay of order one."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else parameter + 0.1 * noise)
    return network.eval()


def apart(ours, reference):
    return float((ours - reference).abs().max() / reference.abs().max())


@torch.no_grad()
def assert_same(ours, reference, size=(16, 24)):
    x = torch.rand(2, reference.config.in_channels, *size) * 2 - 1
    posterior, theirs = ours.encode(x), reference.encode(x).latent_dist
    assert posterior.mean.shape == theirs.mean.shape
    assert apart(posterior.mean, theirs.mean) <= 1e-5
    assert apart(posterior.logvar, theirs.logvar) <= 1e-5
    z, eps = torch.randn(2, *theirs.mean.shape[1:]), torch.randn(2, *theirs.mean.shape[1:])
    assert apart(ours.decode(z), reference.decode(z).sample) <= 1e-5
    reconstruction, _ = ours(x, eps)
    assert apart(reconstruction, reference.decode(theirs.mean + theirs.std * eps).sample) <= 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_our_folder_runs_in_diffusers(name, tmp_path):
    ours = shaken(AutoencoderKL(AutoencoderKLConfig(**CONFIGS[name])))
    ours.save(tmp_path / "vae")
    reference, info = DiffusersKL.from_pretrained(tmp_path / "vae", output_loading_info=True)
    assert not any(info.values())
    assert_same(ours, reference)


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_folder_runs_in_ours(name, tmp_path):
    reference = shaken(DiffusersKL(**CONFIGS[name]))
    reference.save_pretrained(tmp_path / "vae")
    ours = AutoencoderKL.load(tmp_path / "vae")
    assert not ours.training
    assert_same(ours, reference)
    ours.save(tmp_path / "again")
    first, again = load_file(tmp_path / "vae" / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.slow
def test_stable_diffusions_own_size(tmp_path):
    reference = shaken(DiffusersKL(**STABLE_DIFFUSION))
    reference.save_pretrained(tmp_path / "vae")
    ours = AutoencoderKL.load(tmp_path / "vae")
    assert len(ours.state_dict()) == 248
    assert sum(p.numel() for p in ours.parameters()) == 83_653_863
    assert ours.factor == 8
    assert_same(ours, reference, size=(64, 96))


def test_a_file_with_every_default_left_out(tmp_path):
    reference = shaken(DiffusersKL())
    reference.save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert_same(AutoencoderKL.load(tmp_path / "vae"), reference)


def test_the_defaults_are_those_of_diffusers():
    reference = {key: value for key, value in DiffusersKL().config.items() if not key.startswith("_")}
    assert AutoencoderKLConfig().model_dump() == reference


@pytest.mark.parametrize("squeezed", [True, False])
def test_old_attention_names(squeezed, tmp_path):
    ours = shaken(AutoencoderKL(AutoencoderKLConfig(**SMALL)))
    ours.save(tmp_path / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(tmp_path / "vae" / WEIGHTS)
    for new, name in old.items():
        for key in [key for key in state if f".attentions.0.{new}." in key]:
            tensor = state.pop(key)
            tensor = tensor if squeezed or tensor.ndim == 1 else tensor[:, :, None, None].contiguous()
            state[key.replace(new, name)] = tensor
    save_file(state, tmp_path / "vae" / WEIGHTS)
    again = AutoencoderKL.load(tmp_path / "vae")
    assert again.fingerprint() == ours.fingerprint()


def test_faulty_keys_are_listed(tmp_path):
    AutoencoderKL(AutoencoderKLConfig(**SMALL)).save(tmp_path / "vae")
    state = load_file(tmp_path / "vae" / WEIGHTS)
    state.pop("encoder.conv_in.weight")
    state["encoder.extra"] = torch.zeros(1)
    state["quant_conv.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "vae" / WEIGHTS)
    with pytest.raises(ValueError, match=r"(?s)missing encoder\.conv_in\.weight.*unexpected encoder\.extra") as error:
        AutoencoderKL.load(tmp_path / "vae")
    assert "quant_conv.bias has shape (3,), config.json asks for (8,)" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "`act_fn` = 'gelu' is not supported \\(only 'silu'\\)"),
        ({"shift_factor": 0.1}, "`shift_factor` = 0.1 is not supported \\(only None\\)"),
        ({"latents_mean": [0.0] * 4}, "`latents_mean` = .* is not supported"),
        ({"latents_std": [1.0] * 4}, "`latents_std` = .* is not supported"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "`down_block_types` = .*only 'DownEncoderBlock2D'"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 3}, "`up_block_types` = .*only 'UpDecoderBlock2D'"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 2}, "`up_block_types` = .*once for each of the 3"),
        ({"norm_num_groups": 5}, "holds 16, not a multiple of `norm_num_groups` = 5"),
        ({"block_out_channels": []}, "block_out_channels"),
        ({"block_out_channels": 3}, "block_out_channels"),
        ({"scaling_factor": 0}, "scaling_factor"),
        ({"latent_chanels": 4}, "unknown key `latent_chanels`; did you mean `latent_channels`"),
    ],
)
def test_configs_that_are_refused(change, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL | change))
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        AutoencoderKL.load(tmp_path)


def test_block_types_are_filled_in():
    config = AutoencoderKLConfig(block_out_channels=(32, 64))
    assert config.down_block_types == ("DownEncoderBlock2D",) * 2
    assert config.up_block_types == ("UpDecoderBlock2D",) * 2


@pytest.mark.parametrize("size", [(16, 18), (18, 16)])
def test_a_side_that_the_factor_does_not_divide(size):
    network = AutoencoderKL(AutoencoderKLConfig(**SMALL))
    assert network.factor == 4
    with pytest.raises(ValueError, match="multiples of 4"):
        network.encode(torch.zeros(1, 3, *size))


def test_kl_is_that_of_torch_distributions():
    mean, logvar = 2 * torch.randn(3, 4, 2, 5), torch.randn(3, 4, 2, 5)
    closed = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(Gaussian(mean, logvar).kl(), closed.sum(dim=(1, 2, 3)))
    torch.testing.assert_close(Gaussian(mean, logvar).kl_map(), closed)


def test_samples_have_the_mean_and_the_variance():
    mean, logvar = torch.full((1, 1, 300, 300), 0.5), torch.full((1, 1, 300, 300), -1.2)
    z = Gaussian(mean, logvar).sample(torch.randn(1, 1, 300, 300, generator=torch.Generator().manual_seed(0)))
    assert float(z.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(z.var().log()) == pytest.approx(-1.2, abs=0.02)


def test_logvar_is_clamped():
    network = AutoencoderKL(AutoencoderKLConfig(**SMALL))
    with torch.no_grad():
        network.quant_conv.bias[4:6], network.quant_conv.bias[6:] = 1e4, -1e4
        logvar = network.encode(torch.zeros(1, 3, 16, 16)).logvar
    assert logvar[:, :2].unique().tolist() == [20.0]
    assert logvar[:, 2:].unique().tolist() == [-30.0]


def test_every_parameter_learns_from_one_forward():
    network = shaken(AutoencoderKL(AutoencoderKLConfig(**SMALL)))
    reconstruction, posterior = network(torch.rand(2, 3, 16, 16), torch.randn(2, 4, 4, 4))
    (reconstruction.square().mean() + posterior.kl().mean()).backward()
    # A bias of the keys shifts every score of a query alike, and softmax does not see it.
    still = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-7]
    assert all(name.endswith("to_k.bias") for name in still)


def test_channels_last_gives_the_same_images():
    network, x = shaken(AutoencoderKL(AutoencoderKLConfig(**SMALL))), torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        mean = network.encode(x).mean
        image = network.decode(mean)
        network.to(memory_format=torch.channels_last)
        assert apart(network.encode(x.to(memory_format=torch.channels_last)).mean, mean) <= 1e-5
        assert apart(network.decode(mean), image) <= 1e-5
