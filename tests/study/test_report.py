"""The report: slopes with seeds as the unit, the sensitivity check before any word, points that lead to their rows."""

import io
import json
import math
import re
import warnings

import pytest
import torch
from PIL import Image

from t2i.evaluation.jackknife import Replicates
from t2i.study import conclusions, contrasts, figures, report
from t2i.study.results import read_results, write_results
from tests.study.synthetic import row, write_study


def concluded(folder, **truth) -> str:
    write_study(folder, **truth)
    return " ".join(conclusions.conclusion(read_results(folder)))


def test_slope_is_that_of_the_truth_and_its_interval_holds_it(tmp_path):
    write_study(tmp_path, encoder_slope=0.1, unet_slope=0.02)
    results = read_results(tmp_path)
    encoders = contrasts.points(results, "encoder", "binding")["ladder"]
    assert [p.parameters for p in encoders] == [50_000, 500_000, 5_000_000]
    found = contrasts.slope(encoders)
    assert found is not None and found.seeds == 3
    assert found.half is not None and abs(found.value - 0.1) < found.half < 0.02
    unets = contrasts.points(results, "unet", "binding")["U-Nets"]
    assert [p.name for p in unets] == ["tiny", "base", "wide"]
    between = contrasts.slope_difference(encoders, unets)
    assert between is not None and between.sign == 1 and abs(between.value - 0.08) < 0.02


def alone(*values):
    return [Replicates(value, ()) for value in values]


def test_interval_over_seeds_is_students():
    found = contrasts.over_seeds(alone(1.0, 2.0, 3.0))
    assert found.value == 2 and found.half == pytest.approx(4.302652730 / math.sqrt(3)) and not found.captions
    assert (
        found.sign == 0 and contrasts.over_seeds(alone(1.0)).half is None and contrasts.over_seeds(alone(1.0)).sign == 0
    )


def test_what_other_captions_would_change_is_in_an_interval():
    """It is the same for all seeds, which draw the same captions, so it does not show between them."""
    without = (0.1 * torch.randn(20, generator=torch.Generator().manual_seed(0)).double()).tolist()
    each = [Replicates(x, tuple(x + w for w in without)) for x in (1.0, 2.0, 3.0)]
    found, captions = contrasts.over_seeds(each), each[0].estimate()
    assert found.captions and found.half == pytest.approx(
        math.hypot(4.302652730 / math.sqrt(3), captions.ci95[1] - captions.value)
    )
    same = contrasts.over_seeds([each[0]] * 3)
    assert same.half == pytest.approx(captions.ci95[1] - captions.value)
    assert not contrasts.over_seeds([*each, *alone(2.0)]).captions


def test_intervals_hold_the_truth_where_seeds_share_their_captions():
    """A nominal 95%, of 400 studies of three seeds whose captions shift all of them alike."""
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        pictures = torch.randn(3, 20, 10, generator=generator) + torch.randn(20, 10, generator=generator)
        pictures += 0.1 * torch.randn(3, 1, 1, generator=generator)
        groups = pictures.double().mean(2)
        each = [Replicates(g.mean().item(), tuple(((g.sum() - g) / 19).tolist())) for g in groups]
        found = contrasts.over_seeds(each)
        assert found.half is not None
        hits += abs(found.value) <= found.half
    assert hits >= 0.93 * 400


def test_slopes_are_of_the_sizes_that_the_seeds_share():
    """A curve without any noise has no interval, though one seed has an inner size more."""
    numbers = {50_000: 0.2, 500_000: 0.6, 5_000_000: 0.6}
    seeds = {50_000: (0, 1, 2), 500_000: (0,), 5_000_000: (0, 1, 2)}
    group = [
        contrasts.Point(str(p), p, {}, {seed: Replicates(value, ()) for seed in seeds[p]})
        for p, value in numbers.items()
    ]
    found = contrasts.slope(group)
    assert found is not None and found.value == pytest.approx(0.2) and found.half == pytest.approx(0, abs=1e-12)
    assert [p.name for p in contrasts.shared_sizes(group)] == ["50000", "5000000"]
    assert len(contrasts.shared_sizes(group[:1])) == 1


