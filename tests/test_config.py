"""Recipes: YAML, overrides, and faults that name the key and the way out."""

from pathlib import Path

import pytest
from pydantic import Field

from t2i.config import Section, TrainConfig, check_verb, load_recipe, override, read_recipe


class Inner(Section):
    width: int = Field(default=3, gt=0)
    names: tuple[str, ...] = ()


class Sample(Section):
    train: TrainConfig
    inner: Inner = Inner()
    maybe: Inner | None = None
    title: str = "none"


GOOD = "train:\n  steps: 10\n  global_batch: 4\n  lr: 1.0e-3\n"


def load(tmp_path, text: str, *overrides: str) -> Sample:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf8")
    return load_recipe(path, overrides, Sample)


def fault(tmp_path, text: str, *overrides: str) -> str:
    with pytest.raises(ValueError, match=r"recipe\.yaml: |: an override|: the value|is a value") as error:
        load(tmp_path, text, *overrides)
    return str(error.value)


def test_defaults_file_and_overrides_in_that_order(tmp_path):
    plain = load(tmp_path, GOOD + "inner:\n  width: 5\n")
    assert (plain.train.steps, plain.train.lr, plain.train.clip_norm, plain.inner.width) == (10, 1e-3, 1.0, 5)
    said = [
        "train.steps=20",
        "inner.width=7",
        "inner.names=[a, b]",
        "train.clip_norm=null",
        "maybe.width=9",
        "title=x=y",
    ]
    made = load(tmp_path, GOOD + "inner:\n  width: 5\n", *said)
    assert (made.train.steps, made.inner.width, made.inner.names, made.train.clip_norm) == (20, 7, ("a", "b"), None)
    assert made.maybe == Inner(width=9) and made.title == "x=y"
    assert load(tmp_path, GOOD, "train.lr=5e-4").train.lr == 5e-4  # which YAML itself reads as text


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (GOOD + "  stepz: 3\n", (), "unknown key `train.stepz`; did you mean `train.steps`?"),
        (GOOD, ("train.warmup=3",), "unknown key `train.warmup`; did you mean `train.warmup_steps`?"),
        (GOOD + "iner: {}\n", (), "unknown key `iner`; did you mean `inner`?"),
        (GOOD, ("maybe.widht=3",), "unknown key `maybe.widht`; did you mean `maybe.width`?"),
        (GOOD, ("inner.qqqq=3",), "unknown key `inner.qqqq`; known keys: names, width"),
        (GOOD, ("train.mixed_precision=fp8",), "`train.mixed_precision`: Input should be 'no', 'fp16' or 'bf16'"),
        (GOOD, ("train.steps=0",), "`train.steps`: Input should be greater than 0"),
        ("title: x\n", (), "`train`: Field required"),
        ("", (), "`train`: Field required"),
        ("- a\n- b\n", (), "a recipe is a mapping of keys to values"),
        ("a: [1,\n", (), "not readable YAML"),
        (GOOD, ("train.steps",), "'train.steps': an override has the form key=value, for example train.steps=1000"),
        (GOOD, ("=3",), "an override has the form key=value"),
        (GOOD, ("title.inner=3",), None),
        (GOOD, ("train.steps.more=3",), "`steps` is a value, not a section"),
        (GOOD, ("title=[1",), "the value is not readable YAML"),
    ],
)
def test_faults_are_named(tmp_path, text, overrides, said):
    found = fault(tmp_path, text, *overrides)
    assert (said or "`title`") in found, found


@pytest.mark.parametrize(("text", "overrides"), [("  mixed_precision: no\n", ()), ("", ("train.mixed_precision=no",))])
def test_a_bare_no_is_a_choice(tmp_path, text, overrides):
    assert load(tmp_path, GOOD + text, *overrides).train.mixed_precision == "no"


def test_every_fault_is_listed_at_once(tmp_path):
    found = fault(tmp_path, GOOD + "  stepz: 3\n", "train.lr=-1", "inner.width=many")
    assert "recipe.yaml: " in found
    assert all(key in found for key in ("`train.stepz`", "`train.lr`", "`inner.width`")) and found.count("\n") == 2


def test_a_missing_recipe_and_a_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.yaml: no such recipe"):
        load_recipe(tmp_path / "nothing.yaml", [], Sample)
    with pytest.raises(ValueError, match="not readable YAML"):
        load_recipe(tmp_path, [], Sample)


def test_yaml_runs_no_code(tmp_path):
    assert "not readable YAML" in fault(tmp_path, "title: !!python/object/apply:os.system ['true']\n")


def test_recipes_are_frozen(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, GOOD).title = "other"


def test_override_makes_the_sections_it_needs():
    values: dict = {"a": {"b": 1}}
    override(values, "a.c.d=[1, 2]")
    override(values, "x=no")
    assert values == {"a": {"b": 1, "c": {"d": [1, 2]}}, "x": False}


@pytest.mark.parametrize("text", ["unet: {layers_per_block: 1}\nvae: runs/vae\n", "vae: {latent_channels: 4}\n"])
def test_a_recipe_of_another_component_is_named(tmp_path, text):
    kind = text.split(":")[0]
    with pytest.raises(ValueError, match=f"recipe.yaml: this is a recipe for `t2i train {kind}`"):
        load(tmp_path, text + GOOD)


RECIPES = {
    "scenes/vae": "train vae",
    "scenes/unet": "train unet",
    "scenes/text-encoder": "train text-encoder",
    "finetune/lora": "finetune",
    "study/scenes": "study text-encoder",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_given_to_another_verb_is_named(name):
    path = Path(__file__).parent.parent / "configs" / f"{name}.yaml"
    for verb in set(RECIPES.values()) - {RECIPES[name]}:
        with pytest.raises(ValueError, match=f"{name}.yaml: this is a recipe for `t2i {RECIPES[name]}`"):
            check_verb(path, read_recipe(path), verb)
    check_verb(path, read_recipe(path), RECIPES[name])


def test_depth_without_end_is_refused(tmp_path):
    deep = "[" * 20_000
    (tmp_path / "deep.yaml").write_text("data: " + deep)
    with pytest.raises(ValueError, match=r"deep\.yaml: not readable YAML \(nested too deeply\)"):
        read_recipe(tmp_path / "deep.yaml")
    with pytest.raises(ValueError, match="nested too deeply"):
        override({}, f"data={deep}")
