"""Intervals that hold what they promise, biases that are there, and what pairing is worth."""

import numpy as np
import pytest
import torch

from t2i.evaluation.frechet import Moments, Reference, distance
from t2i.evaluation.jackknife import (
    Replicates,
    distances,
    group_by,
    mean_of,
    moments_by_group,
    ratio_of,
    replicates,
)

D = 16
SCALE = torch.arange(1, D + 1).double() ** -0.5
TRUTH = Reference(None, torch.zeros(D).double(), float(SCALE.square().sum()), torch.diag(SCALE))


def draw(n, seed, spread=1.2):
    return spread * SCALE * torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).double()


EXACT = float((0.2 * SCALE).square().sum())  # of spread 1.2 from 1


def groups_of(x):
    return moments_by_group(x, group_by([str(i) for i in range(len(x))]))


def fd(moments):
    return distance(moments, TRUTH).value


def test_the_intervals_cover():
    """Of the distance at n samples the interval about the value; of the true distance the one about `debiased`."""
    n, trials = 400, 100
    found = [replicates(groups_of(draw(n, seed)), fd).estimate() for seed in range(trials)]
    expected = np.mean([e.value for e in found])
    held = np.mean([e.ci95[0] <= expected <= e.ci95[1] for e in found])
    held_truth = np.mean([abs(e.debiased - EXACT) <= (e.ci95[1] - e.ci95[0]) / 2 for e in found])
    assert held >= 0.9
    assert held_truth >= 0.9
    assert np.mean([e.se for e in found]) == pytest.approx(np.std([e.value for e in found]), rel=0.15)
    assert np.mean([e.bias for e in found]) == pytest.approx(expected - EXACT, rel=0.25)
    assert abs(np.mean([e.debiased for e in found]) - EXACT) < 0.2 * (expected - EXACT)


def test_pictures_of_one_prompt_leave_together():
    """Eight copies of each of 50 values: the error of a mean is that of 50, not of 400."""
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    prompts = [f"prompt {i}" for i in range(50)]
    copies, names = values.repeat(8), prompts * 8
    together = mean_of(copies, group_by(names)).estimate()
    apart = mean_of(copies, group_by([f"{name} {i}" for i, name in enumerate(names)])).estimate()
    assert together.se == pytest.approx(values.std().item() / 50**0.5, rel=0.4)
    assert apart.se < 0.6 * together.se
    assert group_by(names).tolist() == group_by(prompts).tolist() * 8
    assert sorted(torch.bincount(group_by(prompts)).tolist()) == [2] * 10 + [3] * 10


def test_one_out_of_twenty_is_the_textbook_error_of_a_mean():
    values = torch.randn(20, generator=torch.Generator().manual_seed(1)).double()
    found = mean_of(values, torch.arange(20)).estimate()
    assert found.se == pytest.approx(values.std().item() / 20**0.5, rel=1e-12)
    assert found.bias == pytest.approx(0, abs=1e-12)
    assert (found.ci95[1] - found.value) / found.se == pytest.approx(2.0930, abs=1e-4)


@pytest.mark.parametrize("n", [14, 400])
def test_replicates_are_those_of_the_samples_left(n):
    x = draw(n, 3)
    places = group_by([str(i) for i in range(n)])
    found = replicates(moments_by_group(x, places), fd)
    assert found.full == pytest.approx(fd(Moments.of(x)), rel=1e-9)
    for g, value in enumerate(found.without):
        assert value == pytest.approx(fd(Moments.of(x[places != g])), rel=1e-7)


def test_pairs_are_sharper_than_strangers():
    x = draw(400, 5)
    near, far = 1.02 * x + 0.05 * draw(400, 6), 1.02 * draw(400, 7)

    def paired(ours, theirs):
        return replicates(groups_of(ours), fd).minus(replicates(groups_of(theirs), fd)).estimate()

    assert paired(near, x).se < 0.5 * paired(far, x).se
    assert paired(x, x) == (0, 0, (0, 0), 0)
    with pytest.raises(ValueError, match="the same prompts"):
        Replicates(1.0, (1.0, 2.0)).minus(Replicates(1.0, (1.0, 2.0, 3.0)))


def infinity(features):
    """FD∞ by Chong & Forsyth (2020): a line in 1/N through FD_N of subsets of 15 sizes, read at 1/N = 0."""
    n = len(features)
    sizes = np.linspace(n // 10, n, 15).astype(int)
    values = [
        fd(Moments.of(features[torch.randperm(n, generator=torch.Generator().manual_seed(m))[:m]]))
        for m in sizes.tolist()
    ]
    return np.polyfit(1 / sizes, values, 1)[1]


def test_debiased_distances_agree_with_a_line_in_one_over_n():
    samples = [draw(2000, seed) for seed in range(8)]
    line = np.mean([infinity(x) for x in samples])
    debiased = np.mean([replicates(groups_of(x), fd).estimate().debiased for x in samples])
    bias = abs(np.mean([fd(Moments.of(x)) for x in samples]) - EXACT)
    assert abs(line - EXACT) < 0.5 * bias and abs(debiased - EXACT) < 0.5 * bias


def test_a_ratio_leaves_out_groups_of_both_sums():
    hits, counts, groups = (
        torch.tensor([1.0, 0, 2, 1]).double(),
        torch.tensor([1.0, 1, 2, 0]).double(),
        torch.tensor([0, 0, 1, 1]),
    )
    assert ratio_of(hits, counts, groups) == Replicates(1.0, (1.5, 0.5))
    assert ratio_of(hits, counts, torch.tensor([0, 0, 0, 1])) == Replicates(1.0, ())


def test_few_samples_are_said_once():
    with pytest.warns(UserWarning, match="10 samples for features of 16") as found:
        distances(groups_of(draw(10, 0)), TRUTH)
    assert len(found) == 1


def test_one_prompt_has_no_interval():
    with pytest.raises(ValueError, match="1 different prompts"):
        group_by(["a", "a", "a"])
