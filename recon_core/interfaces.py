"""The interfaces a plugin implements. docs/architecture.md shows how each of the papers maps onto them.

All are batched over subjects: every tensor in and out has B first. None reads files, crops, draws, saves or
picks a device; the pipeline and the trainer do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from recon_core.errors import UsageError
from recon_core.structures import (
    BodyOutput,
    BodyParameters,
    Camera,
    Detection,
    Features,
    FitResult,
    LossValue,
    Mesh,
    Observation,
    Prediction,
)

if TYPE_CHECKING:
    from recon_core.assets import Assets
    from recon_core.datasets import Mixture
    from recon_core.images import Photo
    from recon_core.rendering import FaceProbabilities, Fragments, Picture, Scene, SoftSettings

InputKind = Literal["image", "mask", "keypoints", "keypoints3d", "mesh", "scan", "landmarks"]
OutputKind = Literal["body", "mesh", "image", "keypoints3d"]


class Settings(BaseModel):
    """Base of every Config: unknown names are an error, so that a typo never passes silently."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Encoder(nn.Module, ABC):
    """Observations to features: image CNN, keypoint network, part maps."""

    inputs: ClassVar[frozenset[InputKind]]

    @abstractmethod
    def forward(self, observation: Observation) -> Features:
        """Features of B subjects; which of global and spatial are filled is documented by the encoder."""


class BodyModel(nn.Module, ABC):
    """A skinned body in SMPL format: 24 joints, T-pose rest in a y-up frame, metres, linear in its betas."""

    name: str
    faces: Int[Tensor, "F 3"]
    weights: Float[Tensor, "V 24"]
    parents: tuple[int, ...]
    shape_count: int
    uv: Float[Tensor, "T 2"]
    uv_faces: Int[Tensor, "F 3"]

    @abstractmethod
    def forward(self, body: BodyParameters) -> BodyOutput:
        """Pose and skin: vertices (B, V, 3) and joints (B, 24, 3) in the frame of `body`."""

    @abstractmethod
    def keypoints(self, body: BodyParameters, skeleton: str) -> Float[Tensor, "B J 3"]:
        """Joints of a named skeleton without skinning the mesh: equal to `regress(forward(body).vertices)`.

        "smpl24" are the kinematic joints, which a regressor finds again from posed vertices only nearly.
        """

    @abstractmethod
    def regress(self, vertices: Float[Tensor, "B V 3"], skeleton: str) -> Float[Tensor, "B J 3"]:
        """Joints of a named skeleton from posed vertices. Raises UsageError when there is no such regressor."""

    @abstractmethod
    def rest_joints(self, betas: Float[Tensor, "B S"]) -> Float[Tensor, "B 24 3"]:
        """Joints of the shaped body in the T-pose, metres; linear in betas."""

    @abstractmethod
    def keypoint_basis(self, skeleton: str) -> tuple[Float[Tensor, "K 24 3 S1"], Float[Tensor, "K 24"]]:
        """(basis, c) of regressed joints in closed form, which fitters differentiate; S1 = 1 + shape_count.

        x_k = sum_p R_p (b_kp - c_kp J_p) + c_kp t_p with b = basis[..., 0] + basis[..., 1:] @ betas, where R_p and t_p
        are the global rotation and place of joint p, and J_p its place at rest. Raises UsageError as `regress` does.
        """


class Renderer(ABC):
    """Meshes and cameras to pictures, differentiable. See `recon_core.rendering` for scenes and fragments.

    A renderer implements `rasterize`, `soft_silhouette` and `face_probabilities`; attributes, texture, light and
    antialiasing are code over fragments that all renderers share. Every method takes one Mesh (row i in picture i),
    several meshes (their rows in order), or a Scene that says which row is in which picture; and a Camera of one row a
    picture, or of one row for all. All raise UsageError for meshes that `Scene` refuses and cameras that do not
    match them. Pixels, metres, camera frame: as in `recon_core.structures`.
    """

    name: ClassVar[str]

    @abstractmethod
    def rasterize(
        self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, near: float = 0.01
    ) -> Fragments:
        """The nearest surface at each pixel centre, both sides of faces alike.

        near: metres; surfaces nearer to a perspective camera are cut off. An orthographic camera sees all
        depths. Ties go to the smaller face number.
        """

    @abstractmethod
    def soft_silhouette(
        self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, settings: SoftSettings | None = None
    ) -> Float[Tensor, "B 1 H W"]:
        """Probabilistic coverage in [0, 1]: 1 - prod (1 - D) over the faces (Liu et al., ICCV 2019, equation 6).

        Its gradients reach vertices as far as the blur does; `SoftSettings` says how far.
        """

    @abstractmethod
    def face_probabilities(
        self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, settings: SoftSettings | None = None
    ) -> FaceProbabilities:
        """Each face's probability over pixels, W of Li et al., ECCV 2020, equation 5, as a sparse list."""

    def silhouette(
        self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, near: float = 0.01
    ) -> Float[Tensor, "B 1 H W"]:
        """Antialiased coverage in [0, 1]: sharp, with gradients to the vertices of the outline."""
        from recon_core.rendering import Scene, outline

        scene = Scene.separate(meshes)
        fragments = self.rasterize(scene, camera, near)
        covered = fragments.mask.to(fragments.depth.dtype)
        return outline(scene, camera, fragments.mask, near).blend(covered).clamp(0, 1)

    def render(
        self,
        meshes: Mesh | Sequence[Mesh] | Scene,
        camera: Camera,
        light: Float[Tensor, "B 9 C"] | None = None,
        background: Tensor | float = 0.0,
        near: float = 0.01,
        antialias: bool = False,
    ) -> Picture:
        """Coloured pictures of meshes: their texture, else their colors, else grey. See `rendering.shade`.

        antialias: smooth the border between surface and background, which gives the image gradients to the
        outline's vertices as well.
        """
        from recon_core.rendering import Scene, outline, shade

        scene = Scene.separate(meshes)
        picture = shade(scene, self.rasterize(scene, camera, near), light, background)
        if not antialias:
            return picture
        return replace(picture, image=outline(scene, camera, picture.fragments.mask, near).blend(picture.image))


