from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from t2i.data.data_config import DataConfig
from t2i.data.dataset import ImageDataset
from t2i.data.decode import decode
from t2i.data.open import open_source
from t2i.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    KINDS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    SUBSETS,
    VOCABULARY,
    Scene,
    ScenesSource,
    ScenesSubset,
    Thing,
    attributes_of,
    holds,
    holds_out,
    minimal_captions,
    minimal_pairs,
    parse_caption,
    pixels,
    place_of,
    render,
    scene_of,
)
from t2i.data.scenes.grammar import OPPOSITE, _for_validation
from t2i.data.scenes.world import Wording
from t2i.text.controls import oracle

SCENES = [scene_of(i, 5) for i in range(500)]
PINNED = [
    "there is a green hexagon over a large red rhombus, the background is black",
    "a black triangle with a large purple diamond below it, on a gray background",
    "a picture of a blue square and a hexagon of the same colour, the square is below the hexagon, on white",
    "the background is gray and a black triangle is with a large purple diamond below it",
]  # a change here changes every data set of scenes: raise VERSION
CHANGES = {"count": 41, "seed": 6, "subset": "validation", "pixels": 64}
EVERY = {subset: [scene_of(i, 5, subset) for i in range(100)] for subset in SUBSETS}


def pixel(image, x, y):
    return image.getpixel((int(x * image.width), int(y * image.height)))


def content(scene: Scene):
    """What a caption says: all of a scene but where its things are and the words."""
    things = tuple((t.shape, t.colour, t.size) for t in scene.things)
    return things, scene.background, scene.kind, scene.place, scene.relation, scene.absent, scene.wording.held_out


def bag(caption: str) -> list[str]:
    return sorted(caption.replace("an ", "a ").replace(",", "").split())


def test_a_scene_is_a_function_of_index_seed_and_subset():
    assert [scene_of(i, 5) for i in reversed(range(200))][::-1] == SCENES[:200]
    assert sum(scene_of(i, 6).caption == SCENES[i].caption for i in range(200)) < 10
    assert len({scene.caption for scene in SCENES}) > 450
    for scene in SCENES[:20]:
        assert render(scene, 48).tobytes() == render(scene, 48).tobytes()
        assert Scene.from_json(scene.to_json()) == scene
    assert [scene_of(0, subset=subset).caption for subset in EVERY] == PINNED


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        (
            "a red disc left of an orange box on a white background",
            [["one", "circle", "red", "medium", "first left of"],
             ["one", "square", "orange", "medium", "second left of"], ["white background"]],
        ),
        (
            "a tiny black star with a big pink star over it, on a gray background",
            [["one", "star", "pink", "large", "first above"], ["one", "star", "black", "small", "second above"],
             ["gray background"]],
        ),
        (
            "there are three little blue boxes and one little red plus sign, the background is cyan",
            [["three", "square", "blue", "small"], ["one", "cross", "red", "small"], ["cyan background"]],
        ),
        (
            "the background is black and there is a green disc, no green star",
            [["one", "circle", "green", "medium"], ["no", "star", "green"], ["black background"]],
        ),
        (
            "both are big and blue, a circle under a triangle, on a white background",
            [["one", "circle", "blue", "large", "first below"], ["one", "triangle", "blue", "large", "second below"],
             ["white background"]],
        ),
        (
            "a picture of a small yellow hexagon in the top right corner, on black",
            [["one", "hexagon", "yellow", "small", "in the top right corner"], ["black background"]],
        ),
    ],
)  # fmt: skip
def test_what_a_caption_says(caption, words):
    assert attributes_of(caption) == words


@pytest.mark.parametrize("subset", SUBSETS)
def test_captions_are_read_back(subset):
    for scene in EVERY[subset]:
        found = parse_caption(scene.caption)
        assert content(found) == content(scene) and found.caption == scene.caption
        assert not found.relation or holds(found.relation, *found.things)
        assert not found.place or place_of(found.things[0]) == found.place
        render(found, 32)


