"""From flags to a picture and by `--from` back to the same request: any settings that the pipeline takes."""

import itertools

import pytest
from hypothesis import HealthCheck, given, reject
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image
from pipeline.tiny import make_pipeline

from t2i.diffusion.solvers import SOLVERS
from t2i.pipeline.jobs import Job, repeat, with_seeds
from t2i.pipeline.outputs import ImageFolder
from t2i.pipeline.run_jobs import request_of, settings_of

WORDS = st.sampled_from(
    ["a fox", 'a "red", b: c\nSteps: 3, Seed: 1, Size: 8x8', "Negative prompt: x", "🦊\0 \\", "(red:1.2) " * 1000, ""]
)
OPTIONS = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**62)},
    optional={
        "negative": WORDS,
        "steps": st.integers(1, 1000),
        "cfg": st.floats(1, 30),
        "solver": st.sampled_from(sorted(SOLVERS)),
        "spacing": st.sampled_from(["leading", "linspace", "trailing"]),
        "sigmas": st.sampled_from(["karras", "exponential"]),
        "size": st.builds("{}x{}".format, *[st.integers(1, 20).map(lambda side: 2 * side)] * 2),
        "guidance_rescale": st.floats(0, 1),
        "guidance_interval": st.tuples(st.floats(0, 0.4), st.floats(0.5, 1)).map(list),
        "clip_skip": st.sampled_from([1, 2]),
        "prompt_syntax": st.sampled_from(["plain", "a1111"]),
        "long_prompts": st.booleans(),
    },
)
MORE = {
    "eta": st.floats(0, 1).map(lambda eta: {"solver": "ddim", "eta": eta}),
    "towards": st.tuples(WORDS, st.floats(0, 1)).map(lambda aim: {"towards": list(aim)}),
    "variation": st.tuples(st.integers(0, 2**62), st.floats(0.01, 1)).map(
        lambda pair: {"variation_seed": pair[0], "variation_strength": pair[1]}
    ),
    "image": st.floats(0.5, 1).map(lambda strength: {"image": True, "strength": strength}),
    "mask": st.floats(0.5, 1).map(lambda strength: {"image": True, "mask": True, "strength": strength}),
}
FLAGS = st.tuples(OPTIONS, st.lists(st.sampled_from(sorted(MORE)), max_size=2, unique=True)).flatmap(
    lambda asked: st.tuples(*(MORE[name] for name in asked[1])).map(
        lambda more: dict(itertools.chain(asked[0].items(), *(part.items() for part in more)))
    )
)


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def files_in(folder):
    """A picture to begin from and a mask."""
    for name, mode in (("image", "RGB"), ("mask", "L")):
        Image.new(mode, (16, 16), "white").save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in ("image", "mask")}


def plan(job, source, folder):
    if source is not None:
        job, _ = repeat(job, source, folder)
    [seeded] = with_seeds([job], job.options.get("seed"))
    return seeded


@effort(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(FLAGS, st.lists(WORDS, min_size=1, max_size=2), st.integers(1, 2))
def test_the_same_request_again(tmp_path, pipeline, flags, prompts, count):
    (tmp_path / "model_index.json").touch()  # -m FOLDER, of which the pipeline stands for the contents
    files = files_in(tmp_path)
    flags |= {name: path for name, path in files.items() if name in flags}
    order = plan(Job(prompts, flags, count), None, tmp_path)
    try:
        job = pipeline.resolve(request_of(order, 8))
    except ValueError:
        reject()  # such as a spacing for a solver with a list of its own
    made_by = {"model": tmp_path.name, "dtype": "float32", "rng": "cpu"}
    pictures = ImageFolder(tmp_path)
    for k in range(job.count):
        said = settings_of(job, order, made_by)[k]
        counted = {"seed", "variation_seed", *files}  # whose values are each picture's own
        assert all(said[name] == flags[name] for name in (flags.keys() & said.keys()) - counted)
        again = plan(Job([]), pictures.add(Image.new("L", (1, 1)), said), tmp_path)
        found = pipeline.resolve(request_of(again, 8))
        assert settings_of(found, again, made_by)[0] == said
        assert (found.plan, found.guidance) == (job.plan, job.guidance)
        assert (found.prompts, found.seeds) == ([job.prompts[k // count]], [job.seeds[k]])
        assert (found.width, found.height) == (job.width, job.height)
