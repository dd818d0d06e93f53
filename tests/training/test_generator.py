"""The U-Net's task: cached latents and text states, dropped captions, Algorithm 1."""

import fcntl
import os
import threading

import pytest
import torch

from t2i import randomness
from t2i.component import read_safetensors
from t2i.data.open import open_source
from t2i.pipeline import Pipeline
from t2i.training.conditioned import validation_places
from t2i.training.generator import GeneratorRecipe, build_caches, load_frozen
from t2i.training.images import open_images
from t2i.training.precompute import whitening_projector

from . import tiny


@pytest.fixture(scope="module")
def task(components, tmp_path_factory):
    values = tiny.unet(tmp_path_factory.mktemp("task"), components, pictures=24, steps=1)
    return tiny.task("unet", values | {"caption_dropout": 0.3})


def test_overfits_four_captioned_pictures(components, tmp_path):
    values = tiny.unet(tmp_path, components, pictures=4, steps=240, global_batch=8, lr=1e-2, ema=0.9)
    values |= {"validation": values["data"], "caption_dropout": 0.1, "sample": {"prompts": ["a red star"], "steps": 2}}
    values["scheduler"] = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
    made = tiny.run("unet", values)
    loss = tiny.curve(tmp_path)
    assert loss[:5].mean() > 0.8 and loss[-30:].mean() < loss[:5].mean() / 1.6
    assert (tmp_path / "samples" / "step_0000240.png").is_file()

    rows = torch.arange(4).repeat(8)
    x0 = made.cache.moments(rows)[0] * made.frozen.vae.config.scaling_factor
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.full((len(rows),), 800)
    with torch.no_grad():
        own, others, null = (
            made.generator.loss(made.generator.unet, x0, cond, {"t": t, "eps": eps}).mean()
            for cond in (
                made.cache.conditioning(rows),
                made.cache.conditioning(rows.roll(1)),
                made.uncond.repeat(len(rows)),
            )
        )
    assert own < 0.75 * others and own < 0.85 * null  # all three are one where captions are not heard

    model = Pipeline.from_pretrained(tmp_path / "model")
    average = read_safetensors(tmp_path / "checkpoints" / "step_0000240" / "unet.ema.safetensors")
    torch.testing.assert_close(model.generator.unet.state_dict(), average, rtol=0, atol=0)
    assert model.text_encoder.fingerprint() == made.frozen.text.fingerprint()


def test_goes_on_as_if_it_had_not_stopped_and_leaves_the_frozen_parts_alone(components, tmp_path):
    keys = {"lr_schedule": "constant", "save_every": 2, "global_batch": 6, "ema": 0.9}
    made = tiny.task("unet", tiny.unet(tmp_path / "straight", components, steps=5, **keys))
    frozen = made.frozen.text.fingerprint(), made.frozen.vae.fingerprint()
    made = tiny.run("unet", tiny.unet(tmp_path / "straight", components, steps=5, **keys))
    assert frozen == (made.frozen.text.fingerprint(), made.frozen.vae.fingerprint())
    assert not any(p.requires_grad for part in (made.frozen.text, made.frozen.vae) for p in part.parameters())

    cached = _stamps(components)
    assert len(cached) >= 6
    for steps in (3, 5):
        tiny.run("unet", tiny.unet(tmp_path / "halves", components, steps=steps, **keys))
    for name in ("unet", "unet.ema", "unet.optimizer"):
        one, two = (
            tmp_path / run / "checkpoints/step_0000005" / f"{name}.safetensors" for run in ("straight", "halves")
        )
        assert one.read_bytes() == two.read_bytes(), name
    assert cached == _stamps(components)  # read, not built again


def _stamps(components) -> dict:
    files = (path for path in (components / "cache").rglob("*.*") if path.name != ".lock")
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_batches_are_functions_of_seed_step_and_sample(task, components, tmp_path):
    pair, alone = task.batch(torch.tensor([3, 20]), 7), task.batch(torch.tensor([20]), 7)
    for name in ("latents", "t", "eps"):
        assert pair[name][1:].equal(alone[name]), name
    assert pair["cond"].tokens[1:].equal(alone["cond"].tokens) and not pair["eps"][0].equal(pair["eps"][1])
    later = task.batch(torch.tensor([20]), 8)
    assert not later["eps"].equal(alone["eps"]) and not later["latents"].equal(alone["latents"])
    other = tiny.task("unet", tiny.unet(tmp_path, components, pictures=24, steps=1) | {"seed": 1})
    assert not other.batch(torch.tensor([20]), 7)["eps"].equal(alone["eps"])
    assert not other.order(0, 8, 1).equal(task.order(0, 8, 0))