class Prior(nn.Module, ABC):
    """A density over body parameters (or another vector of numbers), possibly given a context.

    over: what the D = `dims` numbers are, so that a fitter knows what to hand over. "body-pose": the 69 axis-angle
    numbers of pose rows 1 to 23, radians. "betas". "body": body-pose, then betas. "pose-6d": the 144 numbers of
    all 24 rotations, columns layout. "latent": coordinates of the prior's own, which only it can decode.
    """

    dims: int
    over: ClassVar[Literal["body-pose", "betas", "body", "pose-6d", "latent"]]

    @abstractmethod
    def log_prob(
        self, values: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, " B"]:
        """Natural log density, up to a constant where the prior documents that it is not normalised."""

    @abstractmethod
    def sample(
        self,
        count: int,
        context: Float[Tensor, "B C"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B N D"]:
        """`count` draws for each context row (B = 1 without context)."""

    @abstractmethod
    def mode(self, context: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "B D"]:
        """The most probable value for each context row (B = 1 without context)."""

    def quadratic(
        self, values: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None = None
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"], Float[Tensor, "B D D"] | Float[Tensor, "B D"]]:
        """Energy, its gradient, and a positive semi-definite curvature at `values`, for second-order fitters.

        The curvature may be (B, D) where it is diagonal.

        The energy is -log_prob up to a constant, or what the prior documents in its place.
        """
        raise UsageError(f"prior {type(self).__name__} gives no curvature: use it with --fitter adam")


class Loss(nn.Module, ABC):
    """(prediction, target) to per-sample values. A missing target carries weight 0; it is never a branch."""

    @abstractmethod
    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        """Named tensors in; `keys` of a loss are documented by it."""

    def residuals(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> Float[Tensor, "B M"]:
        """Residuals r for second-order fitters: with J their Jacobian, J^T r is the gradient of the loss and J^T J a
        curvature of it. Robust penalties are given by reweighting: their weights count as constants.
        """
        raise UsageError(f"loss {type(self).__name__} gives no residuals: use it with --fitter adam")


class Fitter(ABC):
    """(observation, initial, priors, losses) to the parameters that explain the observation.

    default_priors: names of the priors it is given unless the user names others over the same part of the body
    (`--prior`, `recon_core.fitting.choose_priors`): registered ones, or methods that bring one.
    """

    Config: ClassVar[type[Settings]] = Settings
    config: Any  # an instance of Config
    default_priors: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Settings | None = None) -> None:
        self.config = config or self.Config()

    @abstractmethod
    def fit(
        self,
        observation: Observation,
        initial: BodyParameters,
        body_model: BodyModel,
        priors: Mapping[str, Prior] | None = None,
        context: Float[Tensor, "B C"] | None = None,
    ) -> FitResult:
        """Explain the evidence in `observation` from `initial`.

        Raises EvidenceError when the evidence cannot constrain a body. A fit that diverges returns its initial
        parameters and says so in the report.
        """


class Detector(ABC):
    """Finds the subjects in one picture."""

    Config: ClassVar[type[Settings]] = Settings
    config: Any  # an instance of Config
    gives: ClassVar[frozenset[str]]
    """Which of box, keypoints, mask it fills."""

    def __init__(self, config: Settings | None = None) -> None:
        self.config = config or self.Config()

    @abstractmethod
    def detect(self, image: np.ndarray) -> list[Detection]:
        """image: (H, W, 3) uint8 RGB, upright. Best first; an empty list when there is nobody."""

    def detect_photo(self, photo: Photo) -> list[Detection]:
        """What the pipeline calls. Readers of detections made elsewhere go by the photo's file name instead."""
        return self.detect(photo.pixels)


class Dataset(ABC):
    """Annotated subjects, each a mapping of named arrays (docs/training.md lists the names).

    `--data name:LOCATION` makes `cls(location, config)`; location is None where none was given. sampling_weights:
    (N,) how often each is drawn in training, None for each once an epoch.
    """

    Config: ClassVar[type[Settings]] = Settings
    config: Any  # an instance of Config
    sampling_weights: Tensor | None = None

    def __init__(self, location: str | Path | None = None, config: Settings | None = None) -> None:
        self.location = location
        self.config = config or self.Config()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """Subject `index` as it is in the files. "id" is a text, the rest are arrays or numbers."""

    def draw(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
        """Subject `index` for training: with augmentations, which take all their randomness from `generator`."""
        return self[index]

    def draw_batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Mapping[str, Any] | None:
        """Several subjects at once, each value batched, or None to have them drawn one by one.

        A subject must not depend on the others beside it, else runs on more devices see other data.
        """
        return None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


class Method(nn.Module, ABC):
    """A recipe over the interfaces above: what a paper is, to recon.

    inputs: what of an Observation it reads; the pipeline provides just that. outputs: what of a Prediction it
    fills. crop_size: side in pixels of the square crop it wants, crop_margin the crop's side over the box's
    longer side. body: name of the body model it needs; None is the free body for a method that gives a body, and no
    body model for any other. default_fitter: name of the Fitter that follows `predict` unless the user says
    otherwise, None for none. default_detector: name of the Detector that finds its subjects. quick: settings under
    which the checks of plugins run it, where its own take long. guide: file of a photo given as `Observation.guide`.
    """

    Config: ClassVar[type[Settings]] = Settings
    config: Any  # an instance of Config
    inputs: ClassVar[frozenset[InputKind]]
    outputs: ClassVar[frozenset[OutputKind]]
    crop_size: int = 224
    crop_margin: float = 1.2
    body: str | None = None
    default_fitter: str | None = None
    default_detector: str = "blazepose"
    guide: str | None = None
    quick: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: Settings, body_model: BodyModel | None = None) -> None:
        super().__init__()
        self.config = config
        self.body_model = body_model

    @classmethod
    def body_for(cls, config: Settings) -> str | None:
        """The body model these settings need: `body`, unless weights that they name were made for another one."""
        return cls.body

    @classmethod
    def from_assets(cls, config: Settings, assets: Assets, body_model: BodyModel | None = None) -> Method:
        """Build with trained weights. The default needs none."""
        return cls(config, body_model)

    @abstractmethod
    def predict(self, observation: Observation) -> Prediction:
        """Reconstruct B subjects. B may be 0; row i must not depend on the other rows."""

    def training_step(self, batch: Mapping[str, Any], step: int) -> LossValue:
        """Losses of a batch of training data, of which the mean over samples is minimised.

        Methods that learn override it. One that has several optimizers takes a third argument, `optimizer`, and is
        called once for each that has its turn.
        """
        raise UsageError(f"{type(self).__name__} is not trainable: it defines no training_step")

    def configure_optimizers(self, steps: int) -> Mapping[str, Optimizer]:
        """Optimizers by name, for a training of `steps` steps. One AdamW over what requires a gradient by default,
        with the settings learning_rate and weight_decay where the method has them."""
        rate = getattr(self.config, "learning_rate", 1e-4)
        decay = getattr(self.config, "weight_decay", 1e-4)
        return {"main": AdamW([p for p in self.parameters() if p.requires_grad], rate, weight_decay=decay)}

    def configure_schedulers(self, optimizers: Mapping[str, Optimizer], steps: int) -> Mapping[str, LRScheduler]:
        """Learning rate schedules by name, each advanced after every step. None by default."""
        return {}

    def turns(self, step: int, optimizers: Mapping[str, Optimizer]) -> Sequence[str]:
        """Which optimizers move at this step, in this order: all of them by default."""
        return tuple(optimizers)

    def before_training(self, data: Mixture) -> None:
        """Called once on every process before the first step, not when a run is resumed."""

    def training_state(self) -> dict[str, Any]:
        """What a resumed run needs beyond `state_dict`: tensors, numbers, texts, lists and dicts of them."""
        return {}

    def restore_training_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `training_state` gave."""

    def training_pictures(self, batch: Mapping[str, Any]) -> Mapping[str, Float[Tensor, "3 H W"]]:
        """Pictures for the log, by name: RGB in [0, 1]. Called without gradients, in evaluation mode."""
        return {}

    def prior(self) -> Prior | None:
        """The conditional prior over its output that this method brings for fitting, if it has one."""
        return None


__all__ = ["BodyModel", "Dataset", "Detector", "Encoder", "Fitter", "Loss", "Method", "Prior", "Renderer", "Settings"]
