import gzip

import nibabel as nib
import numpy as np
import pytest

from bids_epvs.errors import DataError
from bids_epvs.inputs.load import load_image

SHAPE = (40, 45, 30)


def save(path, data, *, zooms=(5, 4, 4), qcode=1, scode=1, sform=None):
    affine = np.diag([*zooms, 1.0])
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, qcode)
    image.set_sform(affine if sform is None else sform, scode)
    nib.save(image, path)
    return path


@pytest.fixture
def data(rng):
    return rng.normal(100, 10, SHAPE).astype(np.float32)


def test_a_sound_file_is_unchanged(tmp_path, data):
    loaded = load_image(save(tmp_path / "a.nii.gz", data))
    assert loaded.notes == ()
    np.testing.assert_array_equal(loaded.image.dataobj, data)


def test_one_volume_is_squeezed_and_several_refused(tmp_path, data):
    loaded = load_image(save(tmp_path / "a.nii.gz", data[..., None]))
    assert loaded.image.shape == SHAPE and "squeezed" in loaded.notes[0]
    with pytest.raises(DataError, match="3-D"):
        load_image(save(tmp_path / "b.nii.gz", np.stack([data, data], -1)))


def test_nan_and_inf_become_zero(tmp_path, data):
    data[0, 0, 0], data[1, 1, 1] = np.nan, np.inf
    loaded = load_image(save(tmp_path / "a.nii.gz", data))
    assert "2 voxels" in loaded.notes[0]
    assert loaded.image.dataobj[0, 0, 0] == 0


def test_qform_sform_rule(tmp_path, data):
    other = np.diag([5, 4, 4, 1.0])
    other[0, 3] = 20
    both = load_image(save(tmp_path / "a.nii.gz", data, sform=other))
    assert "disagree" in both.notes[0]
    np.testing.assert_allclose(both.image.affine, other)
    only_q = load_image(save(tmp_path / "b.nii.gz", data, scode=0, sform=other))
    np.testing.assert_allclose(only_q.image.affine, np.diag([5, 4, 4, 1.0]))
    none = load_image(save(tmp_path / "c.nii.gz", data, qcode=0, scode=0))
    assert "guess" in none.notes[0]


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_broken_affine(tmp_path, data, bad):
    path = save(tmp_path / "a.nii", data, qcode=0)
    raw = bytearray(path.read_bytes())
    raw[280:328] = bad[:3].astype("<f4").tobytes()
    path.write_bytes(raw)
    with pytest.raises(DataError, match="affine"):
        load_image(path)


def test_truncated(tmp_path, data):
    path = save(tmp_path / "a.nii.gz", data)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="truncated"):
        load_image(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: np.full_like(d, 7), "constant"),
        (lambda d: d[:, :, :5], "slices"),
        (lambda d: np.full_like(d, np.nan), "finite"),
        (lambda d: d * np.float32(1e35), "overflow"),
        (lambda d: d.astype(np.complex64), "real numbers"),
    ],
)
def test_refused_values(tmp_path, data, change, match):
    with pytest.raises(DataError, match=match):
        load_image(save(tmp_path / "a.nii.gz", change(data)))


@pytest.mark.parametrize(
    ("zooms", "match"),
    [
        ((11, 4, 4), "voxels of"),
        ((0.5, 0.5, 0.5), "human head"),
        ((5, 4, 1.3), "human head"),
        ((5, 1.5, 1.5), "human head"),
    ],
)
def test_refused_geometry(tmp_path, data, zooms, match):
    with pytest.raises(DataError, match=match):
        load_image(save(tmp_path / "a.nii.gz", data, zooms=zooms))


def test_slabs_are_read(tmp_path, data):
    assert load_image(save(tmp_path / "a.nii.gz", data, zooms=(5, 4, 1.4))).image.shape == SHAPE


def test_sheared(tmp_path, data):
    sheared = np.diag([5, 4, 4, 1.0])
    sheared[0, 1] = 1.0
    with pytest.raises(DataError, match="sheared"):
        load_image(save(tmp_path / "a.nii.gz", data, qcode=0, sform=sheared))


def test_scl_slope_overflow(tmp_path, data):
    image = nib.Nifti1Image(data.astype(np.int16), np.diag([5, 4, 4, 1.0]))
    path = tmp_path / "a.nii"
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[112:116] = np.float32(3e38).tobytes()
    path.write_bytes(raw)
    with pytest.raises(DataError, match="scl_slope"):
        load_image(path)


def test_not_nifti_and_missing(tmp_path):
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(b"hello")
    with pytest.raises(DataError, match="readable"):
        load_image(path)
    with pytest.raises(DataError, match="does not exist"):
        load_image(tmp_path / "none.nii.gz")
