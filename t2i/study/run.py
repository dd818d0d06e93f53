"""`t2i study text-encoder`: preparations, encoders and baselines, then each run trained and evaluated, in stages."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from t2i.component import read_safetensors
from t2i.data.transforms import to_float, to_pixels
from t2i.evaluation.rows import read_rows
from t2i.files import check_writable, lock, read_json, write_png
from t2i.report.grid import image_grid
from t2i.study import measure, prepare
from t2i.study.measure import Lab
from t2i.study.plan import Run, runs_of
from t2i.study.recipe import StudyRecipe
from t2i.study.results import REPORT, sheet_name, write_results
from t2i.study.training import is_trained, train_recipe, train_run, trained_steps
from t2i.training.distributed import process_state
from t2i.training.resume import check_run

POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Stage:
    """A part of a study: `done` looks at the disk; `run` resumes what a killed process has begun."""

    name: str
    done: Callable[[], bool]
    run: Callable[[], object]
    needs: tuple[str, ...] = ()


def study(recipe: StudyRecipe) -> list[str]:
    """Does what is left of a study, together with all processes of the same command; returns the stages done here."""
    if process_state().num_processes > 1:
        raise ValueError(
            "a study's runs are small: start the same command several times, and the processes share the runs, in "
            "place of one run over many by torchrun"
        )
    prepare.check_encoders(recipe)
    measure.commit()  # before files change during a study of hours
    for run in runs_of(recipe):
        train = train_recipe(recipe, run)
        check_run(train, couples_batch=False)
        check_steps(recipe, run)
    check_writable(recipe.folder)
    lab = Lab(recipe)
    done = work(stages_of(recipe, lab), recipe.folder / "claims", lambda text: print(text, flush=True))
    collect(recipe, lab)
    return done


def check_steps(recipe: StudyRecipe, run: Run) -> None:
    """Raises if a finished run was trained for another number of steps than the recipe's: it would stay as it is."""
    if is_trained(recipe, run) and (steps := trained_steps(run.folder(recipe))) != recipe.train.steps:
        raise ValueError(
            f"{run.folder(recipe)}: was trained for {steps} steps; runs of train.steps={recipe.train.steps} do not "
            "compare with it: restore the number, or start a new study with out=FOLDER"
        )


def stages_of(recipe: StudyRecipe, lab: Lab) -> list[Stage]:
    """Returns all stages in order: every encoder is opened before the first run begins."""
    stages = [
        Stage(
            f"prepare {name}",
            partial(prepare.prepared, entry),
            partial(prepare.prepare, entry),
            tuple(f"prepare {other}" for other in entry.after),
        )
        for name, entry in recipe.prepare.items()
    ]
    basis = tuple(stage.name for stage in stages)
    for name in recipe.encoders:
        run = partial(prepare.ready_encoder, recipe, name, train_recipe(recipe, Run(name, recipe.base, 0)))
        stages.append(Stage(f"encoder {name}", partial(prepare.encoder_ready, recipe, name), run, basis))
    stages.append(Stage("anchors", partial(measure.has_baselines, lab), partial(measure.write_baselines, lab), basis))
    basis = tuple(stage.name for stage in stages)
    for run in runs_of(recipe):
        train = Stage(f"train {run.name}", partial(is_trained, recipe, run), partial(train_run, recipe, run), basis)
        evaluated = partial(measure.is_evaluated, lab, run)
        stages += [train, Stage(f"evaluate {run.name}", evaluated, partial(_evaluate, recipe, lab, run), (train.name,))]
    return stages


def _evaluate(recipe: StudyRecipe, lab: Lab, run: Run) -> None:
    measure.evaluate_run(lab, run)
    collect(recipe, lab)


def work(stages: Sequence[Stage], claims: Path, report: Callable[[str], object] = print) -> list[str]:
    """Does stages in order, except those that other processes have locked, until all are done; returns those done here.

    The lock of a stage ends with its process, so a killed one leaves its stage to the next.
    """
    claims.mkdir(parents=True, exist_ok=True)
    ours: list[str] = []
    waiting = False
    while open_stages := [stage for stage in stages if not stage.done()]:
        names = {stage.name for stage in open_stages}
        for stage in open_stages:
            if names & set(stage.needs):
                continue
            with lock(claims / f"{stage.name}.lock") as mine:
                if not mine or stage.done():
                    continue
                report(f"stage {len(stages) - len(open_stages) + 1} of {len(stages)}: {stage.name}")
                stage.run()
                assert stage.done(), stage.name
                ours.append(stage.name)
                waiting = False
                break
        else:
            if not waiting:
                report(f"waiting for other processes: {', '.join(s.name for s in open_stages[:4])}")
            waiting = True
            time.sleep(POLL_SECONDS)
    return ours


def collect(recipe: StudyRecipe, lab: Lab) -> Path:
    """Writes the folder `report`: rows of the finished runs, their sheets, and the description of the study."""
    folder = recipe.folder / REPORT
    with lock(recipe.folder / "claims" / "collect.lock", wait=True):
        finished = [run for run in runs_of(recipe) if measure.is_evaluated(lab, run)]
        rows = read_rows(measure.baselines_folder(lab)) if measure.has_baselines(lab) else []
        for run in finished:
            rows += read_rows(measure.folder_of(lab, run))
        runs = {run.name: measure.head_of(measure.folder_of(lab, run))["run"] for run in finished}
        write_results(rows, runs, _about(recipe, lab), folder)
        (folder / "sheets").mkdir(parents=True, exist_ok=True)
        for run in finished:
            tensors = read_safetensors(measure.folder_of(lab, run) / f"cfg-{recipe.evaluate.at:g}.safetensors")
            sheet = image_grid(to_pixels(to_float(tensors["sheet"])), columns=len(tensors["sheet"]))
            write_png(folder / "sheets" / sheet_name(run.name, recipe.evaluate.at), sheet)
    return folder


def _about(recipe: StudyRecipe, lab: Lab) -> dict[str, Any]:
    """Returns what study.json records of the study as a whole."""
    ready = [name for name in recipe.encoders if prepare.encoder_ready(recipe, name)]
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
        "encoders": {name: read_json(prepare.encoder_file(recipe, name)) for name in ready},
        "prepared": {name: _prepared(recipe, name) for name in recipe.prepare},
        "captions": lab.captions[: recipe.evaluate.shown],
    }


def _prepared(recipe: StudyRecipe, name: str) -> dict[str, Any]:
    """Returns the folder of a preparation and its report."""
    folder = prepare.preparation(recipe.prepare[name])[0].run
    path = folder / "report.json"
    return {"folder": str(folder)} | (read_json(path) if path.is_file() else {})
