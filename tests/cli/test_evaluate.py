"""`t2i evaluate` from end to end on a tiny pipeline: numbers, cache, bad input, ranks."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline.tiny import CAPTIONS, make_pipeline
from training.processes import ranks

from t2i.evaluation.generated import ModelSamples
from t2i.evaluation.rows import read_rows
from t2i.pipeline import Pipeline
from t2i.text.clip import CLIPTextEncoder
from t2i.text.tokenizer import SMALLEST, learn_tokenizer
from t2i.text.towers import ImageTower, ImageTowerConfig, TextTowerConfig, text_tower

N = 24
SCENES = [
    "two little red squares on a white background",
    "there is a green hexagon over a large red rhombus, the background is black",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, features, a judge, and a reference of captioned noise."""
    place = tmp_path_factory.mktemp("world")
    make_pipeline().save_pretrained(place / "model")
    torch.manual_seed(0)
    ImageTower(ImageTowerConfig(channels=(8, 12), blocks=(1, 1), groups=4, projection_dim=16)).save(place / "tower")
    tokenizer = learn_tokenizer(CAPTIONS, SMALLEST + 40, model_max_length=12)
    tower = text_tower(TextTowerConfig(width=32, layers=1, heads=2), tokenizer, 16)
    CLIPTextEncoder(tower.text_model, tower.text_projection, tokenizer).save(place / "text")
    (place / "real").mkdir()
    for i in range(N):
        noise = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / "real" / f"{i}.png")
        (place / "real" / f"{i}.txt").write_text(f"{CAPTIONS[i % 4]} {i // 8}")
    return place


def asked(world, out, **flags):
    flags = {
        "-m": world / "model", "--reference": world / "real", "--features": f"local:{world / 'tower'}",
        "--steps": 2, "--cfg": "1,3", "--batch-size": 7, "-o": out, "--device": "cpu",
    } | flags  # fmt: skip
    return ["evaluate", *(part for flag, value in flags.items() if value is not None for part in (flag, value))]


@pytest.fixture
def counted(monkeypatch):
    """How many batches a model draws."""
    drawn, draw = [], ModelSamples.draw

    def count(self, part, guidance):
        drawn.append((part.start, guidance))
        return draw(self, part, guidance)

    monkeypatch.setattr(ModelSamples, "draw", count)
    return drawn


def values(folder):
    return [
        (row.metric, row.protocol.guidance, row.extra.get("anchor"), row.value, row.se) for row in read_rows(folder)
    ]


def test_a_sweep_leaves_numbers_a_page_and_pictures(t2i, world, tmp_path, counted, monkeypatch):
    judge = f"local:{world / 'tower'}+{world / 'text'}"
    flags = {"--metrics": "fd,kid,prdc,cmmd,clip", "--judge": judge}
    code, out, err = t2i(*asked(world, "o", **flags))
    assert code == 0, err
    assert "o: metrics.json, results.csv, report.html, curves.png, trade.png, samples.png" in out
    assert re.search(r"FD\[local:tower@\w{8}\]  cfg 1  ", out) and "FID" not in out
    assert "48 images, 144 evaluations" in err  # of 2 steps, with 1 and 2 passes each
    rows = read_rows(tmp_path / "o")
    plain = [row for row in rows if "anchor" not in row.extra and "than_cfg" not in row.extra]
    names = {"fd", "kid", "cmmd", "precision", "recall", "density", "coverage", "clip_score"}
    assert {(row.metric, row.protocol.guidance) for row in plain} == {(m, g) for m in names for g in (1.0, 3.0)}
    fd = next(row for row in plain if row.metric == "fd")
    one = fd.protocol
    assert (one.n, one.n_ref, one.size, one.steps, one.solver, one.seeds) == (N, N, (16, 16), 2, "ddim", "0..23")
    assert one.fingerprint == ImageTower.load(world / "tower").fingerprint() and one.features == "local:tower"
    assert one.preparation is not None and "bicubic" in one.preparation and not one.verified
    assert fd.ci95 is not None and fd.ci95[0] < fd.value < fd.ci95[1] and fd.bias is not None
    anchors = {row.extra["anchor"] for row in rows if "anchor" in row.extra}
    assert {"real", "vae", "noise 2", "noise 32", "shuffled captions", "vae, against its own originals"} == anchors - {
        f"noise {std}" for std in (4, 8, 16)
    }
    change = next(row for row in rows if row.metric == "fd_difference" and row.extra.get("than_cfg") == 1.0)
    both = [row.value for row in plain if row.metric == "fd"]
    assert change.value == pytest.approx(both[1] - both[0])
    flagged = [row for row in rows if row.metric == "clip_score"]
    assert all("both CLIPs" in str(row.extra["judge_family"]) for row in flagged)
    page = (tmp_path / "o" / "report.html").read_text()
    assert "may favour this model" in page and "FID" not in re.sub(
        r"published FID|called FID|data:image[^\"]*", "", page
    )
    assert not re.search(r'(src|href)="(?!data:)', page) and str(tmp_path) not in page.split("<h2>Command")[0]
    for line in csv.DictReader((tmp_path / "o" / "results.csv").open()):
        assert line["comparable_to_published"] == "False"
    assert len(counted) == 8
    before = values(tmp_path / "o")
    monkeypatch.setattr("t2i.evaluation.report.FIGURES", {})  # the same twice, and slow
    code, out, err = t2i(*asked(world, "o", **flags))
    assert code == 0 and len(counted) == 8 and values(tmp_path / "o") == before and "both" not in err
    again = (tmp_path / "o" / "report.html").read_text()
    assert re.findall("note.*", again) == re.findall("note.*", page)  # what is warned of is warned of again


