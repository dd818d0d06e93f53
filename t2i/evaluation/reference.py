"""The reference of an evaluation: images prepared as for training, or statistics in a file."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from pydantic import ValidationError
from torch import Tensor

from t2i.config import explain
from t2i.data.data_config import DataConfig
from t2i.data.dataset import ImageDataset
from t2i.data.open import open_source
from t2i.data.source import fingerprint
from t2i.data.transforms import TRANSFORM
from t2i.errors import ConfigError
from t2i.evaluation.features import pixels_hash
from t2i.evaluation.frechet import Reference
from t2i.evaluation.image_sets import to_uint8
from t2i.evaluation.protocol import Protocol
from t2i.evaluation.stats import load_reference

STATS = (".npz", ".pt", ".pth")


class ReferenceImages:
    """The images `rows` (all by default) of a source, as 8-bit pixels; each of them is readable.

    `hash` is that of the prepared pixels, in order, so it does not depend on how they are stored.
    """

    def __init__(self, images: ImageDataset, rows: Sequence[int] | None = None) -> None:
        self.images, self.size = images, images.size
        self.rows = range(len(images)) if rows is None else rows
        self.preparation = f"{TRANSFORM}, on {images.background}"
        self.digests = [pixels_hash(self.read(range(a, min(a + 256, len(self))))) for a in range(0, len(self), 256)]
        self.hash = fingerprint([f"{self.size}"], self.digests)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def captions(self) -> list[str]:
        """The caption of each image; "" where the source has none."""
        texts = self.images.texts()
        return [texts[i] for i in self.rows]

    def select(self, rows: Sequence[int]) -> "ReferenceImages":
        """Returns some of the images by index."""
        return ReferenceImages(self.images, [self.rows[i] for i in rows])

    def batch(self, rows: Sequence[int]) -> Tensor:
        """Returns images by index, in [-1, 1]."""
        return self.images.batch([self.rows[i] for i in rows])

    def read(self, rows: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        """Returns images by index."""
        return to_uint8(self.batch(rows))


def open_reference(
    path: str | Path,
    size: tuple[int, int],
    caption_column: str = "text",
    image_column: str = "image",
) -> ReferenceImages | Reference:
    """Opens images of a folder or parquet file at `size` = (width, height), or a file of statistics.

    Raises ConfigError under the key `reference`.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(
            "reference", "no such file or folder; give a folder of images, FILE.parquet, or .npz", str(path)
        )
    if not (path.is_file() or path.is_dir()):
        raise ConfigError("reference", "a pipe or a device: give a folder of images, FILE.parquet, or .npz", str(path))
    if path.suffix in STATS:
        return load_reference(path)
    parquet = path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))
    if not (path.is_dir() or parquet):
        raise ConfigError(
            "reference", "give a folder of images, FILE.parquet, or a file of statistics (.npz, .pt)", str(path)
        )
    try:
        config = DataConfig.model_validate(
            {
                "source": "parquet" if parquet else "folder",
                "path": str(path),
                "caption_column": caption_column,
                "image_column": image_column,
                "allow_empty_captions": True,
            }
        )
    except ValidationError as error:
        raise ValueError(f"reference {path}: {explain(error, DataConfig)}") from None
    try:
        source = open_source(config)
    except ConfigError as error:  # its key is that of a recipe, data.caption_column
        key = error.key.rpartition(".")[2]
        raise error.under("reference" if key == "path" else key) from None
    if len(source) < 2:
        raise ConfigError("reference", f"holds {len(source)} image; give at least 2, better thousands", str(path))
    images = ImageDataset(source, size, config.background, max_bad_share=1.0)
    try:
        images.scan()
    except ValueError:
        assert images.bad
    if images.bad:
        first = "; ".join(list(images.bad.values())[:3])
        raise ConfigError(
            "reference",
            f"{len(images.bad)} of {len(source)} images are unreadable or hold NaN (first: {first}): repair or remove "
            "them; the numbers depend on every image of the reference",
            str(path),
        )
    return ReferenceImages(images)


def check_reference(reference: Reference, protocol: Protocol) -> list[str]:
    """Raises ConfigError for statistics of other features, size or preparation; returns notes on unrecorded fields."""
    recorded, needed = dict(reference.identity), protocol.identity()
    for key in ("fingerprint", "resize", "size", "preparation"):
        if recorded.get(key, needed[key]) != needed[key]:
            raise ConfigError(
                "reference",
                f"its statistics have {key} = {recorded[key]}, this evaluation has {needed[key]}: such numbers do not "
                "compare; use the same, or give the reference's images",
            )
    missing = [key for key in ("fingerprint", "resize", "size", "preparation") if key not in recorded]
    return [f"the reference statistics do not record their {', '.join(missing)}: assumed equal"] * bool(missing)
