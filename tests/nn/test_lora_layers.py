"""LoRA on our own networks: what is trained, what stays, what is refused."""

import subprocess
import sys

import pytest
import torch
from pipeline.tiny import apart, make_pipeline, make_text, make_unet

from t2i.conditioning import Conditioning
from t2i.config import explain
from t2i.nn.lora import (
    LoraConfig,
    LoraLayer,
    adaptable_layers,
    add_lora,
    apply_adapter,
    lora_state,
    loras_of,
    merge_adapter,
    remove_lora,
    set_lora_weights,
)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def inputs():
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 12, 32, generator=draw)
    cond = Conditioning(tokens, torch.ones(2, 12, dtype=torch.bool))
    return torch.randn(2, 4, 8, 8, generator=draw), torch.tensor([7.0, 900.0]), cond


def test_only_the_lora_is_trained():
    unet = make_unet()
    before, plain = {k: v.clone() for k, v in unet.state_dict().items()}, unet(*inputs())
    parameters = add_lora(unet, LoraConfig(rank=3))
    # Closed form: rank times the inputs and outputs of every attention's layers.
    layers = [m for name, m in make_unet().named_modules() if name.endswith(ATTENTION)]
    expected = sum(3 * (m.in_features + m.out_features) for m in layers if isinstance(m, torch.nn.Linear))
    assert sum(p.numel() for p in parameters) == expected
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in parameters}
    assert torch.equal(unet(*inputs()), plain)
    optimizer = torch.optim.SGD(parameters, lr=100.0)
    for _ in range(2):  # the first step moves `up` alone, which begins at zero
        optimizer.zero_grad()
        unet(*inputs()).square().mean().backward()
        optimizer.step()
    assert all(change.up.abs().max() > 0 for change in lora_state(unet).values())
    trained = unet(*inputs())
    assert apart(trained, plain) > 1e-3
    state = {k: LoraLayer(c.down.clone(), c.up.clone(), c.alpha) for k, c in lora_state(unet).items()}
    remove_lora(unet)
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())
    assert torch.equal(unet(*inputs()), plain)
    apply_adapter(unet, state, name="again")
    assert apart(unet(*inputs()), trained) <= 1e-6
    assert not any(p.requires_grad for p in unet.parameters())


def test_seeds():
    unets = [make_unet() for _ in range(3)]

    def down(seed):
        unet = unets.pop()
        add_lora(unet, LoraConfig(), seed)
        return next(iter(lora_state(unet).values())).down

    torch.manual_seed(3)
    first, drawn = down(1), torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))  # the global stream is not touched
    assert torch.equal(first, down(1))
    assert not torch.equal(first, down(2))


def test_scale_is_alpha_over_rank_and_weights_count():
    unet = make_unet()
    add_lora(unet, LoraConfig(rank=2, alpha=5.0, targets=("attention", "projections"), conv_rank=3, conv_alpha=1.5))
    draw = torch.Generator().manual_seed(1)
    state = {k: c._replace(up=0.1 * torch.randn(c.up.shape, generator=draw)) for k, c in lora_state(unet).items()}
    remove_lora(unet)
    kinds = {type(adaptable_layers(unet)[name]).__name__: change for name, change in state.items()}
    assert (kinds["Linear"].alpha, kinds["Linear"].rank) == (5.0, 2)
    name = "down_blocks.0.resnets.0.conv1"
    x, conv = torch.randn(1, 32, 6, 6, generator=draw), adaptable_layers(unet)[name]
    plain = conv(x)
    expected = plain + 0.5 * (0.7 - 0.2) * torch.nn.functional.conv2d(
        torch.nn.functional.conv2d(x, state[name].down, padding=1), state[name].up
    )
    apply_adapter(unet, state, 1.0, "a")
    apply_adapter(unet, {name: state[name]}, -0.2, "b")
    set_lora_weights(unet, {"a": 0.7})
    assert loras_of(unet) == ["a", "b"]
    assert apart(unet.get_submodule(name)(x), expected) <= 1e-5
    remove_lora(unet)
    merge_adapter(unet, {name: state[name]}, 0.5)
    assert apart(adaptable_layers(unet)[name](x), expected) <= 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_acts_in_training_alone(dropout):
    unet = make_unet()
    add_lora(unet, LoraConfig(dropout=dropout))
    with torch.no_grad():
        for change in lora_state(unet).values():
            change.up.fill_(0.1)
    assert torch.equal(unet(*inputs()), unet(*inputs()))
    unet.train()
    assert torch.equal(unet(*inputs()), unet(*inputs())) == (dropout == 0)


