"""Parts of an evaluation: the store and its stages, prompts, names of metrics, the bias of both sides."""

import warnings

import numpy as np
import pytest
import torch

from t2i.errors import RunFailed
from t2i.evaluation.baselines import implication
from t2i.evaluation.evaluation import choose_prompts
from t2i.evaluation.features import Features
from t2i.evaluation.figures import baselines_of, debiased, sweep
from t2i.evaluation.frechet import Moments, Reference, distance, frechet
from t2i.evaluation.image_sets import ImageSet, batches, gathered, stored
from t2i.evaluation.jackknife import distances, moments_by_group
from t2i.evaluation.measures import groups_of, joint, local_name, measure, parse_metrics
from t2i.evaluation.protocol import Protocol
from t2i.evaluation.report import Page, printed_lines, render
from t2i.evaluation.rows import Row
from t2i.evaluation.store import Store, Task, digest, fill


def task(key, made, value=1.0):
    def make():
        made.append(key)
        return {"x": np.full(3, value)}

    return Task(key, 3, make)


def test_a_stage_makes_what_is_missing_and_no_more(tmp_path):
    store, made = Store(tmp_path), []
    assert fill(store, "s", [task("a", made), task("b", made), task("a", made)], quiet=True) == 0
    assert made == ["a", "b"]
    assert fill(store, "s", [task("b", made, 2.0), task("c", made)], quiet=True) == 1
    assert made == ["a", "b", "c"]
    kept = store.read("s", "b")
    assert kept is not None and kept["x"].tolist() == [1, 1, 1] and store.read("other", "b") is None
    assert not list(tmp_path.rglob(".*"))


def test_half_a_file_is_made_again(tmp_path):
    store, made = Store(tmp_path), []
    store.arrays("s", task("a", made))
    path = store.path("s", "a")
    path.write_bytes(path.read_bytes()[:-30])
    assert fill(store, "s", [task("a", made)], quiet=True) == 0 and made == ["a", "a"]
    assert store.arrays("s", task("a", made))["x"].tolist() == [1, 1, 1] and made == ["a", "a"]


def test_a_key_is_equal_exactly_where_its_parts_are():
    assert digest("a", 1, [2.0]) == digest("a", 1, [2.0])
    assert len({digest("a", 1), digest("a", "1"), digest("a", 1.5), digest(["a", 1]), digest("a", 1, None)}) == 5


def test_pictures_of_the_store_are_read_in_any_order(tmp_path):
    store, parts = Store(tmp_path), batches(7, 3)
    assert [list(part) for part in parts] == [[0, 1, 2], [3, 4, 5], [6]]
    pixels = torch.arange(7).to(torch.uint8).view(7, 1, 1, 1).expand(7, 3, 2, 2).contiguous()
    made = []

    def make(part):
        made.append(part.start)
        return {"pixels": pixels[part.start : part.stop].numpy()}

    tasks = [Task(f"k{k}", len(part), lambda part=part: make(part)) for k, part in enumerate(parts)]
    images = stored(store, "pictures", parts, tasks)
    assert len(images) == 7 and images.keys == ("k0", "k1", "k2")
    for _ in range(2):
        assert images.read([6, 0, 4])[:, 0, 0, 0].tolist() == [6, 0, 4]
    assert made == [6, 0, 3]


def test_damaged_files_are_computed_again_and_reported(tmp_path):
    """Bits all over a small file, one at a time: its array comes back, or the damage is reported and made good."""
    store = Store(tmp_path)
    task = Task("a", 3, lambda: {"x": np.arange(3.0)})
    store.arrays("s", task)
    path, damaged = store.path("s", "a"), 0
    whole = path.read_bytes()
    for bit in range(3, 8 * len(whole), 61):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            array = gathered(store, "s", [task], "x")
        assert array.tolist() == [0, 1, 2]
        messages = [str(one.message) for one in caught if one.category is UserWarning]
        assert all(f"{path}: damaged (" in text and "computed again" in text for text in messages)
        damaged += len(messages)
        if messages:
            assert path.read_bytes()[-22:] == whole[-22:] and store.read("s", "a") is not None
    assert damaged > 20


def test_files_that_cannot_be_read_are_kept(tmp_path):
    store = Store(tmp_path)
    (path := store.path("s", "a")).mkdir(parents=True)
    with pytest.raises(RunFailed, match=r"a\.npz: could not be read"):
        store.arrays("s", Task("a", 1, dict))
    assert path.is_dir()