def test_a_seed_with_two_sizes_has_a_slope_and_one_with_one_has_none(tmp_path):
    write_study(tmp_path)
    [group] = [g for f, g in contrasts.points(read_results(tmp_path), "encoder", "binding").items() if f]
    del group[1].each[1], group[0].each[2], group[1].each[2]
    assert sorted(contrasts.slopes_by_seed(group)) == [0, 1]


def test_says_what_the_slopes_are(tmp_path):
    said = concluded(tmp_path, encoder_slope=0.1, unet_slope=0.0)
    assert said.startswith("The set-up can see an effect: oracle against null is 0.9")
    assert re.search(r"binding rises by 0\.1\d* \[0\.0\d+, 0\.1\d+\] per decade of ladder encoder parameters", said)
    assert "No difference in binding with size" in said and "per decade of U-Net parameters" in said
    assert "A decade of ladder encoder does more for binding than one of U-Net" in said
    assert re.search(r"FD falls by 0\.\d+", said) and "does more for FD" in said
    assert "large has more binding than bag" in said


def test_says_no_difference_where_there_is_none(tmp_path):
    said = concluded(tmp_path, encoder_slope=0.0, unet_slope=0.0)
    assert "rises" not in said and "falls" not in said and "does more" not in said
    assert "No difference in binding between large and bag" in said


@pytest.mark.parametrize("truth", [{"effect": 0.02}, {"fd_effect": 0.02}, {"fd_effect": -1.0}])
def test_says_nothing_of_size_where_the_set_up_sees_nothing(tmp_path, truth):
    said = concluded(tmp_path, **truth)
    assert said.startswith("Not sensitive enough: ") and "decade" not in said and said.count(". ") == 0


def test_says_where_a_ladder_is_near_the_floor(tmp_path):
    assert "near that floor" not in concluded(tmp_path / "a", encoder_slope=0.1)
    said = concluded(tmp_path / "b", encoder_slope=0.01, start=0.1, fd_effect=2.0)
    assert "No ladder encoder is 5 standard errors better than null in binding (the best is" in said
    assert said.index("near that floor") < said.index("per decade of ladder encoder") and "null in FD" not in said


def test_scenes_that_are_wholly_right_have_slopes_too(tmp_path):
    write_study(tmp_path, encoder_slope=0.1, exact=True)
    results = read_results(tmp_path)
    assert contrasts.compared(results) == ["binding", "exact", "fd"]
    said = " ".join(conclusions.conclusion(results))
    assert re.search(r"exact rises by 0\.05\d* \[0\.0\d+, 0\.0\d+\] per decade of ladder encoder", said)


def test_a_studys_folder_is_as_good_as_that_of_its_rows(tmp_path):
    write_study(tmp_path / "report")
    assert report.write(tmp_path) == report.write(tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file() and not (tmp_path / "report.html").exists()


def test_one_seed_has_no_interval_and_nothing_follows(tmp_path):
    said = concluded(tmp_path, seeds=1)
    assert "one seed has no interval, so nothing follows" in said and "rises" not in said


def test_a_study_without_its_ends_cannot_tell(tmp_path):
    assert concluded(tmp_path, oracle=False) == "Not sensitive enough: oracle and null have not both been evaluated."
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "a decade [95%]" not in page and "Slopes" not in page


def test_every_point_leads_to_its_row_and_that_to_its_run(tmp_path):
    write_study(tmp_path)
    said = report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "report.html" in said[-1] and page.index("Sensitivity of the set-up") < page.index("Conclusions")
    links = re.findall(r'<a href="#(row-\d+)"><circle cx="(\d+)" cy="(\d+)" r="5"><title>[^<]+</title>', page)
    size = Image.open(tmp_path / "curves.png").size
    assert len(links) > 100 and all(f'<tr id="{where}">' in page for where, *_ in links)
    assert all(int(x) >= 0 for _, x, _ in links) and size[0] > 1000
    runs = set(re.findall(r'href="#(run-[\w.]+)"', page)) - {"run-real", "run-vae", "run-shuffled"}
    assert runs and all(f'id="{name}"' in page for name in runs)
    assert 'src="http' not in page and "<h2>Limits</h2>" in page and "0123456789ab" in page


def test_a_point_lies_where_its_link_is(tmp_path):
    write_study(tmp_path, seeds=1, spread=0)
    drawing = figures.curves(read_results(tmp_path))
    image = Image.open(io.BytesIO(drawing.png)).convert("RGB")
    assert image.size == drawing.size
    near = [
        min(sum(image.getpixel((x + dx, y + dy))) for dx in (-1, 0, 1) for dy in (-1, 0, 1))
        for x, y, _ in drawing.links
    ]
    assert max(near) < 3 * 240  # something is drawn there


def test_numbers_of_unlike_protocols_are_refused(tmp_path):
    write_study(tmp_path)
    results = read_results(tmp_path)

    rows = [row("fd", 1.0, 0.1, "a", 1.0, 0)]
    other = rows[0].model_copy(
        update={"protocol": rows[0].protocol.model_copy(update={"fingerprint": "0"}), "extra": {"run": "b"}}
    )
    write_results([*rows, other], {}, results.study, tmp_path)
    with pytest.raises(ValueError, match="fd of b has fingerprint = 0, others abab"):
        read_results(tmp_path)


def test_runs_of_unlike_lengths_are_refused(tmp_path):
    write_study(tmp_path)
    change(tmp_path, lambda head: head["runs"]["bag.base.0"].update(steps=20))
    with pytest.raises(ValueError, match=r"was trained for 10 steps, bag\.base\.0 for 20: they do not share a"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda head: head["protocols"].clear(), "study.json and results.csv do not belong together"),
        (lambda head: head.pop("protocols"), "study.json and results.csv do not belong together"),
        (lambda head: head["runs"].pop("bag.base.0"), "study.json lacks the run bag.base.0"),
    ],
)
def test_files_of_two_moments_are_refused(tmp_path, how, message):
    write_study(tmp_path)
    change(tmp_path, how)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)


