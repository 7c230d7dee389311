"""What this package registers. Targets are strings, imported when the method is first used: keep this file light."""

from recon_core import hookimpl


@hookimpl
def recon_register(register):
    register.method(
        "mean-pose",
        "recon_template.method:MeanPose",
        summary="The mean body facing the camera, as tall as the box",
    )