@pytest.mark.parametrize(
    "caption",
    [
        "a photo of a cat",
        "",
        "a red circle",
        "a  red circle on the left on a white background",
        "an red circle on the left on a white background",
        "a white circle on the left on a white background",
        "a tiny circle left of a little square on a white background",
        "two red circles and one red circle on a white background",
        "six red circles on a white background",
        "four small red circles and three small blue circles on a white background",
        "there are one red circle, the background is white",
        "a red circle and no red circle on a white background",
    ],
)
def test_other_captions_are_refused(caption):
    with pytest.raises(ValueError, match="is no caption of the built-in scenes"):
        parse_caption(caption)


def test_the_oracle_reads_scenes():
    captions = [scene.caption for scene in SCENES[:50]]
    encoder = oracle(captions, attributes_of)
    found = encoder(captions).conditioning
    for row, mask, caption in zip(found.tokens, found.mask, captions, strict=True):
        wanted = attributes_of(caption)
        assert row.sum(1).tolist()[: mask.sum()] == [len(words) for words in wanted]


def test_the_vocabulary_is_that_of_the_captions():
    used = {word for scene in SCENES for word in scene.caption.replace(",", "").split()}
    held = {word for scene in EVERY["heldout-templates"] for word in scene.caption.replace(",", "").split()}
    assert used == set(VOCABULARY) and held <= used
    assert list(VOCABULARY) == sorted(VOCABULARY) and len(VOCABULARY) == 77


def test_relations_places_and_counts_hold_in_the_picture():
    for scene in [scene for scenes in EVERY.values() for scene in scenes]:
        assert all(thing.colour != scene.background for thing in scene.things)
        for thing in scene.things:
            (x, y), r = thing.centre, thing.extent
            assert r <= x <= 1 - r and r <= y <= 1 - r
        for a, b in combinations(scene.things, 2):
            apart = max(abs(p - q) for p, q in zip(a.centre, b.centre, strict=True))
            assert apart - a.extent - b.extent > 1.9 / 32
        if scene.relation:
            assert [r for r in RELATIONS if holds(r, *scene.things)] == [scene.relation]
        if scene.place:
            assert place_of(scene.things[0]) == scene.place
        if scene.absent:
            assert scene.absent.pair not in {thing.pair for thing in scene.things}


def test_subsets_hold_out_pairs_contents_and_templates():
    assert Counter(colour for colour, _ in HELD_OUT) == dict.fromkeys(COLOURS, 1)
    assert {shape for _, shape in HELD_OUT} == set(SHAPES)
    assert not any(map(holds_out, [*SCENES, *EVERY["validation"], *EVERY["heldout-templates"]]))
    assert all(map(holds_out, EVERY["heldout-pairs"]))
    assert all(map(_for_validation, EVERY["validation"])) and not any(map(_for_validation, SCENES))
    for scene in SCENES[:100]:  # the verdict is on what a caption says, not on its words
        other = replace(scene, wording=Wording(3, True, 1, 1, 1), things=scene.things[:: -1 if scene.relation else 1])
        assert _for_validation(replace(other, relation=OPPOSITE.get(scene.relation, ""))) == _for_validation(scene)
    for plain, held in zip(EVERY["validation"], EVERY["heldout-templates"], strict=True):
        assert held.wording.held_out and replace(held, wording=plain.wording, caption=plain.caption) == plain
    templates = [{parse_caption(scene.caption).wording.held_out for scene in scenes} for scenes in EVERY.values()]
    assert templates == [{False}, {False}, {False}, {True}]


def test_every_factor_is_there():
    assert {scene.kind for scene in SCENES} == set(KINDS) and {scene.background for scene in SCENES} == set(BACKGROUNDS)
    assert {scene.place for scene in SCENES} == {*PLACES, ""} and {scene.relation for scene in SCENES} == {
        *RELATIONS,
        "",
    }
    assert {len(scene.things) for scene in SCENES} == {1, 2, 3, 4, 5, 6}
    assert {(t.shape, t.size) for scene in SCENES for t in scene.things} == {(a, b) for a in SHAPES for b in SIZES}
    pairs = {(colour, shape) for colour in COLOURS for shape in SHAPES}
    assert {thing.pair for scene in SCENES for thing in scene.things} == pairs - HELD_OUT


