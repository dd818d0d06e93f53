"""A model's bound: against Algorithm 2's own Gaussians picture by picture, what captions tell, and intervals."""

import math

import pytest
import torch
from pipeline.tiny import CAPTIONS, make_pipeline, make_unet
from scipy import stats
from torch.distributions import Normal, kl_divergence

from t2i import randomness
from t2i.conditioning import Conditioning
from t2i.data.transforms import to_float
from t2i.diffusion import bound, ddpm
from t2i.diffusion.prediction import to_prediction
from t2i.evaluation.bound import latent_bound, pixel_bound
from t2i.evaluation.jackknife import interval, student
from t2i.generator.latent_diffusion import LatentDiffusion

T, SEED = 12, 5
TEXTS = [*CAPTIONS, CAPTIONS[0]]
PICTURES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def make(**scheduler):
    return make_pipeline(scheduler={"num_train_timesteps": T, "beta_schedule": "squaredcos_cap_v2"} | scheduler)


@pytest.fixture(scope="module")
def pipeline():
    return make(prediction_type="v_prediction")


def measured(pipeline, captions=TEXTS, **options):
    return latent_bound(pipeline, PICTURES.__getitem__, captions, seed=SEED, quiet=True, **options)


@torch.no_grad()
def by_hand(pipeline, caption: str, i: int, sigma2: torch.Tensor) -> float:
    """The bound of picture i, term by term from the network's means, with torch.distributions."""
    generator, schedule = pipeline.generator, pipeline.generator.schedule
    posterior = pipeline.autoencoder.encode(PICTURES[i : i + 1])
    shape = posterior.mean.shape[1:]
    x0 = posterior.sample(randomness.normal(shape, SEED, "bound", i, "latent")[None]) * 0.7
    cond = pipeline.text_encoder([caption]).conditioning
    first = schedule.level(T)
    total = kl_divergence(Normal(first.alpha * x0, first.sigma), Normal(0.0, 1.0)).mean()
    for column, t in enumerate(range(1, T + 1)):
        level, before = schedule.level(t), schedule.level(t - 1)
        eps = randomness.normal(shape, SEED, "bound", i, column)[None]
        x = level.alpha * x0 + level.sigma * eps
        output = generator.unet(x, torch.tensor([t - 1.0]), cond)
        guess = to_prediction(output, x, level, generator.prediction).x0
        p = Normal(ddpm.posterior(guess, x, level, before)[0], sigma2[t].sqrt().float())
        mean, variance = ddpm.posterior(x0, x, level, before)
        term = -p.log_prob(x0) if t == 1 else kl_divergence(Normal(mean, math.sqrt(variance)), p)
        total = total + term.mean()
    return total.item()


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_it_is_the_sum_of_the_network_s_own_gaussians(kind):
    pipeline = make(prediction_type=kind)
    report = measured(pipeline, draws=T)
    for variance, name, caption in (("beta", "caption", TEXTS[2]), ("beta_tilde", "null", "")):
        sigma2 = bound.variances(pipeline.generator.schedule, variance)
        found = report.terms(variance, name).total[2].item()
        assert found == pytest.approx(by_hand(pipeline, caption, 2, sigma2), rel=1e-4)


def test_no_variance_is_better_than_the_optimal_one(pipeline):
    report = measured(pipeline, draws=T)
    for name in ("caption", "null"):
        best = report.terms("optimal", name).total.mean()
        assert all(best < report.terms(variance, name).total.mean() for variance in ("beta", "beta_tilde"))
        table = report.measured.mean_errors(name)
        torch.testing.assert_close(table[1:], report.measured.errors[name].mean(0))


def test_batches_change_nothing_and_a_part_of_the_t_estimates_all(pipeline):
    every, part = measured(pipeline, draws=T, batch_size=2), measured(pipeline, draws=T, batch_size=5)
    torch.testing.assert_close(every.terms().total, part.terms().total, rtol=1e-5, atol=1e-6)
    drawn = measured(pipeline, draws=6)
    assert drawn.measured.draws.t.shape == (5, 7)
    assert drawn.terms("beta").total.mean().item() == pytest.approx(every.terms("beta").total.mean().item(), rel=0.2)
    for report in (every, drawn):
        terms = report.terms()
        torch.testing.assert_close(torch.stack(list(terms.curve.values())).sum(0), terms.denoising)


def test_what_captions_tell_is_the_difference_on_the_same_noise(pipeline):
    report = measured(pipeline, draws=6, contrast=TEXTS[::-1])
    for variance in bound.VARIANCES:
        nats = report.terms(variance, "null").total - report.terms(variance).total
        torch.testing.assert_close(report.caption_info(variance), nats * 4 * 8 * 8 / math.log(2))
    assert report.caption_info().abs().min() > 0
    assert report.caption_info("beta", "contrast")[2].item() == 0  # the middle caption stays where it is
    nothing = measured(pipeline, ["", "", "", "", "a"], draws=6)
    assert nothing.caption_info("beta")[:4].tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="the bound was not measured under 'contrast'"):
        nothing.caption_info(than="contrast")


