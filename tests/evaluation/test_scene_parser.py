import warnings
from collections import defaultdict
from dataclasses import replace
from math import isnan, sqrt

import pytest
import torch
from scipy import ndimage

from t2i.autoencoder.kl import AutoencoderKL, AutoencoderKLConfig
from t2i.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    SUBSETS,
    Scene,
    ScenesSource,
    Thing,
    minimal_captions,
    minimal_pairs,
    parse_caption,
    pixels,
    scene_of,
)
from t2i.evaluation.scene_parser import (
    MEANING,
    Part,
    Unparseable,
    aggregate,
    ceiling,
    judge,
    parse,
    read,
    reconstructed,
    score,
    score_all,
)

SIDE = 32
SCENES = [scene_of(i, 11, subset) for i in range(75) for subset in SUBSETS]
SWAPPED = "a red circle left of an orange star on a white background"


def drawn(caption: str, size: int = SIDE) -> torch.Tensor:
    return pixels(parse_caption(caption), size)


def failed(picture: torch.Tensor, caption: str) -> set[str]:
    skills = score(picture, caption)
    assert skills["unparseable"] == (0, 1)
    return {name for name, part in skills.items() if part.hits < part.n} - {"unparseable"}


def check_clean(scenes: list[Scene], size: int, least: float) -> None:
    """At least so large a share right of every skill, and of the pictures of every value of every factor."""
    found = parse(torch.stack([pixels(scene, size) for scene in scenes]))
    skills = [judge(scene, wanted) for scene, wanted in zip(found, scenes, strict=True)]
    rates = aggregate(skills)
    assert rates["unparseable"].hits == 0
    for name in [name for name in MEANING if name != "unparseable"]:
        assert rates[name].n and rates[name].value >= least, name
    right = defaultdict(list)
    for skill, scene in zip(skills, scenes, strict=True):
        factors = {scene.background + " ground", scene.place, scene.relation, str(len(scene.things)), scene.kind}
        for thing in scene.things:
            factors |= {thing.shape, thing.colour, f"{thing.size} size"}
        for factor in filter(None, factors):
            right[factor].append(skill["exact"].hits)
    wanted = [
        *SHAPES,
        *COLOURS,
        *PLACES,
        *RELATIONS,
        *(f"{s} size" for s in SIZES),
        *(f"{b} ground" for b in BACKGROUNDS),
    ]
    for factor in [*wanted, *"123456"]:
        assert right[factor] and sum(right[factor]) >= least * len(right[factor]), factor


@pytest.mark.parametrize("size", [SIDE, 64])
def test_clean_renders_are_read_exactly(size):
    check_clean(SCENES, size, least=0.995)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 48, 64, 256])
def test_many_clean_renders_are_read_exactly(size):
    check_clean([scene_of(i, 12, subset) for i in range(1250) for subset in SUBSETS], size, least=0.995)


def test_centres_and_what_is_left_over():
    found = read(torch.stack([pixels(scene, SIDE) for scene in SCENES]))
    for reading, wanted in zip(found, SCENES, strict=True):
        assert isinstance(reading.scene, Scene) and reading.residual < 0.03
        for thing in wanted.things:
            nearest = min(reading.scene.things, key=lambda t: abs(complex(*t.centre) - complex(*thing.centre)))
            assert abs(complex(*nearest.centre) - complex(*thing.centre)) < 0.5 / SIDE
            assert nearest == replace(thing, centre=nearest.centre)
    noisy = pixels(SCENES[0], SIDE) // 2 + 60
    assert read(noisy[None])[0].residual > 0.1


def test_blurred_and_noisy_pictures_are_read():
    wanted = SCENES[:100]
    clean = torch.stack([pixels(scene, SIDE) for scene in wanted]).float()
    blurred = torch.from_numpy(ndimage.gaussian_filter(clean.numpy(), (0, 0, 0.5, 0.5)))
    noisy = clean + 10 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for name, pictures in {"blurred": blurred, "noisy": noisy}.items():
        found = parse(pictures.round().clamp(0, 255).to(torch.uint8))
        rates = aggregate([judge(scene, w) for scene, w in zip(found, wanted, strict=True)])
        assert rates["pair"].value > 0.95 and rates["count"].value > 0.95, name


def test_swapped_colours_are_of_every_colour_and_shape_but_not_bound():
    right, swapped = drawn(SWAPPED), drawn(minimal_captions(SWAPPED)["colour"])
    assert failed(right, SWAPPED) == set()
    assert failed(swapped, SWAPPED) >= {"binding", "binding_of_present", "pair", "relation", "exact"}
    found = score(swapped, SWAPPED)
    assert found["binding_of_present"] == (0, 1) and found["pair"] == (0, 2)
    assert found["presence"] == (2, 2) and found["count"] == found["background"] == (1, 1)


