"""`t2i study text-encoder`: preparations, encoders, anchors, then run after run, each trained and evaluated."""

from functools import partial
from pathlib import Path
from typing import Any

from t2i.component import read_safetensors
from t2i.data.transforms import to_float, to_pixels
from t2i.evaluation.rows import Row, read_rows
from t2i.files import lock, read_json
from t2i.report.grid import image_grid
from t2i.study import anchors, measure, prepare
from t2i.study.files import REPORT, sheet_name
from t2i.study.lab import Lab
from t2i.study.plan import Run, runs_of
from t2i.study.recipe import StudyRecipe
from t2i.study.stages import Stage, work
from t2i.study.table import write_results
from t2i.study.training import is_trained, train_recipe, train_run, trained_steps
from t2i.training.distributed import process_state
from t2i.training.resume import check_run


def study(recipe: StudyRecipe) -> list[str]:
    """Do all that is left of a study, together with whichever processes were started likewise."""
    if process_state().num_processes > 1:
        raise ValueError(
            "a study's runs are small: start the same command several times, and the processes share the runs, in "
            "place of one run over many by torchrun"
        )
    prepare.check_encoders(recipe)
    measure.commit()  # now, before anything changes under a study of hours
    for run in runs_of(recipe):
        wanted = train_recipe(recipe, run)
        check_run(wanted, couples_batch=False)
        check_steps(recipe, run)
    recipe.folder.mkdir(parents=True, exist_ok=True)
    lab = Lab(recipe)
    done = work(stages_of(recipe, lab), recipe.folder / "claims", lambda text: print(text, flush=True))
    collect(recipe, lab)
    return done


def check_steps(recipe: StudyRecipe, run: Run) -> None:
    """Refuse another number of steps than those of a run that is finished: it would stay as it is."""
    if is_trained(recipe, run):
        folder, asked = run.folder(recipe), recipe.train.steps
        if (steps := trained_steps(folder)) != asked:
            raise ValueError(
                f"{folder}: is trained, for {steps} steps; with train.steps={asked} it would stand beside runs of "
                "another length: put the number back, or begin a new study with out=FOLDER"
            )


def stages_of(recipe: StudyRecipe, lab: Lab) -> list[Stage]:
    """Every stage in order: all encoders resolve before the first run begins."""
    found = [
        Stage(
            f"prepare {name}", partial(prepare.prepared, entry), partial(prepare.prepare, entry),
            tuple(f"prepare {other}" for other in entry.after),
        )
        for name, entry in recipe.prepare.items()
    ]  # fmt: skip
    basis = tuple(stage.name for stage in found)
    for name in recipe.encoders:
        wanted = train_recipe(recipe, Run(name, recipe.base, 0))
        run = partial(prepare.ready_encoder, recipe, name, wanted)
        found.append(Stage(f"encoder {name}", partial(prepare.encoder_ready, recipe, name), run, basis))
    found.append(Stage("anchors", partial(anchors.is_anchored, lab), partial(anchors.anchor, lab), basis))
    basis = tuple(stage.name for stage in found)
    for run in runs_of(recipe):
        train = Stage(f"train {run.name}", partial(is_trained, recipe, run), partial(train_run, recipe, run), basis)
        evaluated = partial(measure.is_evaluated, lab, run)
        found += [train, Stage(f"evaluate {run.name}", evaluated, partial(_evaluate, recipe, lab, run), (train.name,))]
    return found


def _evaluate(recipe: StudyRecipe, lab: Lab, run: Run) -> None:
    measure.evaluate_run(lab, run)
    collect(recipe, lab)


def collect(recipe: StudyRecipe, lab: Lab) -> Path:
    """Everything that a report is made of, in `report`: rows of the finished runs, sheets, what the study is."""
    folder = recipe.folder / REPORT
    with lock(recipe.folder / "claims" / "collect.lock", wait=True):
        finished = [run for run in runs_of(recipe) if measure.is_evaluated(lab, run)]
        rows: list[Row] = read_rows(anchors.folder_of(lab)) if anchors.is_anchored(lab) else []
        for run in finished:
            rows += read_rows(measure.folder_of(lab, run))
        runs = {run.name: read_json(measure.folder_of(lab, run) / "metrics.json")["run"] for run in finished}
        write_results(rows, runs, _about(recipe, lab), folder)
        for run in finished:
            _sheet(recipe, lab, run, folder / "sheets")
    return folder


def _about(recipe: StudyRecipe, lab: Lab) -> dict[str, Any]:
    """What study.json says of the whole."""
    known = [name for name in recipe.encoders if prepare.encoder_ready(recipe, name)]
    return {
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
        "at": recipe.evaluate.at,
        "at_fd": recipe.evaluate.at_fd,
        "base": recipe.base,
        "unets_with": recipe.unets_with,
        "families": {name: entry.family for name, entry in recipe.encoders.items()},
        "alignment": recipe.evaluate.alignment,
        "sensitivity": recipe.sensitivity.model_dump(),
        "planned": [run.name for run in runs_of(recipe)],
        "encoders": {name: read_json(prepare.encoder_file(recipe, name)) for name in known},
        "prepared": {name: _prepared(recipe, name) for name in recipe.prepare},
        "captions": lab.captions[: recipe.evaluate.shown],
    }


def _prepared(recipe: StudyRecipe, name: str) -> dict[str, Any]:
    """What a preparation's own report says."""
    run = prepare.preparation(recipe.prepare[name])[0].run
    path = run / "report.json"
    return {"folder": str(run)} | (read_json(path) if path.is_file() else {})


def _sheet(recipe: StudyRecipe, lab: Lab, run: Run, folder: Path) -> None:
    """The first pictures of a run at the guidance where sizes are compared, in a row."""
    folder.mkdir(parents=True, exist_ok=True)
    found = read_safetensors(measure.folder_of(lab, run) / f"cfg-{recipe.evaluate.at:g}.safetensors")
    picture = image_grid(to_pixels(to_float(found["sheet"])), columns=len(found["sheet"]))
    picture.save(folder / sheet_name(run.name, recipe.evaluate.at))
