import re

import numpy as np
import pytest

from t2i.data.dataset import Pictures
from t2i.data.decode import decode
from t2i.data.scenes import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES, SceneSpec, Thing, render, scene
from t2i.data.source import DataConfig, open_source

SCENES = [scene(i, 5) for i in range(400)]


def pixel(image, x, y):
    return image.getpixel((int(x * image.width), int(y * image.height)))


def test_a_scene_is_a_function_of_index_and_seed():
    again = [scene(i, 5) for i in reversed(range(400))][::-1]
    assert again == SCENES
    assert sum(scene(i, 6)[1] == SCENES[i][1] for i in range(400)) < 20
    assert len({caption for _, caption in SCENES}) > 350
    for spec, _ in SCENES[:20]:
        assert render(spec, 48).tobytes() == render(spec, 48).tobytes()


def test_captions_say_exactly_the_ground_truth():
    thing = rf"an? (?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    one = re.compile(rf"{thing} ({'|'.join(PLACES)}) on a (\w+) background")
    two = re.compile(rf"{thing} ({'|'.join(RELATIONS)}) {thing} on a (\w+) background")
    for spec, caption in SCENES:
        words = (one if len(spec.things) == 1 else two).fullmatch(caption)
        assert words, caption
        said = [g or "" for g in words.groups()]
        first, *second = spec.things
        assert said[:3] == [first.size, first.colour, first.shape] and said[-1] == spec.background
        for thing_ in second:
            assert said[4:7] == [thing_.size, thing_.colour, thing_.shape]
    assert scene(0)[1] == "a small green square below a white triangle on a cyan background"


def test_relations_and_places_hold_in_the_picture():
    for spec, _ in SCENES:
        (x, y), r = spec.things[0].centre, spec.things[0].extent
        assert r <= x <= 1 - r and r <= y <= 1 - r
        if len(spec.things) == 2:
            u, v = spec.things[1].centre
            gap = {"left of": u - x, "right of": x - u, "above": v - y, "below": y - v}[spec.where]
            assert gap > r + spec.things[1].extent  # they do not touch
            assert (spec.things[0].colour, spec.things[0].shape) != (spec.things[1].colour, spec.things[1].shape)
        else:
            side = {"on the left": x < 0.4, "on the right": x > 0.6, "at the top": y < 0.4, "at the bottom": y > 0.6}
            assert side.get(spec.where, 0.4 < x < 0.6 and 0.4 < y < 0.6)
        assert all(t.colour != spec.background for t in spec.things)


@pytest.mark.parametrize("size", [32, 64, 100])
def test_colours_are_exact_at_the_centre_and_in_the_corners(size):
    for spec, _ in SCENES[:100]:
        image = render(spec, size)
        assert image.size == (size, size)
        for thing in spec.things:
            assert pixel(image, *thing.centre) == COLOURS[thing.colour]
        for corner in ((0, 0), (0.999, 0), (0, 0.999), (0.999, 0.999)):
            assert pixel(image, *corner) == BACKGROUNDS[spec.background]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_extent_and_smooth_edges(shape):
    areas = {"circle": np.pi, "square": 2.89, "triangle": 1.6625, "diamond": 1.4, "hexagon": 2.598}
    areas |= {"star": 5 * 0.42 * np.sin(np.pi / 5), "cross": 4 * 0.36 * (2 - 0.36)}
    for size, r in SIZES.items():
        spec = SceneSpec((Thing(shape, "black", size, (0.5, 0.5)),), "in the centre", "white")
        gray = np.array(render(spec, 128).convert("L")).astype(float)
        covered = ((250 - gray) / 230).sum() / 128**2
        assert covered == pytest.approx(areas[shape] * r * r, rel=0.05)
        assert len(np.unique(gray)) > 2 or shape in ("square", "cross")


def test_every_word_is_used():
    captions = " ".join(caption for _, caption in SCENES)
    for word in (*COLOURS, *BACKGROUNDS, *SHAPES, *SIZES, *PLACES, *RELATIONS):
        assert word in captions


def test_as_a_source():
    config = DataConfig(count=40, seed=5)
    source = open_source(config)
    assert len(source) == 40 and source[7].text == SCENES[7][1] == source.texts()[7]
    spec = SCENES[7][0]
    assert decode(source[7].read()).tobytes() == render(spec, 256).tobytes()
    pictures = Pictures(source, 32)
    pictures.scan()
    x, y = spec.things[0].centre
    seen = (pictures.load(7)[:, int(32 * y), int(32 * x)] + 1) * 127.5
    assert seen.round().int().tolist() == list(COLOURS[spec.things[0].colour])
    prints = {open_source(DataConfig(count=c, seed=s)).fingerprint() for c, s in ((40, 5), (41, 5), (40, 6))}
    assert len(prints) == 3 and source.fingerprint() in prints