def stop_at(monkeypatch, count):
    """A model that is interrupted at its batch number `count`."""
    left, draw = [count], ModelSamples.draw

    def interrupted(self, part, guidance):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return draw(self, part, guidance)

    monkeypatch.setattr(ModelSamples, "draw", interrupted)


def test_an_interrupted_sweep_goes_on(t2i, world, tmp_path, monkeypatch, counted):
    flags = {"--metrics": "fd", "--n": 14}
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        code, _, err = t2i(*asked(world, "o", **flags), "--no-anchors")
    assert code == 130 and "the same command resumes" in err and not (tmp_path / "o" / "metrics.json").exists()
    assert counted == [(0, 1.0), (0, 3.0)]
    assert t2i(*asked(world, "o", **flags), "--no-anchors")[0] == 0
    assert counted == [(0, 1.0), (0, 3.0), (7, 1.0), (7, 3.0)]
    assert t2i(*asked(world, "whole", **flags), "--no-anchors")[0] == 0
    assert values(tmp_path / "o") == values(tmp_path / "whole")
    del counted[:]
    assert t2i(*asked(world, "o", **flags | {"--n": 21, "--cfg": "3,1,2"}), "--no-anchors")[0] == 0
    assert sorted(counted) == [(0, 2.0), (7, 2.0), (14, 1.0), (14, 2.0), (14, 3.0)]


def test_guidances_share_their_noise_and_are_what_the_pipeline_draws(t2i, world, tmp_path):
    flags = {"--metrics": "fd", "--cfg": "1,3,3.0", "--n": 9, "--seed": 5}
    assert t2i(*asked(world, "o", **flags), "--no-anchors")[0] == 0
    folder = tmp_path / "o" / "cache" / "pictures"
    found = [np.load(path)["pixels"] for path in folder.glob("*.npz")]
    assert sorted(len(part) for part in found) == [2, 2, 7, 7]
    (tmp_path / "captions.txt").write_text("a red circle\na blue square on grey\n")
    assert t2i(*asked(world, "p", **flags | {"--prompts": "captions.txt"}), "--no-anchors")[0] == 0
    drawn = [np.load(path)["pixels"].astype(int) for path in (tmp_path / "p" / "cache" / "pictures").glob("*.npz")]
    pipeline = Pipeline.from_pretrained(world / "model")
    prompts = ["a red circle", "a blue square on grey"] * 5
    for cfg in (1.0, 3.0):
        images = pipeline(prompts[:9], num_inference_steps=2, guidance_scale=cfg, seeds=5).images
        wanted = np.stack(images).transpose(0, 3, 1, 2).astype(int)
        for part in (wanted[:7], wanted[7:]):
            assert min(np.abs(found - part).max() for found in drawn if len(found) == len(part)) <= 1
    assert all(np.abs(a - b).max() > 2 for i, a in enumerate(drawn) for b in drawn[:i] if len(a) == len(b))


