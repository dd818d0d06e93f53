"""The recipes of the three trainings."""

from pathlib import Path

from pydantic import Field

from t2i.config import Section, TrainConfig
from t2i.data.data_config import DataConfig


class Recipe(Section):
    """What every training has."""

    out: str = Field(description="the run's folder: checkpoints, metrics.jsonl, samples, the trained component")
    seed: int = Field(default=0, ge=0)
    size: int = Field(default=64, gt=0, description="side of the pictures, in pixels")
    data: DataConfig = Field(description="the training pictures; relative paths start in the current folder")
    validation: DataConfig | None = Field(
        default=None, description="never trained on; without it, every 20th picture of `data` is set apart"
    )
    train: TrainConfig

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.out)