def test_each_minimal_pair_fails_the_skill_that_it_is_of():
    skill = {"colour": "pair", "shape": "pair", "relation": "relation", "place": "place", "negation": "negation"}
    skill["count"] = "count_of_several"
    seen = set()
    for scene in SCENES[:80]:
        for name, pair in minimal_pairs(scene).items():
            wrong = failed(pixels(pair, SIDE), scene.caption)
            assert skill[name] in wrong and "exact" in wrong and "background" not in wrong
            assert name not in ("relation", "place") or wrong == {name, "exact"} | wrong & {"relation_of_present"}
            seen.add(name)
    assert seen == set(skill)


def test_negation_sees_the_unwanted_thing_and_the_missing_one():
    caption = "a red circle and no blue star on a white background"
    red, blue = Thing("circle", "red", "", (0.25, 0.25)), Thing("star", "blue", "", (0.75, 0.75))
    results = {}
    for name, things in {"one": (red,), "both": (red, blue), "other": (blue,), "none": ()}.items():
        found = score(pixels(Scene(things, "white"), SIDE), caption)
        results[name] = found["negation"].hits, found["absence"].hits, found["count"].hits
    assert results == {"one": (1, 1, 1), "both": (0, 0, 0), "other": (0, 0, 1), "none": (0, 1, 0)}


def test_numbers_are_counted_kind_by_kind():
    caption = "three red circles and one blue star on a white background"
    for n, m, name in [(3, 1, set()), (2, 2, {"count_of_several"}), (2, 1, {"count", "count_of_several"})]:
        words = [("circle", "red")] * n + [("star", "blue")] * m
        cells = [(x, y) for x in (0.25, 0.75) for y in (0.25, 0.75)]
        things = tuple(Thing(s, c, "", at) for (s, c), at in zip(words, cells, strict=False))
        wrong = failed(pixels(Scene(things, "white"), SIDE), caption)
        assert wrong & {"count", "count_of_several"} == name and ("exact" in wrong) == bool(name)


def test_held_out_skills_are_asked_of_held_out_captions_alone():
    parts = {subset: judge(scene_of(3, 0, subset), scene_of(3, 0, subset)) for subset in SUBSETS}
    asked = {subset: {name for name in part if name.startswith("held")} for subset, part in parts.items()}
    assert asked == {
        "train": set(),
        "validation": set(),
        "heldout-pairs": {"held_out_pairs"},
        "heldout-templates": {"held_out_words"},
    }


def test_wrong_captions_score_low():
    pictures = torch.stack([pixels(scene, SIDE) for scene in SCENES])
    captions = [scene.caption for scene in SCENES]
    rates = aggregate(score_all(pictures, captions[5:] + captions[:5]))
    assert rates["exact"].value < 0.02 and rates["binding"].value < 0.05 and rates["relation"].value < 0.05