def test_two_processes_and_one_give_identical_numbers(t2i, world, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else each rank takes one thread
    judge = f"local:{world / 'tower'}+{world / 'text'}"
    flags = {"--metrics": "fd,kid,clip", "--judge": judge, "--device": None}
    command = [str(part) for part in asked(world, tmp_path / "two", **flags)]
    said = ranks(2, [command], tmp_path)
    assert "FD[" in said[0] and said[1].strip() == ""
    assert t2i(*asked(world, tmp_path / "one", **flags))[0] == 0
    assert values(tmp_path / "two") == values(tmp_path / "one")
    for path in (tmp_path / "one" / "cache").rglob("*.npz"):
        other = np.load(tmp_path / "two" / path.relative_to(tmp_path / "one"))
        assert all(np.array_equal(other[name], array) for name, array in np.load(path).items())


def test_statistics_stand_for_their_pictures(t2i, world, tmp_path):
    flags = {"--metrics": "fd", "--cfg": "3"}
    assert t2i(*asked(world, "o", **flags))[0] == 0
    [stats] = (tmp_path / "o" / "cache").glob("reference-*.npz")
    rows = read_rows(tmp_path / "o")
    (tmp_path / "prompts.txt").write_text("".join(f"{CAPTIONS[i % 4]} {i // 8}\n" for i in range(N)))
    given = flags | {"--reference": stats, "--prompts": "prompts.txt"}
    code, _, err = t2i(*asked(world, "p", **given))
    assert code == 0, err
    [row] = read_rows(tmp_path / "p")
    assert (row.protocol.n_ref, row.protocol.reference) == (N, rows[0].protocol.reference)
    assert row.value == pytest.approx(rows[0].value, rel=0.5) and row.metric == "fd"
    for wrong, message in (
        ({"--metrics": "fd,kid"}, "reference statistics hold moments only"),
        ({"--prompts": None}, "statistics hold no captions to use as prompts: give --prompts"),
        ({"--size": "24x24"}, "have size = 16x16"),
        ({"--features": "vae-latent"}, "have fingerprint = "),
        ({"--metrics": "vlb"}, "a bound needs a reference of images"),
    ):
        code, _, err = t2i(*asked(world, "q", **given | wrong))
        assert code == 2 and message in err, err
    mean, covariance = np.zeros(12), np.eye(12)
    np.savez(tmp_path / "theirs.npz", mu=mean, sigma=covariance)
    assert t2i(*asked(world, "r", **given | {"--reference": "theirs.npz"}))[0] == 0
    assert "do not record their fingerprint" in (tmp_path / "r" / "report.html").read_text()


def test_finished_pictures_are_measured_as_they_are(t2i, world, tmp_path):
    prompts = [f"{CAPTIONS[i % 4]} {i // 4}" for i in range(10)]
    assert t2i("generate", *prompts, "-m", world / "model", "--steps", 2, "--cfg", 3, "--seed", 1, "-o", "made")[0] == 0
    assert t2i("generate", *prompts, "-m", world / "model", "--steps", 2, "--cfg", 3, "--seed", 9, "-o", "real")[0] == 0
    only = {"--steps": None, "--cfg": None, "-m": "made", "--metrics": "fd"}
    code, _, err = t2i(*asked(world, "o", **only | {"--reference": "real"}))
    assert code == 0, err
    row = read_rows(tmp_path / "o")[0]
    assert (row.protocol.n, row.protocol.guidance, row.protocol.steps, row.protocol.solver) == (10, 3.0, 2, "ddim")
    assert row.protocol.size == (16, 16) and row.protocol.text_encoder is None
    code, _, err = t2i(*asked(world, "p", **only))
    assert code == 2 and "two folders of unlike sizes do not compare" in err, err
    for wrong, message in (({"--steps": 2}, "--steps has no effect"), ({"--metrics": "vlb"}, "these are images")):
        code, _, err = t2i(*asked(world, "q", **only | {"--reference": "real"} | wrong))
        assert code == 2 and message in err, err
    Image.new("RGB", (8, 8)).save(tmp_path / "made" / "00000-1.png")
    code, _, err = t2i(*asked(world, "s", **only | {"--reference": "real"}))
    assert code == 2 and "holds images of 2 sizes (8x8, 16x16)" in err, err
    assert t2i("generate", "a", "-m", world / "model", "--steps", 2, "--cfg", 2, "-o", "real")[0] == 0
    code, _, err = t2i(*asked(world, "s", **only | {"-m": "real"}))
    assert code == 2 and "were generated with cfg = 2.0, 3.0" in err, err


def test_the_bound_needs_no_pictures_but_those_of_the_page(t2i, world, tmp_path, counted):
    flags = {"--metrics": "vlb", "--n": 20, "--cfg": "1", "--features": None}
    code, out, err = t2i(*asked(world, "o", **flags))
    assert code == 0, err
    assert "caption_info" in out and [start for start, _ in counted] == [0, 7]  # 8 pictures in batches of 7
    assert "14 images, 28 evaluations" in err
    rows = {row.metric for row in read_rows(tmp_path / "o")}
    assert {"vlb", "vlb_prior", "vlb_denoising", "vlb_reconstruction", "caption_info", "vlb_t"} <= rows
    assert "<h2>The bound</h2>" in (tmp_path / "o" / "report.html").read_text()
    assert (tmp_path / "o" / "bound.png").is_file()


def test_skills_are_read_from_scenes(t2i, world, tmp_path):
    (tmp_path / "scenes.txt").write_text("\n".join(SCENES))
    flags = {"--metrics": "skills", "--prompts": "scenes.txt", "--size": "32x32", "--cfg": "2", "--n": 4}
    code, _, err = t2i(*asked(world, "o", **flags))
    assert code == 0, err
    assert "--features has no effect on --metrics skills" in err
    rows = read_rows(tmp_path / "o")
    exact = next(row for row in rows if row.metric == "skill_exact" and "anchor" not in row.extra)
    assert exact.value == 0 and exact.extra["out_of"] == 4 and exact.protocol.guidance == 2
    assert any(row.extra.get("anchor") == "shuffled captions" for row in rows)
    code, _, err = t2i(*asked(world, "p", **flags | {"--prompts": None}))
    assert code == 2 and "is no caption of the built-in scenes" in err, err


def no_network(*_, **__):
    raise OSError("no network")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"--metrics": "fd,kids"}, "unknown metric 'kids'; did you mean kid?"),
        ({"--metrics": "fid"}, "write fd; with --features inception:FILE"),
        ({"--features": "inception:nowhere.pth"}, "nowhere.pth: no such file. FID needs weights-inception"),
        ({"--features": "inception"}, "it could not be downloaded: no network. FID needs weights-inception"),
        ({"--features": "local:nowhere"}, "local:nowhere: no such folder"),
        ({"--reference": "nowhere"}, "'nowhere': no such file or folder"),
        ({"--cfg": "1,two"}, "'1,two'"),
        ({"--cfg": "-1"}, "-1.0"),
        ({"--steps": "0"}, "--steps = 0: not in 1.."),
        ({"--solver": "magic"}, "magic"),
        ({"--judge": "clip:x"}, "has no effect without the metric clip"),
        ({"--metrics": "fd,prdc", "--n": "6"}, "needs 6 images on both sides"),
        ({"--n": "1"}, ""),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(t2i, world, tmp_path, monkeypatch, counted, flags, message):
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    code, _, err = t2i(*asked(world, "o", **flags))
    assert code == 2 and message in err, err
    assert not counted and not (tmp_path / "o").exists()


