"""ACAP-VAE as a method: a mesh, scan, markers or joints in, the embedding's body that explains them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field

from recon_acap.fitting import LatentFit, LatentFitSettings, fit_joints, fit_markers, fit_meshes, fit_scans
from recon_acap.fitting.embedded import EmbeddedBodies
from recon_acap.network import BodyEmbedding, load_embedding
from recon_acap.registration import register
from recon_core.assets import Assets
from recon_core.errors import EvidenceError
from recon_core.interfaces import BodyModel, InputKind, Method, OutputKind
from recon_core.structures import Mesh, Observation, Prediction

Y_DOWN = torch.tensor([0.0, -1.0, 0.0])
"""Where a person who stands points to in the camera frame."""


class AcapVaeConfig(LatentFitSettings):
    weights: str | None = Field(default=None, description="file of an embedding; the shipped one where it is left out")


class AcapVae(Method):
    """The latent fits of section 7 behind one call.

    Of what an observation holds, the first of these is explained: a mesh of the embedding's connectivity; a scan; a
    mesh of another connectivity with landmarks, to which the embedding's mesh is registered (eq. 14); landmarks alone,
    as markers; joints in space; joints in the picture. A scan uses landmarks where there are any. Rows with one
    `subject` are frames of one person: they share a shape, and their pose is smooth.
    """

    Config = AcapVaeConfig
    inputs: ClassVar[frozenset[InputKind]] = frozenset({"mesh", "scan", "landmarks", "keypoints3d", "keypoints"})
    outputs: ClassVar[frozenset[OutputKind]] = frozenset({"mesh"})
    quick: ClassVar[Mapping[str, Any]] = {"headings": 1, "iterations": 1}
    config: AcapVaeConfig

    def __init__(
        self, config: AcapVaeConfig, body_model: BodyModel | None = None, embedding: BodyEmbedding | None = None
    ) -> None:
        super().__init__(config, body_model)
        self.embedding = embedding or load_embedding(config.weights)

    @classmethod
    def from_assets(cls, config: AcapVaeConfig, assets: Assets, body_model: BodyModel | None = None) -> AcapVae:  # type: ignore[override]
        """With the shipped embedding, or the one of the setting `weights`."""
        return cls(config, body_model).eval()

    @torch.no_grad()
    def predict(self, observation: Observation) -> Prediction:
        """The fitted meshes, in the frame of the evidence. extra: codes, place, and how the fit went.

        Raises EvidenceError for evidence of none of these kinds, or that does not constrain a body.
        """
        bodies = EmbeddedBodies(self.embedding)
        o, s = observation, self.config
        if o.mesh is not None and o.scan is None and o.landmarks is not None and not self._own(o.mesh):
            return self._registered(bodies, o)
        frames = _frames(o)
        if o.mesh is not None and (o.scan is None or self._own(o.mesh)):
            found = fit_meshes(bodies, o.mesh.vertices, o.mesh.faces, s, frames)
        elif o.scan is not None:
            found = fit_scans(bodies, o.scan, o.scan_normals, o.landmarks, s, frames, up=Y_DOWN)
        elif o.landmarks is not None:
            found = fit_markers(bodies, o.landmarks, s, frames)
        else:
            joints = o.keypoints if o.keypoints3d is None else o.keypoints3d
            if joints is None:
                raise EvidenceError("acap-vae reads a mesh, a scan, landmarks or joints: the observation has none")
            regressor = bodies.regressor(joints.skeleton)
            found = fit_joints(bodies, regressor, joints.points, joints.confidence, o.camera, s, frames)
        return _prediction(found, found.vertices, self.embedding)

    def _own(self, mesh: Mesh) -> bool:
        faces = self.embedding.faces
        return mesh.faces.shape == faces.shape and bool((mesh.faces == faces).all())

    def _registered(self, bodies: EmbeddedBodies, o: Observation) -> Prediction:
        assert o.mesh is not None
        assert o.landmarks is not None
        found = [register(bodies, o.mesh.vertices[i], o.mesh.faces, o.landmarks[i], self.config) for i in range(len(o))]
        if not found:
            return Prediction(mesh=Mesh(torch.zeros(0, *self.embedding.reference.shape), self.embedding.faces))
        each = [_prediction(f.model, f.vertices[None], self.embedding) for f in found]
        extra = {name: torch.cat([p.extra[name] for p in each]) for name in each[0].extra}
        extra["matched_share"] = torch.stack([f.matched.double().mean() for f in found])
        extra["distance_mm"] = torch.stack([f.distance[f.matched].mean() * 1000 for f in found])
        return Prediction(
            mesh=Mesh(torch.stack([f.vertices for f in found]).float(), self.embedding.faces), extra=extra
        )


def _prediction(found: LatentFit, vertices: torch.Tensor, embedding: BodyEmbedding) -> Prediction:
    report = found.report
    extra = {name: getattr(found, name).float() for name in ("shape", "pose", "root", "translation")}
    extra |= {name: getattr(report, name) for name in ("initial_energy", "energy", "iterations", "converged")}
    if report.reprojection_px.isfinite().all():
        extra["reprojection_px"] = report.reprojection_px
    return Prediction(mesh=Mesh(vertices.float(), embedding.faces), extra=extra)


def _frames(observation: Observation) -> int:
    """Rows a subject. Raises EvidenceError unless subjects have equally many rows, one after the other."""
    subject = observation.subject
    if subject is None or not len(subject):
        return 1
    _, counts = subject.unique_consecutive(return_counts=True)
    if len(counts) != len(subject.unique()) or (counts != counts[0]).any():
        raise EvidenceError("rows of one subject must follow each other, equally many a subject")
    return int(counts[0])
