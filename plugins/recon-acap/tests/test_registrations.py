"""FAUST, SCAPE, SPRING and Dynamic FAUST in the layouts they are published in, made small."""

import numpy as np
import pytest
import torch

from recon_acap.features import AcapCodec
from recon_acap.registrations import read_dfaust, read_faust, read_scape, read_spring
from recon_core.errors import InputError
from recon_core.geometry.primitives import icosphere


def body(seed=0):
    vertices, faces = icosphere(1)
    noise = torch.randn(vertices.shape, generator=torch.Generator().manual_seed(seed))
    return (vertices + 0.02 * noise).float(), faces


def write(path, vertices, faces):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [" ".join(f"{x:.6f}" for x in v) for v in vertices.tolist()]
    if path.suffix == ".obj":
        text = "".join(f"v {r}\n" for r in rows) + "".join(f"f {a + 1} {b + 1} {c + 1}\n" for a, b, c in faces.tolist())
    else:
        head = ["ply", "format ascii 1.0", f"element vertex {len(rows)}"]
        head += [f"property float {axis}" for axis in "xyz"]
        head += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
        text = "\n".join([*head, *rows, *(f"3 {a} {b} {c}" for a, b, c in faces.tolist())]) + "\n"
    path.write_text(text)


def test_faust_has_ten_poses_a_person(tmp_path):
    for number in (0, 3, 10, 99):
        write(tmp_path / f"training/registrations/tr_reg_{number:03}.ply", *body(number))
    write(tmp_path / "training/scans/tr_scan_000.ply", *body())
    found = read_faust(tmp_path)
    assert found.name == ("tr_reg_000", "tr_reg_003", "tr_reg_010", "tr_reg_099")
    assert found.person == ("person 0", "person 0", "person 1", "person 9")
    torch.testing.assert_close(found.vertices[1], body(3)[0], rtol=0, atol=1e-5)
    assert read_faust(tmp_path / "training").name == found.name
    codec = AcapCodec(found.vertices[0], found.faces)
    back = codec.reconstruct(codec.extract(found.vertices))
    gap = back - found.vertices
    assert float((gap - gap.mean(1, keepdim=True)).norm(dim=-1).mean()) < 0.01, "registrations have features"


def test_scape_and_spring_are_files_of_one_connectivity(tmp_path):
    for number in (0, 2, 71):
        write(tmp_path / f"scape/mesh{number:03}.ply", *body(number))
    assert read_scape(tmp_path / "scape").name == ("mesh000", "mesh002", "mesh071")
    for sex, number in (("SPRING_FEMALE", 1), ("SPRING_MALE", 2)):
        write(tmp_path / f"spring/{sex}/SPRING{number:04}.obj", *body(number))
    found = read_spring(tmp_path / "spring")
    assert found.person == ("SPRING0001", "SPRING0002")
    assert torch.equal(found.faces, body()[1])
    with pytest.raises(InputError, match=r"holds no file named like mesh"):
        read_scape(tmp_path / "spring")


@pytest.mark.parametrize("fault", ["faces", "vertices", "nan"])
def test_a_mesh_that_does_not_belong_is_named(tmp_path, fault):
    vertices, faces = body()
    write(tmp_path / "mesh000.ply", vertices, faces)
    if fault == "faces":
        faces = faces.flip(1)
    elif fault == "vertices":
        vertices = torch.cat([vertices, vertices[:1]])
    else:
        vertices[3, 1] = torch.nan
    write(tmp_path / "mesh001.ply", vertices, faces)
    with pytest.raises(InputError, match=r"mesh001\.ply: .*(one connectivity|not finite)"):
        read_scape(tmp_path)


def test_dynamic_faust_is_read_by_sequence_and_frame(tmp_path):
    h5py = pytest.importorskip("h5py", reason="reads hdf5: pip install h5py")
    vertices, faces = body()
    file = tmp_path / "registrations_m.hdf5"
    with h5py.File(file, "w") as held:
        held["faces"] = faces.numpy()
        for name in ("50002_hips", "50004_knees"):
            held[name] = np.stack([vertices.numpy() + k for k in range(5)], 2)
    found = read_dfaust(file, every=2)
    assert found.name[:3] == ("50002_hips_0", "50002_hips_2", "50002_hips_4")
    assert found.person == ("50002",) * 3 + ("50004",) * 3
    torch.testing.assert_close(found.vertices[1], vertices + 2)
    assert len(read_dfaust(file, ["50004_knees"])) == 5
    with pytest.raises(InputError, match=r"has no sequence 50002_run; it has 50002_hips"):
        read_dfaust(file, ["50002_run"])
    with h5py.File(file, "a") as held:
        del held["faces"]
    with pytest.raises(InputError, match="has no faces"):
        read_dfaust(file)
    file.write_bytes(b"no hdf5")
    with pytest.raises(InputError, match=r"registrations_m\.hdf5: not a readable hdf5 file"):
        read_dfaust(file)
