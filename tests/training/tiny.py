"""A method and a dataset small enough to train in a test; also a program, and a plugin `recon train` can find."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from recon_core.datasets import Source
from recon_core.hookspecs import hookimpl
from recon_core.interfaces import Dataset, Method, Settings
from recon_core.structures import LossValue
from recon_core.training import TrainingSettings, train


class Numbers(Dataset):
    """`count` points; each draw adds noise from its generator."""

    class Config(Settings):
        count: int = 40
        noise: float = 1.0

    config: Config

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": f"n{index}", "x": np.full(4, index / 40, np.float32)}

    def draw(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
        row = self[index]
        noise = self.config.noise * generator.standard_normal(4, dtype=np.float32)
        return {**row, "x": row["x"] + noise, "y": np.float32(row["x"].sum()).reshape(1)}


class Unlabelled(Numbers):
    """The same without targets."""

    def draw(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
        return {name: value for name, value in super().draw(index, generator).items() if name != "y"}


class TinyConfig(Settings):
    learning_rate: float = 0.01
    dropout: float = 0.2
    pause: float = 0.0
    optimizer: str = "adam"


class Tiny(Method):
    """A regression with dropout, a schedule, and a memory of its own."""

    Config = TinyConfig
    inputs = frozenset()
    outputs = frozenset()

    def __init__(self, config: TinyConfig | None = None, body_model: Any = None) -> None:
        super().__init__(config or TinyConfig(), body_model)
        self.net = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(self.config.dropout), nn.Linear(16, 1)
        )
        self.best: dict[str, float] = {}

    def predict(self, observation: Any) -> Any:
        raise AssertionError("not asked for in a training")

    def configure_optimizers(self, steps: int) -> dict[str, torch.optim.Optimizer]:
        if self.config.optimizer == "sgd":
            return {"main": torch.optim.SGD(self.parameters(), self.config.learning_rate)}
        return {"main": torch.optim.Adam(self.parameters(), self.config.learning_rate)}

    def configure_schedulers(self, optimizers: Any, steps: int) -> dict[str, Any]:
        return {"main": torch.optim.lr_scheduler.LinearLR(optimizers["main"], 1.0, 0.1, 20)}

    def training_step(self, batch: Any, step: int) -> LossValue:
        time.sleep(self.config.pause)
        error = (self.net(batch["x"]) - batch["y"])[:, 0] ** 2
        # What the run must carry over a resume: the memory has its say in the loss.
        before = torch.tensor([self.best.get(i, 1.0) for i in batch["id"]])
        self.best |= dict(zip(batch["id"], error.detach().tolist(), strict=True))
        weighted = batch["has_y"] * error * (1 + 0.01 * before)
        return LossValue(weighted, {"error": error, "labelled": batch["has_y"]})

    def training_state(self) -> dict[str, Any]:
        return {"best": self.best}

    def restore_training_state(self, state: Any) -> None:
        self.best = dict(state["best"])

    def training_pictures(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"noise": torch.rand(3, 8, 12)}


class Averaged(Tiny):
    """Without what depends on how a batch is split: dropout, batch normalisation, memory."""

    def __init__(self, config: TinyConfig | None = None, body_model: Any = None) -> None:
        super().__init__(config, body_model)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def training_step(self, batch: Any, step: int) -> LossValue:
        return LossValue(((self.net(batch["x"]) - batch["y"])[:, 0]) ** 2)


class Game(Averaged):
    """Two players with an optimizer each; the second moves at every other step."""

    def __init__(self, config: TinyConfig | None = None, body_model: Any = None) -> None:
        super().__init__(config, body_model)
        self.critic = nn.Linear(1, 1)

    def configure_optimizers(self, steps: int) -> dict[str, torch.optim.Optimizer]:
        rate = self.config.learning_rate
        return {
            "maker": torch.optim.SGD(self.net.parameters(), rate),
            "critic": torch.optim.SGD(self.critic.parameters(), rate),
        }

    def configure_schedulers(self, optimizers: Any, steps: int) -> dict[str, Any]:
        return {}

    def turns(self, step: int, optimizers: Any) -> tuple[str, ...]:
        return ("maker", "critic") if step % 2 else ("maker",)

    def training_step(self, batch: Any, step: int, optimizer: str = "maker") -> LossValue:
        made = self.net(batch["x"])
        if optimizer == "maker":
            return LossValue(((self.critic(made) - 1) ** 2)[:, 0])
        return LossValue((self.critic(made.detach()) ** 2 + (self.critic(batch["y"]) - 1) ** 2)[:, 0])


METHODS = {"tiny": Tiny, "averaged": Averaged, "game": Game}


def sources() -> list[Source]:
    return [
        Source("numbers", Numbers(), 0.75),
        Source("unlabelled", Unlabelled(None, Numbers.Config(count=13)), 0.25),
    ]


def settings(**changes: Any) -> TrainingSettings:
    start = {"steps": 24, "batch_size": 8, "workers": 0, "log_every": 3, "checkpoint_every": 5}
    return TrainingSettings(**{**start, "accelerator": "cpu", "pictures_every": 0, "progress": False} | changes)


def made(name: str = "tiny", **config: Any) -> Method:
    torch.manual_seed(0)
    return METHODS[name](TinyConfig(**config))


@hookimpl
def recon_register(register: Any) -> None:
    register.method("tiny", "tiny:Tiny", summary="for tests")
    register.dataset("numbers", "tiny:Numbers", summary="for tests")


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, output, resume, pause, devices = sys.argv[1:6]
    config = {"pause": float(pause)} | ({} if name == "tiny" else {"optimizer": "sgd"})
    data = sources() if name == "tiny" else sources()[:1]
    train(made(name, **config), data, Path(output), settings(devices=int(devices)), name, resume == "resume")
