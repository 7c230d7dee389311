"""A method reads an Observation of B subjects and returns a Prediction. recon does the rest."""

import torch

from recon_core.interfaces import Method, Settings
from recon_core.structures import BodyParameters, Observation, Prediction


class MeanPose(Method):
    """The mean body in its rest pose, facing the camera, as tall as the subject's box."""

    class Config(Settings):
        height: float = 1.7
        """Metres from the bottom of the box to its top."""

    # Of what was seen it reads only the box, which every method gets; others add "image", "mask" or "keypoints".
    inputs = frozenset()
    outputs = frozenset({"body"})

    def predict(self, observation: Observation) -> Prediction:
        box, K = observation.box, observation.camera.K
        count = len(observation)
        # Half a turn about x: from the body's frame (y up) to the camera's (y down), facing the camera.
        pose = torch.eye(3).to(box).repeat(count, 24, 1, 1)
        pose[:, 0, 1, 1] = pose[:, 0, 2, 2] = -1
        betas = box.new_zeros(count, self.body_model.shape_count)
        # The depth at which `height` metres fill the box, then the point there behind the box's middle.
        depth = K[:, 1, 1] * self.config.height / box[:, 3]
        middle = torch.cat([box[:, :2] + box[:, 2:] / 2, torch.ones_like(depth)[:, None]], 1)
        center = torch.einsum("bij,bj->bi", torch.linalg.inv(K), middle) * depth[:, None]
        body = BodyParameters(pose, betas, torch.zeros_like(center))
        vertices = self.body_model(body).vertices
        offset = (vertices.amin(1) + vertices.amax(1)) / 2
        return Prediction(body=BodyParameters(pose, betas, center - offset))
