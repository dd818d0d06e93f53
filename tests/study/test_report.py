"""The report: slopes with seeds as the unit, the sensitivity check before any word, points that lead to their rows."""

import io
import math
import re

import pytest
import torch
from PIL import Image

from t2i.study import figures, report, stats, words
from t2i.study.table import read_results, write_results
from tests.study.synthetic import row, write_study


def concluded(folder, **truth) -> str:
    write_study(folder, **truth)
    return " ".join(words.conclusion(read_results(folder)))


def test_slope_is_that_of_the_truth_and_its_interval_holds_it(tmp_path):
    write_study(tmp_path, encoder_slope=0.1, unet_slope=0.02)
    results = read_results(tmp_path)
    encoders = stats.points(results, "encoder", "binding")["ladder"]
    assert [p.parameters for p in encoders] == [50_000, 500_000, 5_000_000]
    found = stats.slope(encoders)
    assert found is not None and found.seeds == 3
    assert found.low is not None and found.high is not None and found.low < 0.1 < found.high and found.half < 0.02
    unets = stats.points(results, "unet", "binding")["U-Nets"]
    assert [p.name for p in unets] == ["tiny", "base", "wide"]
    between = stats.slope_difference(encoders, unets)
    assert between is not None and between.sign == 1 and abs(between.value - 0.08) < 0.02


def test_interval_over_seeds_is_students():
    found = stats.over_seeds([1.0, 2.0, 3.0])
    assert found.value == 2 and found.half == pytest.approx(4.302652730 / math.sqrt(3))
    assert found.sign == 0 and stats.over_seeds([1.0]).half is None and stats.over_seeds([1.0]).sign == 0


def test_a_seed_with_two_sizes_has_a_slope_and_one_with_one_has_none(tmp_path):
    write_study(tmp_path)
    [group] = [g for f, g in stats.points(read_results(tmp_path), "encoder", "binding").items() if f]
    del group[1].numbers[1], group[0].numbers[2], group[1].numbers[2]
    assert sorted(stats.slopes_by_seed(group)) == [0, 1]


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
    assert stats.compared(results) == ["binding", "exact", "fd"]
    said = " ".join(words.conclusion(results))
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
    assert "report.html" in said[-1] and page.index("Can this set-up see") < page.index("What was found")
    links = re.findall(r'<area shape=circle coords="(\d+),(\d+),5" href="#(row-\d+)" title="([^"]+)"', page)
    size = Image.open(tmp_path / "curves.png").size
    assert len(links) > 100 and all(f"<tr id={where}>" in page for *_, where, _ in links)
    assert all(int(x) >= 0 for x, *_ in links) and size[0] > 1000
    runs = set(re.findall(r'href="#(run-[\w.]+)"', page)) - {"run-real", "run-vae", "run-shuffled"}
    assert runs and all(f'id="{name}"' in page for name in runs)
    assert 'src="http' not in page and "What this is not" in page and "0123456789ab" in page


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


def test_folders_without_a_study_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"study\.json"):
        report.write(tmp_path)
    write_study(tmp_path)
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"results\.csv: no table of a study's rows"):
        report.write(tmp_path)


def test_what_two_runs_share_cancels_in_their_difference(tmp_path):
    """The captions move the numbers of all runs together: only what they do not share is an error."""
    write_study(tmp_path, seeds=1, effect=0.1)
    results = read_results(tmp_path)
    alone = stats.apart(results, "binding")
    luck = 0.1 * torch.randn(20, generator=torch.Generator().manual_seed(0))
    for about in results.runs.values():
        if each := about.get("replicates"):
            full, *without = each["binding@2"]
            each["binding@2"] = [full, *(x + y for x, y in zip(without, luck.tolist(), strict=True))]
    together = stats.apart(results, "binding")
    assert alone is not None and together is not None and together.se == pytest.approx(alone.se)
    assert together.ratio > 5 and together.seeds == 1