def test_rows_say_what_they_are(pipeline):
    rows = measured(pipeline, draws=6).rows()
    info = [row for row in rows if row["metric"] == "caption_info"]
    assert {row["variance"] for row in info} == set(bound.VARIANCES)
    for row in info:
        assert row["unit"] == "bits/picture" and row["ci95"][0] < row["value"] < row["ci95"][1] and row["n"] == 5
    main = {row["metric"]: row for row in rows if row["variance"] == "beta" and row.get("conditioning") == "caption"}
    parts = [main[f"vlb_{part}"]["value"] for part in ("prior", "denoising", "reconstruction")]
    assert main["vlb"]["value"] == pytest.approx(sum(parts)) and main["vlb"]["unit"] == "nats/dim"
    curve = [row for row in rows if row["metric"] == "vlb_t" and row["variance"] == "beta"]
    assert curve[0]["t"][0] == 2 and curve[-1]["t"][1] == T


def test_long_captions_are_counted(pipeline):
    with pytest.warns(UserWarning, match=r"1 captions are longer than the text encoder's 12 tokens"):
        report = measured(pipeline, [*TEXTS[:4], "a red circle and a blue square on grey " * 3], draws=1)
    assert report.truncated == 1


def test_bad_input(pipeline):
    with pytest.raises(ValueError, match="1 images"):
        latent_bound(pipeline, PICTURES.__getitem__, ["a"], quiet=True)
    with pytest.raises(ValueError, match="contrast has 1 captions for 5"):
        measured(pipeline, contrast=["a"])
    with pytest.raises(ValueError, match="2 different captions"):
        measured(pipeline, ["a"] * 5, draws=1).rows()
    with pytest.raises(ValueError, match="inpainting"):
        measured(make_pipeline(unet={"in_channels": 9}))
    broken = PICTURES.clone()
    broken[3] = math.nan
    with pytest.raises(RuntimeError, match="VAE put out non-finite"):
        latent_bound(pipeline, broken.__getitem__, TEXTS, draws=1, quiet=True)


@torch.no_grad()
def test_pixels_have_bits():
    unet = make_unet(in_channels=3, out_channels=3, sample_size=8, encoder_hid_dim=None)
    generator = LatentDiffusion(unet, make().generator.schedule, "epsilon")
    x0 = to_float(torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8))
    cond = Conditioning(torch.randn(4, 2, 24), torch.ones(4, 2).bool())
    report = pixel_bound(generator, x0, cond, cond[:1], torch.arange(4), draws=T, seed=SEED, quiet=True)
    level = generator.schedule.level(1)
    eps = torch.stack([randomness.normal((3, 8, 8), SEED, "bound", i, 0) for i in range(4)])
    x = level.alpha * x0 + level.sigma * eps
    mean = to_prediction(unet(x, torch.zeros(4), cond), x, level, "epsilon").x0
    for variance in ("beta", "beta_tilde"):
        p = Normal(mean.double(), bound.variances(generator.schedule, variance)[1].sqrt())
        low = torch.where(x0 < -0.999, -torch.inf, x0.double() - 1 / 255)
        high = torch.where(x0 > 0.999, torch.inf, x0.double() + 1 / 255)
        mass = p.cdf(high) - p.cdf(low)
        torch.testing.assert_close(
            report.terms(variance).reconstruction, -mass.log().flatten(1).mean(1), rtol=1e-6, atol=0
        )
    assert {row["unit"] for row in report.rows() if row["metric"] == "vlb"} == {"bits/dim"}
    nats = report.terms("beta").total.mean().item()
    row = next(row for row in report.rows() if row["metric"] == "vlb" and row["variance"] == "beta")
    assert row["value"] == pytest.approx(nats / math.log(2)) and nats > 0


def test_intervals_leave_out_one_group_after_the_other():
    values = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value, se, ci95 = interval(values, torch.arange(12))
    assert value == pytest.approx(values.mean().item()) and se == pytest.approx(values.std().item() / math.sqrt(12))
    assert ci95 == pytest.approx(stats.t.interval(0.95, 11, value, se), rel=1e-4)
    groups = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 4])
    left = [values[groups != g].mean().item() for g in range(5)]
    wanted = math.sqrt(4 / 5 * sum((x - sum(left) / 5) ** 2 for x in left))
    assert interval(values, groups)[1] == pytest.approx(wanted)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 19, 400])
def test_student(df):
    assert student(df) == pytest.approx(stats.t.ppf(0.975, df), rel=3e-3)