def test_a_reference_of_one_picture_and_one_without_captions(t2i, world, tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "one" / "0.png")
    code, _, err = t2i(*asked(world, "o", **{"--reference": "one"}))
    assert code == 2 and "holds 1 image; give at least 2" in err, err
    Image.new("RGB", (16, 16), "red").save(tmp_path / "one" / "1.png")
    code, _, err = t2i(*asked(world, "o", **{"--reference": "one"}))
    assert code == 2 and "no captions to use as prompts: give --prompts" in err, err


def test_pictures_that_are_not_finite_end_the_run(t2i, world, tmp_path):
    pipeline = make_pipeline()
    with torch.no_grad():
        pipeline.generator.unet.conv_out.weight.fill_(torch.nan)
    pipeline.save_pretrained(tmp_path / "broken")
    code, _, err = t2i(*asked(world, "o", **{"-m": "broken"}))
    assert code == 1 and "non-finite" in err and not (tmp_path / "o" / "metrics.json").exists(), err


def test_the_numbers_of_another_model_are_kept(t2i, world, tmp_path):
    flags = {"--metrics": "fd", "--n": 8, "--cfg": "1"}
    assert t2i(*asked(world, "o", **flags), "--no-anchors")[0] == 0
    before = (tmp_path / "o" / "metrics.json").read_bytes()
    make_pipeline(unet={"norm_num_groups": 4}).save_pretrained(tmp_path / "other")
    code, _, err = t2i(*asked(world, "o", **flags | {"-m": "other"}), "--no-anchors")
    assert code == 2 and "holds the numbers of another model" in err, err
    assert (tmp_path / "o" / "metrics.json").read_bytes() == before
    assert json.loads(before)["schema_version"] == 1
    flags |= {"--metrics": "vlb", "--features": None}
    code, _, err = t2i(*asked(world, "o", **flags), "--no-anchors")
    assert code == 0 and "o: its numbers of fd are replaced; another folder (-o) would keep them" in err, err


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_drawn(t2i, world, tmp_path, counted):
    (tmp_path / "file").write_text("")
    for flags in ((), ("--variance",)):
        code, _, err = t2i(*asked(world, "file/o", **{"--metrics": "fd", "--n": 8}), *flags)
        assert code == 1 and "file/o/.writable: not written (" in err and "Traceback" not in err, err
    assert not counted