def test_what_the_page_is_not_fits_what_was_measured(tmp_path):
    write_study(tmp_path)
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "small grammar" in page and "parser knows" in page and "published FIDs" in page

    def judged(head):
        head["study"]["alignment"] = "clip_score"
        for protocol in head["protocols"]:
            protocol.update(verified=True, judge="clip:x")
        for about in head["runs"].values():
            each = about.get("replicates", {})
            each |= {name.replace("binding", "clip_score"): value for name, value in each.items()}

    change(tmp_path, judged)
    (tmp_path / "results.csv").write_text((tmp_path / "results.csv").read_text().replace(",binding,", ",clip_score,"))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "small grammar" not in page and "parser knows" not in page and "published FIDs" not in page
    assert "Not a scaling law" in page


def change(folder, how):
    head = json.loads((folder / "study.json").read_text())
    how(head)
    (folder / "study.json").write_text(json.dumps(head))


def test_folders_without_a_study_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"study\.json"):
        report.write(tmp_path)
    write_study(tmp_path)
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"results\.csv: not a table of a study's rows"):
        report.write(tmp_path)


def test_what_two_runs_share_cancels_in_their_difference(tmp_path):
    """The captions move the numbers of all runs together: only what they do not share is an error."""
    write_study(tmp_path, seeds=1, effect=0.1)
    results = read_results(tmp_path)
    alone = contrasts.contrast(results, "binding")
    luck = 0.1 * torch.randn(20, generator=torch.Generator().manual_seed(0))
    for about in results.runs.values():
        if each := about.get("replicates"):
            full, *without = each["binding@2"]
            each["binding@2"] = [full, *(x + y for x, y in zip(without, luck.tolist(), strict=True))]
    together = contrasts.contrast(results, "binding")
    assert alone is not None and together is not None and together.se == pytest.approx(alone.se)
    assert together.ratio > 5 and together.seeds == 1


def test_controls_alone_have_no_empty_axes_and_no_warning(tmp_path):
    write_study(tmp_path, controls_only=True)
    (tmp_path / "sizes.png").write_bytes(b"of an earlier state")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines = report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Size</h2>" not in page and not (tmp_path / "sizes.png").exists() and "sizes.png" not in lines[-1]
    results = read_results(tmp_path)
    assert figures.sizes(results) is None
    one = figures.curves(results).size  # there are no U-Nets to compare
    write_study(tmp_path, encoder_slope=0.1, unet_slope=0)
    both = read_results(tmp_path)
    assert figures.sizes(both) is not None and figures.curves(both).size[0] == 2 * one[0]
