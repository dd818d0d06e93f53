"""Variances of Algorithm 2: they share their noise, agree with the solvers, and give numbers, a table and images."""

import csv
import json
import math
import sys

import pytest
import torch
from PIL import Image
from pipeline.tiny import CAPTIONS, make_pipeline

from t2i.__main__ import main
from t2i.evaluation.generated import ModelSamples, Sampling
from t2i.evaluation.protocol import Protocol
from t2i.evaluation.variance import WAYS, Samples, prepare, sample

PROMPTS = CAPTIONS[:3]
SCHEDULER = {"num_train_timesteps": 8, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline(scheduler=SCHEDULER)


@pytest.fixture(scope="module")
def model(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, caption in enumerate(CAPTIONS):
        Image.linear_gradient("L").rotate(90 * i).resize((16, 16)).convert("RGB").save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return folder


@pytest.fixture
def study(monkeypatch, capsys):
    """study(*arguments) -> (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["t2i", "study", "sigma", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def job_of(pipeline, copies, steps, guidance):
    subject = ModelSamples(pipeline, "tiny", Sampling((guidance,), "ddpm", steps, batch=4), "float32")
    subject.set_prompts([prompt for prompt in PROMPTS for _ in range(copies)])
    return prepare(subject)


def test_the_ways_are_the_solvers_from_the_same_noise(pipeline):
    job = job_of(pipeline, copies=2, steps=4, guidance=3.0)
    found = {}
    for way in WAYS:
        found[way] = torch.cat([list(sample(pipeline, job, way, *batch))[-1] for batch in job.batches])
    for way, solver in (("beta_tilde", "ddpm"), ("ddim", "ddim")):
        options = {"num_inference_steps": 4, "guidance_scale": 3.0, "solver": solver, "num_images_per_prompt": 2}
        wanted = pipeline(PROMPTS, seeds=0, output_type="latent", **options).images
        torch.testing.assert_close(found[way], wanted, rtol=1e-4, atol=1e-5)
    distances = [(found[a] - found[b]).abs().max() for a in WAYS for b in WAYS if a < b]
    assert min(distances) > 1e-3  # sigma = 0 is not DDIM


def test_without_noise_the_mean_alone_is_followed(pipeline):
    job = job_of(pipeline, copies=1, steps=3, guidance=1.0)
    steps = list(sample(pipeline, job, "zero", 0, 3))
    x, (t, s) = job.noise(0, 3).start, job.plan.levels[:2]
    with torch.no_grad():
        v = pipeline.generator.unet(x, torch.full((3,), t.t - 1), pipeline.text_encoder(PROMPTS).conditioning)
    alpha_t = (t.alpha / s.alpha) ** 2
    eps = t.alpha * v + t.sigma * x
    torch.testing.assert_close(steps[0], (x - (1 - alpha_t) / t.sigma * eps) / math.sqrt(alpha_t), rtol=1e-3, atol=1e-4)


def test_statistics_of_known_latents(pipeline):
    latents = torch.zeros(6, 4, 8, 8)
    latents[2:4], latents[4] = 1.0, 3.0
    samples = Samples(pipeline, latents, torch.arange(6) // 2)
    found = samples.statistics(torch.arange(6))
    assert found["latent_mean"] == pytest.approx(5 / 6) and found["latent_std"] == pytest.approx(
        math.sqrt(11 / 6 - 25 / 36)
    )
    assert found["diversity_of_a_prompt"] == pytest.approx(1.0)  # pairs 0, 0, 3
    assert found["diversity"] == pytest.approx((6 * 1 + 3 * 3 + 2 * 2) / 15)
    rows = samples.rows("zero", Protocol(n=6), Samples(pipeline, latents + 1, torch.arange(6) // 2))
    paired = {row.metric: row for row in rows if row.extra["against"] == "beta"}
    assert paired["latent_mean"].value == pytest.approx(-1) and paired["latent_mean"].se == pytest.approx(0, abs=1e-9)


def test_distances_within_one_prompt_alone_have_no_interval(pipeline):
    """Where only one prompt has several images, nothing is left of their distance without that prompt."""
    samples = Samples(pipeline, torch.randn(4, 4, 8, 8), torch.tensor([0, 0, 1, 2]))
    assert "diversity_of_a_prompt" in samples.statistics(torch.arange(4))
    metrics = {row.metric for row in samples.rows("zero", Protocol(n=4))}
    assert metrics == {"diversity", "latent_mean", "latent_std", "detail"}


def test_the_command_leaves_numbers_a_table_and_a_picture(study, model, reference, tmp_path):
    out = tmp_path / "new" / "study"
    arguments = ("-m", model, "--reference", reference, "--captions", 3, "--count", 2, "--steps", 3, "--draws", 2)
    code, said, err = study(*arguments, "--judged", 4, "-o", out)
    assert code == 0, err
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    bounds = {row["way"]: row for row in rows if row["metric"] == "vlb" and row["way"] is not None}
    assert bounds["beta"]["value"] < math.inf and bounds["beta_tilde"]["se"] > 0
    assert bounds["zero"]["value"] is None and "infinite" in bounds["zero"]["note"]
    ways = {row["way"] for row in rows if row["metric"] == "diversity"}
    assert ways == {"data", *WAYS}
    differences = [row for row in rows if row["against"] == "beta"]
    assert {row["way"] for row in differences} == {"beta_tilde", "zero", "ddim"}
    assert any(row["metric"] == "caption_info" and row["variance"] == "optimal" for row in rows)
    assert "diversity_of_a_prompt" in said and "infinite" in said
    with (out / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    with Image.open(out / "sigma.png") as sheet:
        assert sheet.width > 5 * 128 and sheet.height > 6 * 128
    page = (out / "report.html").read_text()
    assert page.count("<img") == 6 * 5 and "diversity" in page and "sigma = 0" in page
    bounds = [row for row in rows if row["metric"] == "vlb"]
    assert {row["n"] for row in bounds} == {4}
    code, _, err = study(*arguments, "-o", out)
    assert code == 2 and "metrics.json" in err and "another folder" in err


def test_bad_input(study, model, reference, tmp_path):
    out = tmp_path / "study"
    for arguments, wanted in (
        ([], "nothing to sample"),
        (["-p", "a", "-p", "b"], "2 different prompts: intervals need 3"),
        (["--reference", tmp_path / "none.parquet"], "none.parquet': no such file"),
        (["--reference", reference, "--steps", 9], "--steps = 9: not in 1..8"),
        (["--reference", reference, "--device", "nowhere"], "device = 'nowhere'"),
    ):
        code, _, err = study("-m", model, *arguments, "-o", out)
        assert code == 2 and wanted in err, err
        assert not out.exists()


def test_a_folder_that_cannot_be_written_is_refused_before_sampling(study, model, reference, tmp_path, monkeypatch):
    monkeypatch.setattr("t2i.evaluation.variance.sample", None)
    (tmp_path / "file").write_text("")
    code, _, err = study("-m", model, "--reference", reference, "--steps", 2, "-o", tmp_path / "file" / "o")
    assert code == 1 and "file/o/.writable: not written (" in err and "Traceback" not in err, err


def test_an_evaluation_compares_variances_too(monkeypatch, capsys, model, reference, tmp_path):
    flags = ["--metrics", "vlb", "--variance", "--steps", 3, "--cfg", "2", "--n", 4, "--device", "cpu", "--no-anchors"]
    command = ["t2i", "evaluate", "-m", model, "--reference", reference, *flags, "-o", tmp_path / "o"]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, capsys.readouterr().err
    rows = [row for row in json.loads((tmp_path / "o" / "metrics.json").read_text())["rows"] if "way" in row]
    assert {row["way"] for row in rows if row["metric"] == "diversity"} == {"data", *WAYS}
    sampled = next(row for row in rows if row["way"] == "zero")
    assert (sampled["solver"], sampled["steps"], sampled["cfg"], sampled["n"]) == ("ddpm", 3, 2.0, 4)
    page = (tmp_path / "o" / "report.html").read_text()
    assert "The variance of Algorithm 2" in page and "every KL divergence is infinite" in page and WAYS["zero"] in page