def test_a_metrics_file_cut_off_names_the_way_out_which_works(t2i, world, tmp_path, counted):
    flags = {"--metrics": "fd", "--n": 8, "--cfg": "1"}
    assert t2i(*asked(world, "o", **flags), "--no-anchors")[0] == 0
    path = tmp_path / "o" / "metrics.json"
    whole, drawn = path.read_bytes(), len(counted)
    for data in (whole[:100], b"", b'{"schema_version": 1, "rows": 3}'):
        path.write_bytes(data)
        code, _, err = t2i(*asked(world, "o", **flags), "--no-anchors")
        assert code == 2 and "o/metrics.json: " in err and "delete this file, and the same command" in err, err
    path.unlink()
    assert t2i(*asked(world, "o", **flags), "--no-anchors")[0] == 0
    assert path.read_bytes() == whole and len(counted) == drawn


def test_a_flipped_bit_in_the_store_is_repaired_and_reported(t2i, world, tmp_path, counted):
    flags = {"--metrics": "fd", "--n": 8, "--cfg": "1"}
    assert t2i(*asked(world, "o", **flags), "--no-anchors")[0] == 0
    before, drawn = values(tmp_path / "o"), len(counted)
    for stage in ("pictures", "features", "numbers"):
        path = min((tmp_path / "o" / "cache" / stage).glob("*.npz"))
        data = bytearray(path.read_bytes())
        data[150] ^= 1  # in the first array
        path.write_bytes(data)
    code, _, err = t2i(*asked(world, "o", **flags), "--no-anchors")
    assert code == 0 and err.count("damaged (") == 3 and values(tmp_path / "o") == before, err
    assert len(counted) == drawn + 1
    code, _, err = t2i(*asked(world, "o", **flags), "--no-anchors")
    assert code == 0 and "damaged" not in err and len(counted) == drawn + 1


def test_from_guidance_zero_to_the_next(t2i, world, tmp_path):
    code, _, err = t2i(*asked(world, "o", **{"--metrics": "fd", "--n": 8, "--cfg": "0,1"}), "--no-anchors")
    assert code == 0, err
    assert "<th>0 → 1</th>" in (tmp_path / "o" / "report.html").read_text()


def test_help_names_the_ways(t2i):
    code, out, _ = t2i("evaluate", "--help")
    assert code == 0 and "--reference" in out