def test_captions_are_dropped_for_the_null_in_their_share(task):
    rows = torch.arange(24)
    tokens = torch.stack([task.batch(rows, step)["cond"].tokens for step in range(40)])
    null = task.frozen.text([""]).conditioning.tokens
    dropped = (tokens == null).flatten(2).all(2)
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.05)  # 3.4 standard deviations
    assert dropped.any(0).all() and not dropped.all(0).any()
    kept = task.frozen.text(open_source(task.recipe.data).texts()).conditioning.tokens
    for step in range(3):
        torch.testing.assert_close(tokens[step][~dropped[step]], kept[~dropped[step]], rtol=1e-5, atol=1e-5)


def test_timesteps_noise_and_latents_are_what_algorithm_1_asks_for(task):
    rows = torch.arange(24)
    batches = [task.batch(rows, step) for step in range(80)]
    t = torch.cat([b["t"] for b in batches]).double()
    assert t.min() >= 1 and t.max() <= 1000 and t.min() < 10 and t.max() > 990
    assert t.mean().item() == pytest.approx(500.5, abs=30)
    eps = torch.stack([b["eps"] for b in batches])
    assert eps.mean().abs() < 0.01 and eps.std().item() == pytest.approx(1, abs=0.01)
    mean, logvar = task.cache.moments(rows)
    scaled = torch.stack([b["latents"] for b in batches]) / task.frozen.vae.config.scaling_factor
    z = (scaled - mean) / (logvar / 2).exp()
    assert z.mean().abs() < 0.01 and z.std().item() == pytest.approx(1, abs=0.01)
    assert (z * eps).mean().abs() < 0.01  # the posterior's noise is not the diffusion's


def test_timestep_bias_draws_noisy_steps_more_often(task, components, tmp_path):
    values = tiny.unet(tmp_path, components, pictures=24, steps=1) | {"caption_dropout": 0.3, "timestep_bias": 3.0}
    biased = tiny.task("unet", values)
    rows = torch.arange(24)
    t = torch.cat([biased.batch(rows, step)["t"] for step in range(80)]).double()
    assert t.min() >= 1 and t.max() <= 1000
    for share in (0.5, 0.85):  # P(t <= share T) = share^bias
        assert (t <= share * 1000).double().mean().item() == pytest.approx(share**3, abs=0.05)
    torch.testing.assert_close(biased.batch(rows, 0)["eps"], task.batch(rows, 0)["eps"])


def test_validation_is_deterministic(task):
    with torch.no_grad():
        first = task.validate(task.networks)
        torch.manual_seed(3)
        assert task.validate(task.networks) == first
    assert first["loss"] > 0 and len(first) > 1


def test_validation_is_the_loss_of_scaled_latents(task):
    """By hand, from the same t and noise; on unscaled latents the number would be another."""
    n, schedule = len(task.held_out), task.generator.schedule
    places = validation_places(torch.arange(n)).tolist()
    losses = []
    for row, at in enumerate(places):
        x = task.held_out.moments([row])[0] * task.frozen.vae.config.scaling_factor
        draws = task.generator.draw(x[0], randomness.generator(0, "validation", row), at)
        t = int(draws["t"])
        noisy = schedule.alpha_bar[t].sqrt() * x + (1 - schedule.alpha_bar[t]).sqrt() * draws["eps"]
        with torch.no_grad():
            output = task.networks["unet"](noisy.float(), draws["t"] - 1, task.held_out.conditioning([row]))
        assert task.generator.prediction == "epsilon"
        losses.append((output - draws["eps"]).square().mean().item())
    assert task.frozen.vae.config.scaling_factor != pytest.approx(1, abs=0.05)
    assert task.validate(task.networks)["loss"] == pytest.approx(sum(losses) / n, rel=1e-4)


def test_validation_timesteps_fill_the_range_evenly(task):
    g = torch.Generator()
    places = validation_places(torch.arange(1000)).tolist()
    t = torch.cat([task.generator.draw(torch.zeros(1, 1, 1), g, at)["t"] for at in places])
    assert t.min() >= 1 and t.max() <= 1000
    assert torch.histc(t.double(), 10, 1, 1000).sub(100).abs().max() <= 2
    assert t[:10].sub(1).div(100, rounding_mode="floor").unique().numel() >= 9