def test_pictures_of_nothing_known():
    noise = torch.randint(0, 256, (8, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    skills = score_all(noise, [SWAPPED] * 8)
    assert not any(skill["exact"].hits or skill["relation"].hits for skill in skills)
    flat = torch.tensor([200, 60, 120], dtype=torch.uint8)[:, None, None].expand(3, SIDE, SIDE)
    (found,) = parse(flat[None])
    assert isinstance(found, Unparseable)
    skills = score(flat, SWAPPED)
    assert skills["unparseable"] == (1, 1) and sum(part.hits for part in skills.values()) == 1
    (empty,) = parse(pixels(Scene((), "cyan"), SIDE)[None])
    assert empty == Scene((), "cyan")


def test_no_picture_at_all_stops_the_parser():
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(256, 3, 4, 4, generator=generator) * 150 + 255
    clouds = torch.nn.functional.interpolate(rough, size=(SIDE, SIDE), mode="bicubic")
    clouds[..., 0, :] = clouds[..., -1, :] = clouds[..., 0] = clouds[..., -1] = 255  # else most have no background
    stripes = pixels(Scene((), "white"), SIDE)
    for channel in range(3):  # one blob whose middle colour is the background's
        stripes[channel, 4:-4, 4 + channel : -4 : 3] -= 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = parse(clouds.clamp(0, 255).to(torch.uint8))
        (striped,) = parse(stripes[None])
    assert len(found) == 256 and sum(isinstance(scene, Scene) for scene in found) > 50
    assert isinstance(striped, Unparseable)


def test_touching_things_of_unlike_colours_are_two():
    things = (Thing("square", "red", "", (0.36, 0.5)), Thing("circle", "blue", "", (0.64, 0.5)))
    (found,) = parse(pixels(Scene(things, "white"), 64)[None])
    assert isinstance(found, Scene) and sorted(t.pair for t in found.things) == [("blue", "circle"), ("red", "square")]


def test_standard_errors():
    skills = [{"exact": Part(hit, 1), "shape": Part(2 * hit, 2)} for hit in (1, 1, 1, 0)]
    rates = aggregate(skills)
    rate = rates["exact"]
    assert (rate.hits, rate.n, rate.value) == (3, 4, 0.75)
    assert rate.se == pytest.approx(sqrt(0.75 * 0.25 / 3))  # of a mean: s / sqrt(n)
    assert rates["shape"].se == pytest.approx(rate.se)  # two things of a picture are not two pictures
    assert rates["relation"].n == 0 and isnan(rates["relation"].value) and rates["relation"].ci95 == (0, 1)
    together = aggregate([*skills, *skills], groups=[*range(4), *range(4)])["exact"]
    assert together.se == pytest.approx(rate.se) and together.groups == 4
    low, high = aggregate([{"exact": Part(1, 1)}] * 10)["exact"].ci95
    assert high == pytest.approx(1) and low == pytest.approx(10 / (10 + 1.959964**2))  # Wilson at p = 1
    assert isnan(aggregate(skills[:1])["exact"].se)


def test_intervals_hold_the_truth():
    """Clustered pictures: 20 prompts of unlike difficulty, 10 pictures each."""
    draws, held = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        p = torch.rand(20, 1, generator=draws)
        hits = (torch.rand(20, 10, generator=draws) < p).flatten().int().tolist()
        groups = [k // 10 for k in range(200)]
        low, high = aggregate([{"exact": Part(hit, 1)} for hit in hits], groups)["exact"].ci95
        held += low <= 0.5 <= high
    assert held >= 0.9 * 200


def test_the_ceiling_is_that_of_the_autoencoder():
    source = ScenesSource(40, seed=3, subset="validation", pixels=SIDE)
    clean = ceiling(source, SIDE, batch=16)
    assert clean["exact"].value == 1 and clean["exact"].n == 40
    torch.manual_seed(0)
    config = AutoencoderKLConfig(block_out_channels=(8, 16), latent_channels=2, norm_num_groups=4)
    untrained = ceiling(source, SIDE, AutoencoderKL(config), batch=16)
    assert untrained["exact"].hits == 0 and untrained["exact"].n == 40


class Gray(AutoencoderKL):
    """Forgets the picture."""

    def decode(self, z):
        return torch.zeros(len(z), 3, *(side * self.factor for side in z.shape[2:])) + 2


def test_reconstructions_are_pixels():
    config = AutoencoderKLConfig(block_out_channels=(8, 16), latent_channels=2, norm_num_groups=4)
    pictures = torch.stack([pixels(scene, SIDE) for scene in SCENES[:3]])
    found = reconstructed(Gray(config), pictures)
    assert found.dtype == torch.uint8 and found.shape == pictures.shape and (found == 255).all()


def test_bad_input():
    with pytest.raises(ValueError, match="images of 31x31: scenes are read from square images of at least 32"):
        parse(torch.zeros(1, 3, 31, 31, dtype=torch.uint8))
    with pytest.raises(ValueError, match="images of 64x32"):
        parse(torch.zeros(1, 3, 32, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="2 images, 1 captions"):
        score_all(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), [SWAPPED])
    with pytest.raises(ValueError, match="'a cat' is no caption of the built-in scenes"):
        score(drawn(SWAPPED), "a cat")
    with pytest.raises(ValueError, match="no image was scored"):
        aggregate([])
    with pytest.raises(ValueError, match="1 scored images, 2 groups"):
        aggregate([{"exact": Part(1, 1)}], groups=[1, 2])


@pytest.mark.parametrize(
    ("caption", "binds"),
    [
        ("a red circle left of an orange star on a white background", True),
        ("a red circle left of an orange circle on a white background", False),  # one shape: nothing can be exchanged
        ("a red circle left of a red star on a white background", False),  # one colour
        ("two red circles on a white background", False),
        ("a red circle in the centre on a white background", False),
    ],
)
def test_binding_is_asked_where_colours_and_shapes_could_be_exchanged(caption, binds):
    skills = judge(parse_caption(caption), parse_caption(caption))
    assert ("binding" in skills, "binding_of_present" in skills) == (binds, binds)
    assert skills["pair"].hits == skills["pair"].n
