"""What this one does, beyond what `pytest --recon-plugin` checks of every plugin."""

import torch

from recon_core.testing import build_method, synthetic_observation


def test_the_body_fills_its_box_from_top_to_bottom():
    method = build_method("mean-pose")
    observation = synthetic_observation(method, count=2)
    vertices = method.body_model(method.predict(observation).body).vertices
    y = observation.camera.project(vertices)[..., 1]
    height = observation.box[:, 3]
    # Not to the pixel: parts that are nearer to the camera than the middle look larger.
    torch.testing.assert_close((y.amax(1) - y.amin(1)) / height, torch.ones(2), atol=0.1, rtol=0)
