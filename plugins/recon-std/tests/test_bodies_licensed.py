"""SMPL, SMPL-H and SMPL-X files: read, reduced, kept, held to smplx; bad ones refused with a clear line."""

from __future__ import annotations

import dataclasses
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from recon_core.errors import AssetError, UsageError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.skeletons import SKELETONS, SMPL24, SMPL_PARENTS
from recon_core.structures import BodyParameters
from recon_std.bodies import SMPLBody, SMPLImporter, add_body, bodies_folder, convert_smpl_file, load_body
from recon_std.bodies.data import BodyData, load_body_file, save_body
from recon_std.bodies.library import LICENSED, SHIPPED
from recon_std.bodies.licensed import smpl_arrays
from recon_std.bodies.licensed_keypoints import licensed_regressors
from recon_std.bodies.topology import face_atlas, find_mirror

HAND_PARENTS = (20, 22, 23, 20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35)


@pytest.fixture(scope="module")
def free() -> BodyData:
    return load_body_file(SHIPPED / "free.npz")


@pytest.fixture(scope="module")
def arrays(free: BodyData) -> dict[str, np.ndarray]:
    """The free body in the layout of SMPL files, with made-up pose correctives of a centimetre or so."""
    content = smpl_arrays(free)
    generator = np.random.default_rng(0)
    return content | {"posedirs": 0.005 * generator.standard_normal(content["posedirs"].shape)}


@pytest.fixture(scope="module")
def tiny() -> dict[str, np.ndarray]:
    """A well-formed SMPL file of 300 vertices that looks like nothing."""
    generator = np.random.default_rng(0)
    return {
        "v_template": generator.standard_normal((300, 3)),
        "shapedirs": generator.standard_normal((300, 3, 300)),
        "posedirs": generator.standard_normal((300, 3, 207)),
        "J_regressor": generator.dirichlet(np.ones(300), 24),
        "weights": generator.dirichlet(np.ones(24), 300),
        "f": generator.integers(300, size=(500, 3)),
        "kintree_table": np.stack([[2**32 - 1, *SMPL_PARENTS[1:]], np.arange(24)]),
    }


@pytest.fixture(scope="module")
def smpl_file(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]) -> Path:
    regressor = scipy.sparse.csc_matrix(arrays["J_regressor"])
    return write(tmp_path_factory.mktemp("smpl") / "SMPL_NEUTRAL.pkl", arrays | {"J_regressor": regressor})


@pytest.fixture
def tiny_file(tmp_path: Path, tiny: dict[str, np.ndarray]) -> Path:
    return write(tmp_path / "SMPL_NEUTRAL.pkl", tiny)


