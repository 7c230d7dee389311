"""Leeds Sports Pose Extended Training (Johnson and Everingham, CVPR 2011): sport photos with 14 joints.

Reads a folder of cut-out photos with one index.json: joint_names, and items with id, image (path in the folder),
split, joints (14 rows x, y, visible, pixels of that image), crop_xyxy_in_source, source_size and resize_factor; also
box (x, y, width, height of the person) where that is not to be made of the joints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from recon_core.crops import crop_photo
from recon_core.datasets import check_pictures, data_folder, read_picture
from recon_core.errors import TrainingError
from recon_core.geometry.cameras import default_focal, transform_points
from recon_core.interfaces import Dataset
from recon_core.skeletons import LSP14
from recon_std.readers.augmentation import Augmentation, AugmentationSettings

_FIELDS = ("id", "image", "split", "joints", "crop_xyxy_in_source", "source_size", "resize_factor")


class LSPExtendedDataset(Dataset):
    """People with 2D joints: `--data lsp-ext:DIR`. The fields are those of docs/training.md, "photos with joints".

    Raises TrainingError for an index that is not of this layout, and for missing or damaged pictures (the first is
    named, the rest counted).
    """

    class Config(AugmentationSettings):
        split: Literal["train", "val", "all"] = "train"
        crop_size: int = Field(default=224, ge=16)
        crop_margin: float = Field(default=1.2, gt=0)
        """Side of the crop over the longer side of the person's box."""
        box_growth: float = Field(default=1.1, gt=0)
        """Side of the person's box over that of the joints': heads and feet go beyond the joints."""
        augment: bool = True
        focal_px: float | None = Field(default=None, gt=0)
        """Focal length in pixels of the source photo; None for its diagonal, since nothing is known of it."""

    config: Config

    def __init__(self, location: str | Path | None = None, config: Config | None = None) -> None:
        super().__init__(location, config)
        self.folder = data_folder("lsp-ext", location)
        self.items = [i for i in self._index() if self.config.split in ("all", i["split"])]
        check_pictures("lsp-ext", (self.folder / item["image"] for item in self.items))

    def _index(self) -> list[dict[str, Any]]:
        file = self.folder / "index.json"
        try:
            index = json.loads(file.read_text(encoding="utf-8"))
            names, items = tuple(index["joint_names"]), index["items"]
            for item in items:
                if missing := [name for name in _FIELDS if name not in item]:
                    raise ValueError(f"{item.get('id', 'an item')} has no {missing[0]}")
                item["joints"] = np.array(item["joints"], np.float32)
                if item["joints"].shape != (len(LSP14), 3):
                    raise ValueError(f"{item['id']} has joints of shape {item['joints'].shape}")
                if "box" in item:
                    item["box"] = tuple(float(number) for number in item["box"])
                    if len(item["box"]) != 4 or min(item["box"][2:]) <= 0:
                        raise ValueError(f"{item['id']} has a box that is not x, y, width, height")
        except FileNotFoundError:
            raise TrainingError(f"{file}: no such file; is {self.folder} the lsp_ext folder?") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{file}: not an index of this layout ({error})") from None
        if names != LSP14.joints:
            raise TrainingError(f"{file}: its joint_names are not those of lsp14 in their order")
        return items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._subject(self.items[index], Augmentation())

    def draw(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
        varied = Augmentation.draw(self.config, generator) if self.config.augment else Augmentation()
        return self._subject(self.items[index], varied)

    def _subject(self, item: dict[str, Any], varied: Augmentation) -> dict[str, Any]:
        side = self.config.crop_size
        points, visible = torch.from_numpy(item["joints"][:, :2]), torch.from_numpy(item["joints"][:, 2])
        affine = varied.crop(item.get("box") or self._box(points, visible), side, self.config.crop_margin)
        image = crop_photo(read_picture(self.folder / item["image"]), affine[None], side)[0]
        joints = transform_points(affine[None], points[None])[0]
        if varied.flipped:
            mirror = list(LSP14.mirror)
            joints, visible = joints[mirror], visible[mirror]
        width, height = item["source_size"]
        left, top = item["crop_xyxy_in_source"][:2]
        factor = item["resize_factor"]
        focal = factor * (self.config.focal_px or default_focal((width, height)))
        center = ((width / 2 - left) * factor, (height / 2 - top) * factor)
        return {
            "id": item["id"],
            "image": (image * torch.tensor(varied.color)[:, None, None]).clamp(0, 1),
            "K": varied.intrinsics(focal, center, affine),
            "to_crop": affine,
            "keypoints2d": joints,
            "keypoints2d_confidence": visible,
            "roll": varied.roll,
            "flipped": float(varied.flipped),
        }

    def _box(self, points: Tensor, visible: Tensor) -> tuple[float, float, float, float]:
        shown = points[visible > 0] if bool((visible > 0).any()) else points
        low, high = shown.amin(0), shown.amax(0)
        size = (high - low) * self.config.box_growth
        x, y = ((low + high - size) / 2).tolist()
        return x, y, float(size[0]), float(size[1])
