"""The keys that all training recipes share."""

from pathlib import Path

from pydantic import Field

from t2i.config import Section, TrainConfig
from t2i.data.data_config import DataConfig


class Recipe(Section):
    """The base of training recipes."""

    out: str = Field(description="folder of the run: checkpoints, metrics.jsonl, samples, the trained component")
    seed: int = Field(default=0, ge=0)
    size: int = Field(default=64, gt=0, le=2**14, description="side of the images, in pixels")
    data: DataConfig = Field(description="the training images; relative paths start in the current folder")
    validation: DataConfig | None = Field(
        default=None, description="the validation images; default: every 20th image of `data` is held out"
    )
    train: TrainConfig

    @property
    def run(self) -> Path:
        """Returns the folder of the run."""
        return Path(self.out)