def test_text_encoder():
    text = make_text()
    before = text(["a red circle"]).conditioning.tokens
    add_lora(text.tower, LoraConfig(rank=2, targets=("attention", "feed_forward")))
    state = lora_state(text.tower)
    assert {name.split(".")[-1] for name in state} == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    assert torch.equal(text(["a red circle"]).conditioning.tokens, before)
    with pytest.raises(ValueError, match="carries the LoRA default: clip skip needs an encoder without one"):
        text.with_clip_skip(2)


def test_rank_beyond_a_layer_names_it():
    with pytest.raises(ValueError, match=r"rank = 25: the layer down_blocks\.0\.\S+\.attn2\.to_k takes 24 .* 24 is"):
        add_lora(make_unet(), LoraConfig(rank=25))
    with pytest.raises(ValueError, match=r"conv_rank = 33: the layer \S+resnets\.0\.conv1 takes 288"):
        add_lora(make_unet(), LoraConfig(conv_rank=33))


def test_refusals(tmp_path):
    pipeline = make_pipeline()
    unet = pipeline.generator.unet
    with pytest.raises(ValueError, match="has no layer for targets = attention"):
        add_lora(torch.nn.Linear(3, 3), LoraConfig())
    with pytest.raises(ValueError, match="carries no LoRA 'default'; it has none"):
        lora_state(unet)
    add_lora(unet, LoraConfig())
    state = lora_state(unet)
    with pytest.raises(ValueError, match="carries the LoRA default: a second one is not trained"):
        add_lora(unet, LoraConfig())
    with pytest.raises(ValueError, match="merge before one is applied"):
        merge_adapter(unet, state)
    with pytest.raises(ValueError, match="carries a LoRA 'default' already"):
        apply_adapter(unet, state)
    with pytest.raises(ValueError, match="letters, digits"):
        apply_adapter(unet, state, name="v1.5")
    with pytest.raises(ValueError, match="no LoRA 'x'; UNet has"):
        set_lora_weights(unet, {"x": 1})
    with pytest.raises(ValueError, match="UNet carries the LoRA default: merge it into the weights"):
        pipeline.save_pretrained(tmp_path / "model")
    assert not any(tmp_path.iterdir())
    remove_lora(unet)
    pipeline.save_pretrained(tmp_path / "model")
    huge = {name: change._replace(up=torch.full_like(change.up, 1e30), alpha=1e30) for name, change in state.items()}
    with pytest.raises(ValueError, match="its weight is not finite"):
        merge_adapter(unet, huge)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network_dim": 3, "rank": 1}, "network_dim and rank are the same"),
        ({"rnk": 2}, "unknown key `rnk`; did you mean `rank`?"),
        ({"conv_alpha": 1}, "set conv_rank too"),
        ({"rank": 0}, "`rank`"),
        ({"targets": ["resnets"]}, "`targets.0`"),
        ({"targets": []}, "`targets`"),
        ({"network_alpha": float("nan")}, "`alpha`"),
    ],
)
def test_bad_config(values, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        LoraConfig.model_validate(values)
    assert message in explain(error.value, LoraConfig)  # pyright: ignore[reportArgumentType]


def test_names_of_kohya():
    found = LoraConfig.model_validate({"network_dim": 8, "network_alpha": 4, "conv_dim": 2})
    assert found == LoraConfig(rank=8, alpha=4, conv_rank=2)


@pytest.mark.slow  # another interpreter
def test_peft_is_not_loaded_before_it_is_needed():
    code = (
        "import sys, t2i.pipeline.run_jobs, t2i.pipeline.conversion, t2i.interop.lora; assert 'peft' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
