"""The built-in scenes as a source of captioned images."""

import io
from functools import cached_property

from PIL import Image

from t2i.data.scenes.grammar import ScenesSubset, scene_of
from t2i.data.scenes.render import render
from t2i.data.scenes.world import Scene
from t2i.data.source import Record, Report, fingerprint

VERSION = 2  # part of the fingerprint: raise it when a scene of the same (seed, index) changes
PIXELS = 256  # side of an image that `read` returns
LEAST_PIXELS = 32


class ScenesSource:
    """`count` scenes of a seed and a subset, as images of `pixels` a side."""

    def __init__(self, count: int, seed: int = 0, subset: ScenesSubset = "train", pixels: int = PIXELS):
        if pixels < LEAST_PIXELS:
            raise ValueError(f"scenes of {pixels} pixels a side: their shapes need {LEAST_PIXELS} or more")
        self._count, self._seed, self._pixels = count, seed, pixels
        self._subset: ScenesSubset = subset
        self.report = Report(rows=count)

    def __len__(self) -> int:
        return self._count

    def scene(self, i: int) -> Scene:
        """Returns the ground truth of row i."""
        assert 0 <= i < self._count
        return scene_of(i, self._seed, self._subset)

    def __getitem__(self, i: int) -> Record:
        scene = self.scene(i)
        key = f"scene {self._subset} {self._seed}/{i}"
        return Record(key, scene.caption, lambda: _png(render(scene, self._pixels)))

    def texts(self) -> list[str]:
        return self._texts

    @cached_property
    def _texts(self) -> list[str]:
        return [self.scene(i).caption for i in range(self._count)]

    def contents(self) -> list[str]:
        return [f"{self._subset} {self._seed}/{i}" for i in range(self._count)]

    def fingerprint(self) -> str:
        parts = (VERSION, self._subset, self._pixels, self._seed, self._count)
        return fingerprint(["scenes", *map(str, parts)])


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
