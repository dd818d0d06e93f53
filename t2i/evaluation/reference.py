"""The pictures that others are compared with: through the model's own preparation, counted, hashed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from t2i.data.data_config import DataConfig
from t2i.data.dataset import ImageDataset
from t2i.data.open import open_source
from t2i.data.source import fingerprint
from t2i.data.transforms import TRANSFORM
from t2i.evaluation.features import pixels_hash
from t2i.evaluation.frechet import Reference
from t2i.evaluation.protocol import Protocol
from t2i.evaluation.reading import to_uint8
from t2i.evaluation.stats import load_reference

STATS = (".npz", ".pt", ".pth")


class ReferencePictures:
    """Pictures of a folder or parquet file at `size` = (width, height), as 8-bit pixels; every one is readable.

    `hash` is of the prepared pixels, in order: of what is measured, not of how it was stored.
    """

    def __init__(self, pictures: ImageDataset, where: str) -> None:
        self.pictures, self.where, self.size = pictures, where, pictures.size
        self.preparation = f"{TRANSFORM}, on {pictures.background}"
        digests = [pixels_hash(self.read(range(a, min(a + 256, len(self))))) for a in range(0, len(self), 256)]
        self.hash = fingerprint([f"{self.size}"], digests)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def captions(self) -> list[str]:
        """One a picture; "" where the reference has none."""
        return self.pictures.texts()

    def read(self, rows: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        """Pictures by index."""
        return to_uint8(self.pictures.batch(list(rows)))


def open_reference(
    path: str | Path,
    size: tuple[int, int],
    caption_column: str = "text",
    image_column: str = "image",
    background: str = "white",
    report: Callable[[int], object] = lambda done: None,
) -> ReferencePictures | Reference:
    """Pictures of a folder or parquet file at `size`, or the statistics in a file (see `load_reference`)."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"reference {path}: no such file or folder; give a folder of pictures, FILE.parquet, or .npz")
    if path.suffix in STATS:
        return load_reference(path)
    parquet = path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))
    if not (path.is_dir() or parquet):
        raise ValueError(f"reference {path}: a folder of pictures, FILE.parquet or statistics (.npz, .pt) is needed")
    try:
        config = DataConfig.model_validate(
            {
                "source": "parquet" if parquet else "folder",
                "path": str(path),
                "caption_column": caption_column,
                "image_column": image_column,
                "background": background,
                "allow_empty_captions": True,
            }
        )
        source = open_source(config)
    except ValueError as error:  # the source speaks of its keys as a recipe has them
        raise ValueError(str(error).replace("data.", "reference: ")) from None
    if len(source) < 2:
        raise ValueError(f"reference {path}: holds {len(source)} picture; at least 2 are needed, better thousands")
    pictures = ImageDataset(source, size, background, max_bad_share=1.0)
    try:
        pictures.scan(report)
    except ValueError:
        assert pictures.bad
    if pictures.bad:
        first = "; ".join(list(pictures.bad.values())[:3])
        raise ValueError(
            f"reference {path}: {len(pictures.bad)} of {len(source)} pictures are unreadable or hold NaN (first: "
            f"{first}): repair or remove them; another reference would be another number"
        )
    return ReferencePictures(pictures, str(path))


def check_reference(reference: Reference, protocol: Protocol) -> list[str]:
    """Refuse statistics of other features, size or preparation; say what a file leaves open."""
    said, asked = dict(reference.identity), protocol.identity()
    for key in ("fingerprint", "resize", "size", "preparation"):
        if said.get(key, asked[key]) != asked[key]:
            raise ValueError(
                f"the reference statistics have {key} = {said[key]}, this evaluation {asked[key]}: they do not "
                "compare; take the same, or give the reference's pictures"
            )
    silent = [key for key in ("fingerprint", "resize", "size", "preparation") if key not in said]
    return [f"the reference statistics do not say their {', '.join(silent)}: it is taken to be the same"] * bool(silent)
