"""Recipes and plans: nothing but the recipe is read; whatever is wrong is said before the first run."""

import re
import threading
import time
from pathlib import Path

import pytest

from t2i.config import load_recipe
from t2i.study import encoder_sizes
from t2i.study.plan import Run, axis_of, plan_lines, runs_of
from t2i.study.recipe import StudyRecipe
from t2i.study.run import Stage, study, work
from t2i.study.training import train_recipe
from tests.study import tiny

SHIPPED = tiny.ROOT / "configs" / "study"


def recipe(folder: Path, **changes) -> StudyRecipe:
    return load_recipe(tiny.written(tiny.study(folder, **changes), folder / "study.yaml"), [], StudyRecipe)


@pytest.mark.parametrize("name", ["scenes", "imagen-fig4"])
def test_shipped_recipes_plan_without_data_or_network(name, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    monkeypatch.chdir(tiny.ROOT)
    wanted = load_recipe(SHIPPED / f"{name}.yaml", [], StudyRecipe)
    said = plan_lines(wanted)
    assert re.fullmatch(r"runs: \d+  evaluations: \d+  hours: \d+\.\d", said[-1])
    assert f"runs: {len(runs_of(wanted))}  " in said[-1]
    text = "\n".join(said)
    if name == "imagen-fig4":
        assert "4.76G parameters  width  4096" in text and text.count("not here: comes from the hub") == 8
    else:
        ladders = [e for e in wanted.encoders.values() if e.family]
        assert len(ladders) >= 4 and len(wanted.encoders) - len(ladders) >= 3 and len(wanted.unets) >= 3


def test_known_sizes_are_those_of_the_networks():
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    t5 = T5Config(vocab_size=32128, d_model=768, d_ff=2048, num_layers=12, num_heads=12, feed_forward_proj="gated-gelu")
    clip = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in network.parameters()) for network in (T5EncoderModel(t5), CLIPTextModel(clip))]
    found = [encoder_sizes.find("google/t5-v1_1-base"), encoder_sizes.find("clip:openai/clip-vit-large-patch14")]
    assert [k.parameters for k in found if k] == sizes and encoder_sizes.find("somebody/else") is None


def test_order_first_what_sensitivity_needs_then_one_seed_of_everything(tmp_path):
    encoders = {
        name: {"text_encoder": f"control:{name}" if name in ("null", "oracle") else name, "seeds": seeds}
        for name, seeds in (("a", 2), ("b", 1), ("null", 3), ("oracle", 3))
    }
    unets = {"base": {"unet": tiny.UNET}, "wide": {"unet": tiny.UNET, "seeds": 2}}
    wanted = recipe(tmp_path, encoders=encoders, unets=unets, unets_with="a")
    assert [run.name for run in runs_of(wanted)] == [
        *("oracle.base.0", "null.base.0", "a.base.0", "b.base.0", "a.wide.0"),
        *("oracle.base.1", "null.base.1", "a.base.1", "a.wide.1"),
        *("oracle.base.2", "null.base.2"),
    ]
    assert [axis_of(wanted, run) for run in runs_of(wanted)[:5]][2:] == [("encoder", "unet"), ("encoder",), ("unet",)]


def test_a_network_may_have_a_rate_of_its_own(tmp_path):
    unets = {"base": {"unet": tiny.UNET}, "wide": {"unet": tiny.UNET, "lr": 0.5}}
    wanted = recipe(tmp_path, unets=unets, unets_with="null")
    rates = [train_recipe(wanted, Run("null", name, 0)).train.lr for name in unets]
    assert rates == [wanted.train.lr, 0.5] and wanted.train.lr != 0.5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "wide"}, r"base = wide: is none of base"),
        ({"unets_with": "bert"}, r"unets_with = bert: is none of clip, t5, null, oracle"),
        ({"sensitivity": {"sees": "scene"}}, r"sensitivity\.sees = scene"),
        ({"colour": 1}, r"unknown key `colour`"),
        ({"encoders": {"a": {"text_encoder": "control:oracl"}}}, r"'control:oracl': write one of control:null"),
        ({"encoders": {"a": {"text_encoder": "control:bag"}}}, r"'control:bag': write one of control:null"),
        ({"encoders": {"a b": {"text_encoder": "x"}}}, r"encoders\.a b: a name is made of"),
        ({"train": {"steps": 1, "global_batch": 1, "lr": 1, "init": "x"}}, r"train\.init"),
    ],
)
def test_faults_of_a_recipe_are_named(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        recipe(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance": [1, 2, 2]}, r"guidance = 1, 2, 2: each scale once"),
        ({"guidance": [1, 2, -3]}, r"guidance = 1, 2, -3: each scale once, 0 or larger"),
        ({"at": 4}, r"at = 4 is none of guidance = 1, 2"),
        ({"solver": "ddpm"}, r"ddpm adds noise"),
        ({"only": {"taste": tiny.scenes(4, 1)}}, r"only\.taste: no such skill"),
        ({"test": {"source": "folder", "path": "x"}}, r"set skills: false, and a judge"),
        ({"skills": False, "only": {}}, r"a judge is needed"),
    ],
)
def test_faults_of_an_evaluation_are_named(tmp_path, changes, said):
    values = tiny.study(tmp_path)["evaluate"] | changes
    with pytest.raises(ValueError, match=said):
        recipe(tmp_path, evaluate=values)


def test_every_encoder_that_does_not_resolve_is_named_before_anything_is_done(tmp_path):
    encoders = {
        "null": {"text_encoder": "control:null"},
        "oracle": {"text_encoder": "control:oracle"},
        "gone": {"text_encoder": str(tmp_path / "gone")},
        "odd": {"text_encoder": f"control:bag:{tmp_path / 'away'}"},
    }
    wanted = recipe(tmp_path, encoders=encoders, unets_with="null")
    with pytest.raises(
        ValueError, match=r"(?s)nothing was begun:.*gone: .*no such folder.*odd: .*away: no such folder"
    ):
        study(wanted)
    assert not (tmp_path / "study").exists() and not (tmp_path / "vae").exists()


def test_two_workers_share_stages_and_do_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr("t2i.study.run.POLL_SECONDS", 0.01)
    done: list[str] = []
    said: list[str] = []

    def stage(name: str, *needs: str) -> Stage:
        def run() -> None:
            time.sleep(0.03)
            assert set(needs) <= set(done)
            done.append(name)

        return Stage(name, lambda: name in done, run, needs)

    stages = [stage("a"), stage("b"), stage("c", "a", "b"), *(stage(f"run {i}", "c") for i in range(8))]
    ours: list[list[str]] = []
    workers = [
        threading.Thread(target=lambda: ours.append(work(stages, tmp_path / "claims", said.append))) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert sorted(done) == sorted(s.name for s in stages) == sorted([*ours[0], *ours[1]])
    assert all(ours) and any("waiting" in line for line in said)


def test_a_failed_stage_ends_its_worker_and_frees_its_claim(tmp_path):
    done: list[str] = []

    def run() -> None:
        if not done:
            done.append("tried")
            raise RuntimeError("out of memory")
        done.append("x")

    stages = [Stage("x", lambda: "x" in done, run)]
    with pytest.raises(RuntimeError):
        work(stages, tmp_path / "claims")
    assert work(stages, tmp_path / "claims") == ["x"]
