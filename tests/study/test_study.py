"""A whole study: killed and begun again it repeats no finished stage; its runs differ in one thing alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t2i.component import read_safetensors
from t2i.config import load_recipe
from t2i.evaluation.generated import ModelSamples
from t2i.evaluation.rows import read_rows
from t2i.study import measure, report
from t2i.study import run as engine
from t2i.study.measure import Lab
from t2i.study.plan import runs_of
from t2i.study.recipe import StudyRecipe
from t2i.study.results import REPORT, read_results, sheet_name
from t2i.study.run import stages_of, study
from tests.hang import SECONDS
from tests.study import tiny

WEIGHTS = "diffusion_pytorch_model.safetensors"


def kill_when(path: Path, command: list[str]) -> None:
    """Run a command until a file is there, and end it as a power cut would."""
    process = subprocess.Popen(command, cwd=tiny.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        for _ in range(int(SECONDS / 0.05)):
            if path.is_file():
                return
            assert process.poll() is None, "it ended before the file was there"
            time.sleep(0.05)
        raise AssertionError(f"{path} never came")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def recipe(folder) -> StudyRecipe:
    return load_recipe(tiny.written(tiny.study(folder), folder / "study.yaml"), [], StudyRecipe)


@pytest.fixture(scope="module")
def finished(folder, recipe) -> list[str]:
    """Killed in the second run's training; returns what the second command did, the stages done before taken out."""
    command = [sys.executable, "-m", "t2i", "study", "text-encoder", str(folder / "study.yaml")]
    kill_when(folder / "study" / "runs" / "null.base.0" / "train" / "recipe.json", command)
    stages = stages_of(recipe, Lab(recipe))
    before = [stage.name for stage in stages if stage.done()]
    assert {"prepare vae", "encoder oracle", "anchors", "train oracle.base.0"} <= set(before)
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name in ("report.json", "metrics.json")}
    done = study(recipe)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sorted([*before, *done]) == sorted(stage.name for stage in stages)
    return done


def test_a_killed_study_goes_on_and_a_finished_one_has_nothing_to_do(finished, recipe):
    assert "train null.base.0" in finished and "evaluate clip.base.0" in finished
    assert study(recipe) == []


def test_finished_runs_do_not_stand_beside_longer_ones(finished, recipe):
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": recipe.train.steps + 1})})
    with pytest.raises(
        ValueError, match=r"oracle\.base\.0: was trained for \d+ steps; runs of train\.steps=\d+ do not"
    ):
        study(longer)


def test_sheets_are_of_the_guidance_that_the_page_names(finished, recipe, folder):
    sheets = folder / "study" / REPORT / "sheets"
    before = {path.name for path in sheets.iterdir()}
    other = next(w for w in recipe.evaluate.guidance if w != recipe.evaluate.at)
    engine.collect(again := asking(recipe, at=other), Lab(again))
    assert before == {sheet_name(run.name, recipe.evaluate.at) for run in runs_of(recipe)}
    assert {path.name for path in sheets.iterdir()} - before == {sheet_name(run.name, other) for run in runs_of(recipe)}
    engine.collect(recipe, Lab(recipe))


def test_rows_of_other_guidances_are_kept(finished, recipe, folder, monkeypatch):
    shutil.copytree(folder / "study", folder / "copy")
    fewer = asking(recipe, guidance=(2.0,), at_fd=2.0).model_copy(update={"out": str(folder / "copy")})
    run, lab = runs_of(fewer)[0], Lab(fewer)
    before = read_rows(measure.folder_of(lab, run))
    assert not measure.is_evaluated(lab, run)
    monkeypatch.setattr(ModelSamples, "draw", None)
    measure.evaluate_run(lab, run)
    assert measure.is_evaluated(lab, run)
    assert read_rows(measure.folder_of(lab, run)) == [row for row in before if row.protocol.guidance != 1]


def asking(recipe, **keys):
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=keys)})


def test_runs_begin_from_the_same_network_and_see_the_same(finished, recipe, folder):
    begun = {}
    for name in recipe.encoders:
        begun[name] = read_safetensors(folder / "study" / "runs" / f"{name}.base.0" / "begin" / WEIGHTS)
    first = begun.pop("oracle")
    for other in begun.values():
        body = {key for key in other if "encoder_hid_proj" not in key}
        assert body == {key for key in first if "encoder_hid_proj" not in key} and len(body) > 50
        assert all(other[key].equal(first[key]) for key in body)
    assert len({len(other["encoder_hid_proj.weight"]) for other in begun.values()}) == 1
    trained = [
        read_safetensors(folder / "study" / "runs" / f"{name}.base.0" / "train" / "model" / "unet" / WEIGHTS)
        for name in ("clip", "null")
    ]
    assert not trained[0]["conv_in.weight"].equal(trained[1]["conv_in.weight"])


def test_every_run_is_drawn_at_every_guidance_from_the_same_noise(finished, recipe, folder):
    lab = Lab(recipe)
    assert lab.noise([3], (4, 8, 8)).equal(Lab(recipe).noise([2, 3], (4, 8, 8))[1:])
    sheets = [
        read_safetensors(folder / "study" / "runs" / "null.base.0" / f"evaluate-{lab.key}" / f"cfg-{w}.safetensors")
        for w in (1, 2)
    ]
    # The null is told nothing, so that guidance has nothing to guide.
    assert (sheets[0]["sheet"].int() - sheets[1]["sheet"].int()).abs().max() <= 1
    results = read_results(folder / "study" / REPORT)
    assert {
        row.protocol.guidance for row in results.rows if row.extra["run"] == "t5.base.0" and row.metric == "fd"
    } == {1.0, 2.0}


def test_rows_know_their_run_and_the_page_is_drawn_from_them_alone(finished, folder, tmp_path):
    place = tmp_path / "moved"
    place.mkdir()
    for name in ("results.csv", "study.json"):
        (place / name).write_bytes((folder / "study" / REPORT / name).read_bytes())
    said = report.write(place)
    assert said[0].startswith("Not sensitive enough: oracle against null")
    results = read_results(place)
    about = results.runs["clip.base.0"]
    assert about["train_seed"] == 0 and len(about["model"]) == len(about["text_encoder"]) == 64
    assert about["axes"] == "encoder+unet" and about["unet_parameters"] > 1000 and about["train_seconds"] > 0
    metrics = {row.metric for row in results.rows if row.extra["run"] == "clip.base.0"}
    assert {"fd", "binding", "held_out_pairs", "caption_info", "caption_margin", "vlb", "relation"} <= metrics
    real = results.find("real", "exact")
    assert real is not None and real.value == 1
    assert results.find("shuffled", "exact").value < 0.2  # pyright: ignore[reportOptionalMemberAccess]


def test_null_is_told_nothing_and_the_bound_says_so(finished, folder):
    info = read_results(folder / "study" / REPORT).find("null.base.0", "caption_info")
    assert info is not None and abs(info.value) < 1e-3


def test_another_encoder_under_the_same_name_is_refused(finished, recipe, folder):
    from t2i.study.plan import Run
    from t2i.study.training import train_run

    again = recipe.model_copy(update={"out": str(folder / "again")})
    (folder / "again" / "encoders").mkdir(parents=True)
    known = (folder / "study" / "encoders" / "clip.json").read_text()
    fingerprint = json.loads(known)["fingerprint"]
    (folder / "again" / "encoders" / "clip.json").write_text(known.replace(fingerprint, "0" * 64))
    with pytest.raises(ValueError, match=r"clip: .* is another encoder than when this study was begun"):
        train_run(again, Run("clip", "base", 0))