def write(path: Path, content: Any, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def with_fingers(arrays: dict[str, np.ndarray], face_joints: int = 0) -> dict[str, np.ndarray]:
    """An SMPL-H (or, with 3 joints of the face, SMPL-X) file whose mesh is that of `arrays` with still fingers."""
    first = 22 + face_joints
    count = first + 30
    generator = np.random.default_rng(1)
    regressor = np.zeros((count, arrays["J_regressor"].shape[1]))
    regressor[:22] = arrays["J_regressor"][:22]
    weights = np.zeros((len(arrays["weights"]), count))
    weights[:, :22] = arrays["weights"][:, :22]
    for hand, source in ((first, 22), (first + 15, 23)):
        regressor[hand : hand + 15] = arrays["J_regressor"][source]
        share = generator.dirichlet(np.ones(15), len(weights))
        weights[:, hand : hand + 15] = share * arrays["weights"][:, [source]]
    parents = [0, *SMPL_PARENTS[1:22]]
    for joint in range(face_joints):
        regressor[22 + joint] = arrays["J_regressor"][15]
        weights[:, 22 + joint] = 0.1 * arrays["weights"][:, 15]
        parents.append(15)
    if face_joints:
        weights[:, 15] *= 1 - 0.1 * face_joints
    for hand, wrist in ((first, 20), (first + 15, 21)):
        parents += [wrist if p == 20 else p - 22 + hand for p in HAND_PARENTS]
    correctives = np.zeros((len(weights), 3, 9 * (count - 1)))
    correctives[..., :189] = arrays["posedirs"][..., :189]
    return arrays | {
        "J_regressor": regressor,
        "weights": weights,
        "posedirs": correctives,
        "kintree_table": np.stack([parents, np.arange(count)]),
    }


def random_bodies(count: int, dtype: torch.dtype) -> tuple[torch.Tensor, BodyParameters]:
    generator = torch.Generator().manual_seed(0)
    angles = 0.5 * torch.randn(count, 24, 3, generator=generator).to(dtype)
    betas = torch.randn(count, 10, generator=generator).to(dtype)
    return angles, BodyParameters(
        axis_angle_to_matrix(angles), betas, torch.randn(count, 3, generator=generator).to(dtype)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_skinning_agrees_with_smplx_on_the_same_file(smpl_file: Path, dtype: torch.dtype) -> None:
    smplx = pytest.importorskip("smplx")
    angles, some = random_bodies(6, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = smplx.SMPL(str(smpl_file), batch_size=6, dtype=dtype)(
            betas=some.betas,
            body_pose=angles[:, 1:].flatten(1),
            global_orient=angles[:, 0],
            transl=some.translation,
        )
    ours = load_body(smpl_file, dtype)
    out = ours(some)
    limit = 1e-5 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(out.vertices, theirs.vertices, atol=limit, rtol=0)
    torch.testing.assert_close(out.joints, theirs.joints[:, :24], atol=limit, rtol=0)
    torch.testing.assert_close(ours.joints(some), out.joints)


@pytest.mark.parametrize(("face_joints", "kind"), [(0, "smplh"), (3, "smplx")])
def test_larger_models_reduce_to_the_same_mesh(
    tmp_path: Path, arrays: dict[str, np.ndarray], face_joints: int, kind: str
) -> None:
    lbs = pytest.importorskip("smplx.lbs")
    large = with_fingers(arrays, face_joints)
    np.savez(tmp_path / f"{kind.upper()}_FEMALE.npz", **large)
    body = load_body(tmp_path / f"{kind.upper()}_FEMALE.npz", torch.float64)
    assert body.name == f"{kind}-female"
    assert kind.upper()[:4] in body.licence.replace("-", "")
    angles, some = random_bodies(3, torch.float64)
    some.pose[:, 22:] = torch.eye(3).double()
    count = len(large["weights"].T)
    pose = torch.zeros(3, count, 3).double()
    pose[:, :22] = angles[:, :22]
    vertices, joints = lbs.lbs(
        some.betas,
        pose.flatten(1),
        torch.tensor(large["v_template"])[None].expand(3, -1, -1),
        torch.tensor(large["shapedirs"]),
        torch.tensor(large["posedirs"].reshape(len(large["weights"]) * 3, -1).T),
        torch.tensor(large["J_regressor"]),
        torch.tensor(large["kintree_table"][0]),
        torch.tensor(large["weights"]),
    )
    out = body(some)
    torch.testing.assert_close(out.vertices, vertices + some.translation[:, None], atol=1e-6, rtol=0)
    expected = torch.cat([joints[:, :22], joints[:, [25 + face_joints, 40 + face_joints]]], 1)
    torch.testing.assert_close(out.joints, expected + some.translation[:, None], atol=1e-6, rtol=0)


def test_correctives_reach_keypoints_and_derivatives(smpl_file: Path) -> None:
    body = load_body(smpl_file, torch.float64)
    angles, some = random_bodies(4, torch.float64)
    plain = body.rest_vertices(some.betas)
    assert body.pose_directions is not None
    assert (body(some).vertices - plain).abs().max() > 0.01
    expected = body.regress(body(some).vertices, "lsp14")
    torch.testing.assert_close(body.keypoints(some, "lsp14"), expected, atol=1e-9, rtol=0)
    leaf = angles[:1].clone().requires_grad_()

    def function(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        one = BodyParameters(axis_angle_to_matrix(a), some.betas[:1], some.translation[:1])
        return body(one).vertices[:, ::2000], body.keypoints(one, "lsp14")[:, ::5]

    assert torch.autograd.gradcheck(function, (leaf,))


def test_what_the_file_lacks_is_derived(smpl_file: Path, free: BodyData) -> None:
    body = load_body(smpl_file)
    assert body.mirror is not None
    assert free.mirror is not None
    assert torch.equal(body.mirror, torch.from_numpy(free.mirror))
    assert torch.equal(body.parts, torch.from_numpy(free.parts))
    assert (body.torso == torch.from_numpy(free.torso)).float().mean() > 0.97
    assert set(body.skeletons) == {"smpl24", "lsp14"}
    with pytest.raises(UsageError, match="regressor of body smpl-neutral"):
        body.keypoints(random_bodies(1, torch.float32)[1], "coco17")


@pytest.mark.parametrize("vertices", [6890, 10475])
def test_published_vertices_give_every_skeleton(vertices: int) -> None:
    generator = np.random.default_rng(0)
    template = generator.random((vertices, 3))
    joints = generator.dirichlet(np.full(vertices, 0.01), 24)
    regressors = licensed_regressors(joints, template)
    assert regressors.keys() == SKELETONS.keys()
    for name, regressor in regressors.items():
        np.testing.assert_allclose(regressor.dense().sum(1), 1, atol=1e-9)
        assert regressor.shape == (len(SKELETONS[name]), vertices)
    np.testing.assert_allclose(regressors["smpl24"].dense(), joints)
    coco, knee = regressors["coco17"].dense(), SKELETONS["coco17"].index("left_knee")
    np.testing.assert_allclose(coco[knee], joints[SMPL24.index("left_knee")])


def test_the_free_proportions_hold_for_derived_points(free: BodyData) -> None:
    """Eye corners and mouth placed by the licensed rule on the free body's own landmarks land on its own ones."""
    body = load_body("free", torch.float64)
    points = {}
    for skeleton in ("smpl24", "openpose25", "blazepose33"):
        found = body.regress(body.template[None], skeleton)[0].numpy()
        points |= {name: found[i] for i, name in enumerate(SKELETONS[skeleton].joints)}
    names = ["nose", "left_eye", "right_eye", "left_ear", "right_ear"]
    # A mesh of as many vertices as SMPL's, with these landmarks where SMPL has them.
    ids = [332, 2800, 6260, 583, 4071]
    template = np.zeros((6890, 3))
    template[ids] = [points[name] for name in names]
    rows = licensed_regressors(np.eye(24, 6890), template)["blazepose33"].dense() @ template
    for name in ("left_eye_inner", "left_eye_outer", "right_mouth", "left_mouth"):
        gap = np.linalg.norm(rows[SKELETONS["blazepose33"].index(name)] - points[name])
        assert gap < 0.003, name


# -- keeping them


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECON_ASSETS_DIR", str(tmp_path / "assets"))
    return tmp_path / "assets"


def test_an_added_file_loads_by_name(tiny_file: Path, home: Path) -> None:
    assert add_body(tiny_file) == "smpl-neutral"
    assert [p.name for p in bodies_folder().iterdir()] == ["smpl-neutral.npz"]
    assert bodies_folder().is_relative_to(home)
    kept, direct = load_body("smpl-neutral"), load_body(tiny_file)
    some = random_bodies(2, torch.float32)[1]
    torch.testing.assert_close(kept(some).vertices, direct(some).vertices, atol=1e-6, rtol=0)
    assert "non-commercial" in kept.licence
    assert LICENSED.smpl_neutral().name == "smpl-neutral"
    assert not LICENSED.smpl_neutral.missing()
    assert "recon assets add" in LICENSED.smpl_male.missing()
    with pytest.raises(AssetError, match="'smpl-male' is not here.*recon assets add"):
        LICENSED.smpl_male()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SMPL_MALE.pkl", "smpl-male"),
        ("basicModel_f_lbs_10_207_0_v1.0.0.pkl", "smpl-female"),
        ("basicmodel_m_lbs_10_207_0_v1.1.0.pkl", "smpl-male"),
        ("basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl", "smpl-neutral"),
        ("female/model.pkl", "smpl-female"),
        ("body.pkl", "smpl-neutral"),
    ],
)
def test_names_come_from_the_file(
    tmp_path: Path, tiny: dict[str, np.ndarray], home: Path, name: str, expected: str
) -> None:
    assert add_body(write(tmp_path / name, tiny)) == expected


def test_the_importer_knows_body_files_from_others(tiny_file: Path, tmp_path: Path, free: BodyData) -> None:
    importer = SMPLImporter()
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    assert importer.matches(tiny_file)
    assert not importer.matches(tmp_path / "other.npz")
    assert not importer.matches(tmp_path / "broken.npz")
    line = importer.add(tiny_file, tmp_path / "store")
    assert "smpl-neutral" in line
    assert "non-commercial" in line
    assert (tmp_path / "store" / "bodies" / "smpl-neutral.npz").is_file()
    save_body(free, tmp_path / "mine.npz")
    assert importer.matches(tmp_path / "mine.npz")
    with pytest.raises(AssetError, match="'free' is that of a body recon ships"):
        importer.add(tmp_path / "mine.npz", tmp_path / "store")


def test_a_folder_that_cannot_be_written_is_named(tiny_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AssetError, match="cannot be written.*RECON_ASSETS_DIR"):
        add_body(tiny_file, tmp_path / "file")


def test_saving_loses_less_than_a_tenth_of_a_millimetre(free: BodyData, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random(free.weights.shape)
    weights = free.weights * (1 + noise)
    data = dataclasses.replace(
        free,
        weights=weights / weights.sum(1, keepdims=True),
        shape_directions=free.shape_directions * (1 + 0.1 * noise[:, None, :10]),
    )
    save_body(data, tmp_path / "exact.npz")
    save_body(data, tmp_path / "small.npz", compact=True)
    assert (tmp_path / "small.npz").stat().st_size < 0.8 * (tmp_path / "exact.npz").stat().st_size
    some = random_bodies(3, torch.float64)[1]
    expected = SMPLBody(data, torch.float64)(some).vertices
    for name, limit in (("exact", 1e-6), ("small", 1e-4)):
        got = load_body(tmp_path / f"{name}.npz", torch.float64)(some).vertices
        torch.testing.assert_close(got, expected, atol=limit, rtol=0)


# -- what goes wrong


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, tiny: dict[str, np.ndarray], home: Path
) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for protocol in (2, 4):
        path = write(tmp_path / "SMPL_NEUTRAL.pkl", tiny | {"bs_style": Evil()}, protocol)
        with pytest.raises(AssetError, match=r"SMPL_NEUTRAL\.pkl: refused: it asks for posix\.system"):
            add_body(path)
    assert not (tmp_path / "ran").exists()
    assert not bodies_folder().exists()


def test_objects_in_an_npz_are_refused(tmp_path: Path, tiny: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "SMPLX_NEUTRAL.npz", **(tiny | {"weights": np.array([{}], object)}))
    with pytest.raises(AssetError, match=r"SMPLX_NEUTRAL\.npz: damaged"):
        convert_smpl_file(tmp_path / "SMPLX_NEUTRAL.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"posedirs": None}, "it has no posedirs"),
        ({"v_template": None, "f": None}, "it has no v_template, f"),
        ({"weights": np.ones((300, 12)) / 12}, "weights of 12 joints"),
        ({"shapedirs": np.zeros((299, 3, 10))}, "shapedirs has shape"),
        ({"J_regressor": np.ones((24, 300))}, "rows of J_regressor"),
        ({"v_template": np.full((300, 3), np.nan)}, "v_template holds NaN"),
        ({"f": np.array([[0, 1, 300]])}, "beyond the 300"),
        ({"f": np.zeros((0, 3), int)}, "f names vertices|damaged"),
        ({"kintree_table": np.zeros((2, 24), int)}, "another skeleton"),
        ({"v_template": "text"}, "something else than numbers"),
        ({"weights": [1, [2, 3]]}, "something else than numbers"),
    ],
)
def test_wrong_contents_are_named(
    tmp_path: Path, tiny: dict[str, np.ndarray], change: dict[str, Any], message: str
) -> None:
    content = {k: v for k, v in (tiny | change).items() if v is not None}
    with pytest.raises(AssetError, match=message) as error:
        convert_smpl_file(write(tmp_path / "SMPL_MALE.pkl", content))
    assert str(error.value).startswith(str(tmp_path / "SMPL_MALE.pkl"))
    assert "\n" not in str(error.value)


def test_truncated_and_missing_files_are_named(tiny_file: Path, tmp_path: Path) -> None:
    tiny_file.write_bytes(tiny_file.read_bytes()[:100_000])
    with pytest.raises(AssetError, match=r"SMPL_NEUTRAL\.pkl: damaged"):
        load_body(tiny_file)
    for name in ("none.pkl", "none.npz"):
        with pytest.raises(AssetError, match="no such file"):
            load_body(tmp_path / name)
    shipped = (SHIPPED / "free.npz").read_bytes()
    for keep in (10, 3000, len(shipped) // 2, len(shipped) - 10):
        (tmp_path / "cut.npz").write_bytes(shipped[:keep])
        with pytest.raises(AssetError, match=r"cut\.npz"):
            load_body(tmp_path / "cut.npz")
    damaged = bytearray(shipped)
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(bytes(damaged))
    with pytest.raises(AssetError, match="damaged"):
        load_body(tmp_path / "flipped.npz")


def test_unknown_names_say_what_to_do(home: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'free'"):
        load_body("fre")
    with pytest.raises(AssetError, match="recon assets add"):
        load_body("smpl-neutral")


# -- parts of the conversion


def test_mirror_pairs_are_mutual_or_none() -> None:
    generator = np.random.default_rng(0)
    half = generator.random((50, 3)) + [0.1, 0, 0]
    both = np.concatenate([half, half * [-1, 1, 1], [[0, 0, 0]]])
    found = find_mirror(both)
    assert found is not None
    np.testing.assert_array_equal(found, [*range(50, 100), *range(50), 100])
    assert find_mirror(generator.random((50, 3))) is None


@pytest.mark.parametrize("faces", [1, 2, 7, 13776])
def test_face_atlas_overlaps_nowhere(faces: int) -> None:
    uv, uv_faces = face_atlas(faces)
    assert uv.min() > 0
    assert uv.max() < 1
    triangles = uv[uv_faces]
    a, b = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    assert (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0] > 0).all()
    side = int(np.ceil(np.sqrt(faces / 2)))
    cells = np.floor(triangles * side)
    np.testing.assert_array_equal(cells, np.broadcast_to(cells[:, :1], cells.shape))
    local = triangles * side - cells
    lower = np.arange(faces) % 2 == 0
    assert (local[lower].sum(-1) < 0.95).all()
    assert (local[~lower].sum(-1) > 1.05).all()