def test_features_are_kept_by_pictures_and_network(tmp_path):
    class Mean(Features):
        fingerprint, resize, calls = "f", "none", 0

        def vectors(self, pixels):
            self.calls += 1
            return pixels.float().mean((2, 3))

    store, network = Store(tmp_path), Mean("mean", torch.nn.Linear(1, 1))
    pixels = torch.randint(0, 256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    one = ImageSet.of(5, 2, lambda rows: pixels[list(rows)], "one")
    for _ in range(2):
        fill(store, "features", one.feature_tasks(network), quiet=True)
    assert network.calls == 3
    assert torch.equal(gathered(store, "features", one.feature_tasks(network)), pixels.float().mean((2, 3)))
    network.fingerprint = "g"
    fill(store, "features", one.feature_tasks(network), quiet=True)
    assert network.calls == 6 and ImageSet.of(5, 2, one.read, "two").key != one.key


def test_prompts_of_more_begin_with_those_of_fewer():
    captions = [f"caption {i}" for i in range(10)]
    few, origins = choose_prompts(captions, 4)
    many, _ = choose_prompts(captions, 25)
    assert many[:4] == few and [captions[i] for i in origins] == few
    assert sorted(many[:10]) == sorted(captions) and many[10:20] == many[:10]
    with pytest.warns(UserWarning, match="2 of 4 captions are empty: not used"):
        assert sorted(choose_prompts(["a", "", "b", " "], None)[0]) == ["a", "b"]
    with pytest.raises(ValueError, match="no captions to use as prompts: give --prompts"):
        choose_prompts(["", ""], 2)


def test_metrics_by_name():
    assert parse_metrics("fd, KID,recall,precision,caption_info") == ("fd", "kid", "prdc", "vlb")
    for text, message in (
        ("fdd", "did you mean fd"),
        ("clp", "did you mean clip"),
        ("fid", "inception:FILE"),
        ("", "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_metrics(text)


def test_folders_are_called_by_their_names(tmp_path):
    (tmp_path / "tower").mkdir()
    assert local_name(f"local:{tmp_path / 'tower'}") == "local:tower"
    assert local_name(f"local:{tmp_path / 'tower'}+{tmp_path}") == f"local:tower+{tmp_path.name}"
    assert local_name("clip:openai/clip-vit-large-patch14") == "clip:openai/clip-vit-large-patch14"


def protocol(**keys):
    return Protocol(n=300, n_ref=300, features="f", fingerprint="a" * 64, resize="none", **keys)


def alone(n):
    return [str(i) for i in range(n)]


@pytest.mark.parametrize(("n", "m", "shared"), [(300, 300, 300), (150, 300, 150), (200, 300, 0)])
def test_fd_infinity_of_one_distribution_is_0_whatever_the_sides_share(n, m, shared):
    """Subjects plus detail on both sides; `shared` pictures of each have one subject, as of one caption."""
    joint_, fixed = [], []
    for seed in range(12):
        draws = torch.Generator().manual_seed(seed)
        subjects, detail = torch.randn(n + m, 6, generator=draws), torch.randn(n + m, 6, generator=draws) / 2
        real, sample = subjects[:m] + detail[:m], subjects[m:] + detail[m:]
        sample[:shared] = subjects[:shared] + detail[m : m + shared]
        prompts = [f"c{i}" if i < shared else f"other {i}" for i in range(n)]
        groups = groups_of(prompts, [f"c{i}" for i in range(m)])
        assert groups[1] is not None and torch.equal(groups[0][:shared], groups[1][:shared])
        joint_.append(joint(sample, real, *groups).estimate())
        fixed.append(distances(moments_by_group(sample, groups[0]), Reference.of(Moments.of(real))).estimate())
    value, rest = np.mean([e.value for e in joint_]), np.array([e.debiased for e in joint_])
    assert abs(rest.mean()) < max(3 * rest.std() / np.sqrt(len(rest)), 0.1 * value)
    assert [e.value for e in joint_] == pytest.approx([e.value for e in fixed], rel=1e-9)
    wrong = np.array([e.debiased for e in fixed])
    if shared in (0, m):  # what a fixed reference would say; by chance right where half of it is shared
        assert abs(wrong.mean()) > 3 * wrong.std() / np.sqrt(len(wrong))
    assert rest.std() / 2 < np.mean([e.se for e in joint_]) < 4 * rest.std()  # wide, at a distance of 0


def test_groups_of_small_references():
    prompts = alone(6)
    assert groups_of(prompts, None)[1] is None and groups_of(prompts, ["a", "b"])[1] is None
    theirs = groups_of(prompts, ["", "", "3", "3", "x"])[1]
    ours = groups_of(prompts, None)[0]
    assert theirs is not None and theirs[2] == theirs[3] == ours[3] and len(theirs) == 5


def test_numbers_are_read_again_and_few_samples_are_said_again(tmp_path):
    draws = torch.Generator().manual_seed(0)
    sample, real = torch.randn(12, 16, generator=draws), torch.randn(20, 16, generator=draws)
    reference, groups = Reference.of(Moments.of(real)), groups_of(alone(12), alone(20))
    found = []
    for _ in range(2):
        with pytest.warns(UserWarning, match="12 samples for features of 16 dimensions"):
            found.append(measure(Store(tmp_path), ["fd", "kid"], sample, real, reference, groups, "k"))
    assert found[0] == found[1] and list(found[0]) == ["fd", "kid"]
    assert found[0]["fd"].full == pytest.approx(frechet(Moments.of(sample), reference).value, rel=1e-9)
    rest = Moments.of(sample[groups[0] != 3]), Reference.of(Moments.of(real[groups[1] != 3]))
    assert found[0]["fd"].without[3] == pytest.approx(distance(*rest).value, rel=1e-9)


def rows_of_a_sweep(tmp_path, guidances=(1.0, 2.0)):
    draws = torch.Generator().manual_seed(0)
    real = torch.randn(60, 4, generator=draws)
    reference, groups = Reference.of(Moments.of(real)), groups_of(alone(60), alone(60))
    rows = []
    for g in guidances:
        sample = torch.randn(60, 4, generator=draws) * g
        found = measure(Store(tmp_path), ["fd", "kid", "prdc"], sample, real, reference, groups, f"{g}")
        rows += [Row.of(m, found[m].estimate(), protocol(guidance=g)) for m in ("fd", "kid", "precision")]
    return rows


def test_a_sweep_is_a_curve_by_guidance(tmp_path):
    rows = rows_of_a_sweep(tmp_path, (2.0, 1.0))
    assert [row.protocol.guidance for row in sweep(rows)["fd"]] == [1.0, 2.0] and set(sweep(rows)) == {
        "fd", "kid", "precision",
    }  # fmt: skip
    assert sweep(rows[:3]) == {}
    anchor = rows[0].model_copy(update={"extra": {**rows[0].extra, "anchor": "real"}})
    assert baselines_of([*rows, anchor], "fd") == {"real": debiased(anchor)} and len(sweep([*rows, anchor])["fd"]) == 2


def test_the_page_is_escaped_and_refuses_unlike_protocols(tmp_path):
    rows = rows_of_a_sweep(tmp_path)
    page = Page("<b>model", "a & b", ["<i>note"], {"k": "<v>"}, "t2i '<c>'")
    text = render(rows, page, {})
    assert not any(tag in text for tag in ("<b>", "<i>", "<v>", "<c>", "<script", "http:", "https:"))
    assert "&lt;b&gt;model" in text and "FD[f@aaaaaaaa]" in text
    assert "Nothing here compares with published FID" in text and "bias at these n" in text
    other = rows[0].model_copy(update={"protocol": protocol(guidance=4.0).model_copy(update={"fingerprint": "b" * 64})})
    with pytest.raises(ValueError, match=r"fingerprint = .* do not share a table"):
        render([*rows, other], page, {})


def ladder(metric, changes, half=0.01):
    """The differences of noisy images from real ones, by noise, with intervals of +- `half`."""
    return [
        row(f"{metric}_difference", change, half, anchor=f"noise {std:g}", than="real")
        for std, change in zip((2, 4, 8, 16, 32), changes, strict=True)
    ]


def row(metric, value, half, guidance=None, **extra):
    protocol = Protocol(n=9, features="f", fingerprint="ab", resize="none", size=(8, 8), guidance=guidance)
    return Row(metric=metric, value=value, protocol=protocol, ci95=(value - half, value + half), extra=extra)


@pytest.mark.parametrize(
    ("half", "changes", "text"),
    [
        (0.7, (0.01, 0.02, 0.03, 0.07, 2.0), "cannot tell noise of 16/255 from none"),
        (0.001, (0.1, 0.2, 0.3, 0.4, 0.5), "tells noise of 2/255 from none"),
        (0.001, (0.005, 0.2, 0.005, 0.4, 0.5), "cannot tell noise of 2/255 from none"),  # 8 after 4 is luck
        (0.5, (0, 0, 0, 0.1, -0.4), "cannot tell noise of 32/255, the strongest tried, from none"),
    ],
)
def test_a_number_is_read_against_the_ladder_of_noise(half, changes, text):
    number, rungs = row("precision", 0.98, half, 4.0), ladder("precision", changes)
    assert implication(number, [number, *rungs]) == text
    assert implication(number, [number, *ladder("recall", changes)]) == ""
    [line] = printed_lines([number, *rungs])
    assert line.endswith(f"[{text}]")
    page = render([number, *rungs], Page("m", "", [], {}, ""), {})
    assert f"precision: {text}" in page
    assert ("images that look wrong may measure as well as real ones" in page) == ("16" in text or "32" in text)


def test_a_score_is_read_against_other_images_prompts():
    number = row("clip_score", 0.3, 0.05, 2.0)
    for value, text in ((0.27, "cannot tell these images from images with other"), (0.1, "better than with other")):
        shuffled = [row("clip_score", value, 0.01, w, anchor="shuffled captions") for w in (1.0, 2.0)]
        shuffled[0] = shuffled[0].model_copy(update={"value": 9.0, "ci95": (8.0, 10.0)})
        assert implication(number, [number, *shuffled]).startswith(text)
