"""Every setting that a picture can hold, in any combination, comes back from ours, and what A1111 has from A1111's."""

from hypothesis import HealthCheck, example, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from t2i.diffusion.solvers import SOLVERS
from t2i.pipeline import settings
from t2i.pipeline.metadata import OPTIONS, read_png, request_from, to_a1111
from t2i.pipeline.metadata.a1111 import KEYS
from t2i.pipeline.outputs import ImageFolder
from t2i.pipeline.settings import FILES

SHARES = st.floats(0, 1)
SEEDS = st.integers(0, 2**63 - 1)
HARD = [
    'a "red" circle, left: a \'blue\' square\n\nSteps: 3, Sampler: Euler, CFG scale: 1, Seed: 4, Size: 8x8',
    "Negative prompt: x\nNegative prompt: y\r\n, : ,: \\ \\\" \t\0 🦊👩‍👩‍👧\u2028\x85 {}[]<lora:x:1> ",
    'Steps: 3, t2i prompt: "x", t2i negative prompt: "y", Version: t2i',
    '{"prompt": "x", "steps": 3}',
]  # fmt: skip
LONG = ['"a", b: c\n' * 1000, "🦊" * 10_000, "Steps: 3, Seed: 1\n" * 600, "Negative prompt: x\n" * 600]
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text(st.sampled_from('",:\\ \n\ta{<🦊'), max_size=4),
    st.sampled_from(HARD),
    st.lists(st.sampled_from([*HARD, "a fox", "\n", " ", ",", ":", '"']), max_size=5).map("".join),
    st.sampled_from(LONG),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)
REQUIRED = {
    "prompt": TEXTS,
    "steps": st.integers(1, 10_000),
    "cfg": st.floats(0, 1000),
    "solver": st.sampled_from(sorted(SOLVERS)),
    "seed": SEEDS,
    "size": st.builds("{}x{}".format, st.integers(1, 65_536), st.integers(1, 65_536)),
    "rng": st.just("cpu"),
}
OPTIONAL = {
    "negative": TEXTS,
    "sigmas": st.sampled_from(["karras", "exponential"]),
    "spacing": st.sampled_from(["leading", "linspace", "trailing"]),
    "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample", "eps", "v"]),
    "eta": SHARES,
    "strength": SHARES,
    "clip_skip": st.integers(1, 99),
    "guidance_rescale": SHARES,
    "guidance_interval": st.lists(SHARES, min_size=2, max_size=2),
    "prompt_syntax": st.sampled_from(["plain", "a1111"]),
    "long_prompts": st.booleans(),
    "towards": st.tuples(TEXTS, SHARES).map(list),
    "variation_seed": SEEDS,
    "variation_strength": SHARES,
    "embeddings": st.lists(st.tuples(NAMES, HASHES).map(list), max_size=2),
    "loras": st.lists(st.tuples(NAMES, HASHES, st.floats(-1000, 1000)).map(list), max_size=2),
    "vae_tile": st.integers(1, 65_536),
    "attention": st.sampled_from(["sdpa", "xformers"]),
    "engine": st.sampled_from(["torch", "openvino"]),
    "model": TEXTS,
    "model_config": NAMES,
    "model_sha256": HASHES,
    "model_hash": HASHES,
    "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
}


def with_files(settings, files):
    """A file's name and its hash belong together."""
    pairs = {name: pair for name, pair in zip(FILES, files, strict=True) if pair is not None}
    names = {name: pair[0] for name, pair in pairs.items()}
    return settings | names | {f"{name}_sha256": pair[1] for name, pair in pairs.items()}


SETTINGS = st.builds(
    with_files,
    st.fixed_dictionaries(REQUIRED, optional=OPTIONAL),
    st.tuples(*[st.none() | st.tuples(NAMES, HASHES)] * len(FILES)),
)
BARE = {"prompt": "", "steps": 1, "cfg": 0.0, "solver": "ddim", "seed": 0, "size": "1x1", "rng": "cpu"}


def test_no_setting_is_left_out_here():
    assert {*REQUIRED, *OPTIONAL, *FILES, *(f"{name}_sha256" for name in FILES)} == set(settings.SETTINGS)
    assert set(OPTIONS) < set(settings.SETTINGS)


def check_ours(folder, asked):
    """As `t2i generate` writes a picture and reads it again."""
    path = ImageFolder(folder).add(Image.new("L", (1, 1)), asked)
    found = read_png(path)
    assert (found.source, found.ignored) == ("t2i", [])
    assert found.settings == {"schema_version": 1} | asked
    assert request_from(found.settings) == {"prompts": [asked["prompt"]]} | {k: asked[k] for k in OPTIONS if k in asked}
    with Image.open(path) as picture:
        return picture.info["parameters"]


def check_a1111(path, asked, text):
    """A picture with A1111's text alone, as others leave of ours: what its format has, and nothing else."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.new("L", (1, 1)).save(path, "PNG", pnginfo=info)
    found = read_png(path)
    assert (found.source, found.raw, found.ignored) == ("a1111", text, [])
    defaults = {"clip_skip": 1, "eta": 0, "variation_strength": 0, "negative": "", "model": ""}
    expected = {field: asked[field] for field in ("prompt", "negative", *KEYS) if field in asked}
    if "model_sha256" in asked:
        expected["model_hash"] = asked["model_sha256"][:10]
    assert {field: found.settings.get(field, defaults.get(field)) for field in expected} == expected
    assert found.settings.keys() <= {*expected, "negative"}


@effort(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(SETTINGS)
@example(BARE)
@example(BARE | {"prompt": HARD[0], "negative": HARD[1], "model": HARD[2]})
@example(BARE | {"prompt": "\n", "model": "a, b"})
@example(BARE | {"prompt": LONG[0], "negative": LONG[1], "towards": [LONG[2], 0.5]})
def test_every_setting_comes_back(tmp_path, asked):
    text = check_ours(tmp_path / "ours", asked)
    assert text == to_a1111(asked)
    check_a1111(tmp_path / "x.png", asked, text)
