"""Every setting that a picture can hold, in any combination, comes back from ours, and what A1111 has from A1111's."""

import io

from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from t2i.diffusion.solvers import SOLVERS
from t2i.pipeline.metadata import read_png, request_from, to_a1111, to_texts
from t2i.pipeline.metadata.a1111 import KEYS

SHARES = st.floats(0, 1)
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.sampled_from(["a.png", "Ünï code, style: 2.safetensors", 'quoted "x".pt', "Steps: 3, Seed: 1.png"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
LONG = st.sampled_from(['"a", b: c\n' * 1000, "🦊" * 10_000, "Steps: 3, Seed: 1\n" * 600, "Negative prompt: x\n" * 3])
SETTINGS = st.fixed_dictionaries(
    {
        "prompt": TEXTS | LONG,
        "steps": st.integers(1, 10_000),
        "cfg": st.floats(0, 1000),
        "solver": st.sampled_from(sorted(SOLVERS)),
        "seed": st.integers(0, 2**63 - 1),
        "size": st.builds("{}x{}".format, st.integers(1, 65_536), st.integers(1, 65_536)),
        "rng": st.just("cpu"),
    },
    optional={
        "negative": TEXTS | LONG,
        "sigmas": st.sampled_from(["karras", "exponential"]),
        "spacing": st.sampled_from(["leading", "linspace", "trailing"]),
        "eta": SHARES,
        "strength": SHARES,
        "clip_skip": st.integers(1, 99),
        "guidance_rescale": SHARES,
        "guidance_interval": st.lists(SHARES, min_size=2, max_size=2),
        "prompt_syntax": st.sampled_from(["plain", "a1111"]),
        "long_prompts": st.booleans(),
        "towards": st.tuples(TEXTS, SHARES).map(list),
        "variation_seed": st.integers(0, 2**63 - 1),
        "variation_strength": SHARES,
        "vae_tile": st.integers(1, 65_536),
        "attention": st.sampled_from(["sdpa", "xformers"]),
        "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"]),
        "embeddings": st.lists(st.tuples(NAMES, HASHES).map(list), max_size=3),
        "loras": st.lists(st.tuples(NAMES, HASHES, st.floats(-1000, 1000)).map(list), max_size=3),
        "model_sha256": HASHES,
        "model": TEXTS,
        "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
    },
)
# Of the session rather than of the request: the command line takes them up by itself.
OF_THE_SESSION = {
    "prompt", "rng", "model", "model_sha256", "schema_version", "vae_tile", "attention", "prediction_type",
    "embeddings", "loras",
}  # fmt: skip


def written(path, texts):
    """A picture with these texts, on disk."""
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG", pnginfo=info)
    path.write_bytes(file.getvalue())
    return path


@effort(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(SETTINGS)
def test_every_setting_comes_back(tmp_path, asked):
    found = read_png(written(tmp_path / "x.png", to_texts(asked)))
    assert (found.source, found.ignored) == ("t2i", [])
    assert found.settings == {"schema_version": 1} | asked
    kept = {k: v for k, v in asked.items() if k not in OF_THE_SESSION}
    assert request_from(found.settings) == {"prompts": [asked["prompt"]]} | kept
    found = read_png(written(tmp_path / "y.png", {"parameters": to_a1111(asked)}))
    absent = {"clip_skip": 1, "eta": 0, "variation_strength": 0, "negative": "", "model": ""}
    for field in {"prompt", "negative", *KEYS} & set(asked):
        assert found.settings.get(field, absent.get(field)) == asked[field], field