def test_minimal_pairs_differ_in_one_respect():
    seen = Counter()
    for scene in [*SCENES, *EVERY["heldout-templates"]]:
        words = bag(scene.caption)
        pairs = minimal_pairs(scene)
        assert {name: pair.caption for name, pair in pairs.items()} == minimal_captions(scene.caption)
        for name, pair in pairs.items():
            seen[name] += 1
            assert pair.caption != scene.caption and pair.background == scene.background and pair.kind == scene.kind
            if name in ("colour", "shape", "negation") and scene.kind != "count":  # no plurals
                assert bag(pair.caption) == words
            if name in ("colour", "shape"):
                other = {"colour": "shape", "shape": "colour"}[name]
                for get in (other, "size", "centre"):
                    assert [getattr(t, get) for t in pair.things] == [getattr(t, get) for t in scene.things]
            if name == "relation":
                assert holds(pair.relation, *pair.things) and not holds(pair.relation, *scene.things)
                assert [(t.size, t.pair) for t in pair.things] == [(t.size, t.pair) for t in scene.things]
            assert (pixels(pair, 32) != pixels(scene, 32)).any()
    assert set(seen) == {"colour", "shape", "relation", "count", "negation", "place"} and min(seen.values()) > 20
    assert minimal_captions("a red circle left of an orange star on a white background") == {
        "colour": "an orange circle left of a red star on a white background",
        "shape": "a red star left of an orange circle on a white background",
        "relation": "a red circle right of an orange star on a white background",
    }


@pytest.mark.parametrize("size", [32, 64, 100])
def test_colours_are_exact_at_the_centre_and_in_the_corners(size):
    for scene in SCENES[:100]:
        image = render(scene, size)
        assert image.size == (size, size)
        for thing in scene.things:
            assert pixel(image, *thing.centre) == COLOURS[thing.colour]
        for corner in ((0, 0), (0.999, 0), (0, 0.999), (0.999, 0.999)):
            assert pixel(image, *corner) == BACKGROUNDS[scene.background]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_extent_and_smooth_edges(shape):
    areas = {"circle": np.pi, "square": 2.89, "triangle": 1.6625, "diamond": 1.4, "hexagon": 2.598}
    areas |= {"star": 5 * 0.42 * np.sin(np.pi / 5), "cross": 4 * 0.36 * (2 - 0.36)}
    for size, r in SIZES.items():
        scene = Scene((Thing(shape, "black", size, (0.5, 0.5)),), "white")
        gray = np.array(render(scene, 128).convert("L")).astype(float)
        covered = ((250 - gray) / 230).sum() / 128**2
        assert covered == pytest.approx(areas[shape] * r * r, rel=0.05)
        assert len(np.unique(gray)) > 2 or shape in ("square", "cross")


def test_as_a_source():
    config = DataConfig(count=40, seed=5)
    source = open_source(config)
    assert len(source) == 40 and source[7].text == SCENES[7].caption == source.texts()[7]
    assert decode(source[7].read()).tobytes() == render(SCENES[7], 256).tobytes()
    pictures = ImageDataset(source, 32)
    pictures.scan()
    thing = SCENES[7].things[0]
    x, y = thing.centre
    seen = (pictures.load(7)[:, int(32 * y), int(32 * x)] + 1) * 127.5
    assert seen.round().int().tolist() == list(COLOURS[thing.colour])
    configs = [config, *(config.model_copy(update={k: v}) for k, v in CHANGES.items())]
    assert len({open_source(c).fingerprint() for c in configs}) == 1 + len(CHANGES)


@pytest.mark.parametrize("subset", SUBSETS)
def test_subsets_and_sizes_as_a_source(subset: ScenesSubset):
    source = open_source(DataConfig(count=3, seed=5, subset=subset, pixels=32))
    assert isinstance(source, ScenesSource) and source.scene(2) == EVERY[subset][2]
    assert np.array_equal(np.array(decode(source[2].read())).transpose(2, 0, 1), pixels(EVERY[subset][2], 32).numpy())
    keys = {source[i].key for i in range(3)} | {open_source(DataConfig(count=3, seed=5))[0].key}
    assert len(keys) == (3 if subset == "train" else 4)
    with pytest.raises(ValueError, match="greater than or equal to 32"):
        DataConfig(pixels=31)
