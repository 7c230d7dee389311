"""One training loop for every method, on Lightning Fabric. docs/training.md shows how to use it."""

from recon_core.training.loop import train
from recon_core.training.settings import TrainingResult, TrainingSettings

__all__ = ["TrainingResult", "TrainingSettings", "train"]