def test_projector_whitens_the_states():
    torch.manual_seed(0)
    mixed = torch.randn(20000, 6) * torch.tensor([1.0, 1, 5, 20, 2, 3]) @ torch.randn(6, 6)
    states = mixed + torch.tensor([3.0, -70, 0, 9, 1, 500])
    for out in (4, 6, 9):
        made = whitening_projector(states, torch.randn(out, 6))
        seen = states.double() @ made["weight"].double().T + made["bias"].double()
        assert seen.mean(0).abs().max() < 1e-2
        spectrum = torch.linalg.eigvalsh(seen.T.cov())[-min(out, 6) :]  # more outputs than inputs: the rest is 0
        assert spectrum.max() / spectrum.min() < 3
        assert (
            torch.linalg.eigvalsh(states.double().T.cov()).max()
            > 100 * torch.linalg.eigvalsh(states.double().T.cov()).min()
        )


def test_precompute_builds_what_training_reads(components, tmp_path, capsys):
    values = tiny.unet(tmp_path / "run", components, pictures=5, steps=1) | {"cache": str(tmp_path / "cache")}
    recipe = GeneratorRecipe.model_validate(values)
    caches = build_caches(recipe, load_frozen(recipe))
    assert (len(caches.train), len(caches.validation), caches.short) == (5, 3, None)
    assert "training images: 5 of 5 rows used" in capsys.readouterr().err
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    made = tiny.task("unet", values)
    pictures = open_images(made.recipe.data, 16, "", quiet=True)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    with torch.no_grad():
        posterior = made.frozen.vae.encode(pictures.batch(list(range(5))))
    torch.testing.assert_close(made.cache.moments(torch.arange(5))[0], posterior.mean, rtol=1e-4, atol=1e-5)


FORMS = [{"match": r"(?P<head>.+?),? on (?:a )?(?P<ground>\w+)(?: background)?", "use": ["{head}", "{head}, {ground}"]}]


def shortening(components, tmp_path, **captions):
    values = tiny.unet(tmp_path / "run", components, pictures=32, steps=1) | {"caption_dropout": 0.0}
    return tiny.task("unet", values | {"captions": {"forms": FORMS} | captions})


def test_captions_are_shortened_as_often_as_the_recipe_says(components, tmp_path):
    """Always one of a caption's own shorter forms, whatever the batch; the other draws stay what they were."""
    task, plain = shortening(components, tmp_path, shorten=0.5), shortening(components, tmp_path, shorten=0.0)
    captions = open_source(task.recipe.data).texts()
    forms = [task.recipe.captions.shorter(caption) for caption in captions]
    assert 8 < sum(map(bool, forms)) < 32
    rows, replaced = torch.arange(32), 0
    for step in range(20):
        batch, expected = task.batch(rows, step), plain.batch(rows, step)
        assert all(torch.equal(batch[key], expected[key]) for key in ("latents", "t", "eps"))
        halves = [task.batch(half, step)["cond"].tokens for half in rows.split(16)]
        assert torch.equal(torch.cat(halves), batch["cond"].tokens)
        for row, (states, whole) in enumerate(zip(batch["cond"].tokens, expected["cond"].tokens, strict=True)):
            if not torch.equal(states, whole):
                replaced += 1
                encoded = task.frozen.text(forms[row]).conditioning.tokens
                assert any(torch.allclose(states, form, atol=1e-5) for form in encoded), captions[row]
    possible = 20 * sum(map(bool, forms))
    assert abs(replaced / possible - 0.5) < 5 * (0.25 / possible) ** 0.5


def test_captions_without_a_shorter_form_are_refused(components, tmp_path):
    with pytest.raises(ValueError, match=r"captions\.shorten = 0\.5: none of the 32 captions has a shorter form"):
        shortening(components, tmp_path, shorten=0.5, forms=[{"match": "x", "use": ["y"]}])


def test_the_cache_is_built_by_one_process_at_a_time(components, tmp_path):
    values = tiny.unet(tmp_path / "run", components, pictures=4, steps=1) | {"cache": str(tmp_path / "cache")}
    (tmp_path / "cache").mkdir()
    with (tmp_path / "cache" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=tiny.task, args=("unet", values))
        waiting.start()
        waiting.join(2)
        assert waiting.is_alive() and os.listdir(tmp_path / "cache") == [".lock"]
    waiting.join(60)
    assert not waiting.is_alive() and len(os.listdir(tmp_path / "cache")) == 3


def test_a_size_that_does_not_fit_the_autoencoder_is_refused(components, tmp_path):
    with pytest.raises(ValueError, match="size = 17: not a multiple of the autoencoder's factor 2"):
        tiny.task("unet", tiny.unet(tmp_path, components, steps=1) | {"size": 17})
