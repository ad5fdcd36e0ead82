import hashlib
import os
from functools import partial

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_epvs.derivatives import write
from bids_epvs.errors import OutputError


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write.atomically(tmp_path / "a" / "x.txt", broken)
    assert list((tmp_path / "a").iterdir()) == []


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    write.text(tmp_path / "x.txt", "old")

    def interrupted(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write.atomically(tmp_path / "x.txt", interrupted)
    assert (tmp_path / "x.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write.text(tmp_path / "file" / "x.txt", "y")


def test_images_keep_grid_and_type_and_bytes(tmp_path, rng):
    affine = np.array([[0, -0.8, 0, 3], [0.7, 0, 0, 4], [0, 0, -3, 5], [0, 0, 0, 1.0]])
    like = nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), affine)
    data = rng.random((5, 6, 7)) > 0.5
    first = write.image(tmp_path / "a_mask.nii.gz", data, like, meta={"Type": "Lesion"})
    back = nib.load(first)
    np.testing.assert_array_equal(np.asarray(back.dataobj), data)
    assert back.get_data_dtype() == np.uint8
    np.testing.assert_allclose(back.affine, affine)
    assert (int(back.header["qform_code"]), int(back.header["sform_code"])) == (1, 1)
    digest = hashlib.sha256(first.read_bytes()).digest()
    write.image(first, data, like, meta={"Type": "Lesion"})
    assert hashlib.sha256(first.read_bytes()).digest() == digest


def test_tables_round_trip(tmp_path):
    frame = pd.DataFrame({"name": ["a", None], "n": [1.0, np.nan], "x": [0.5, np.nan], "m": [3, "n/a"]})
    path = write.table(tmp_path / "t.tsv", frame, meta={"name": {"Description": "x"}})
    assert path.read_text() == "name\tn\tx\tm\na\t1\t0.5\t3\nn/a\tn/a\tn/a\tn/a\n"
    assert write.read_table(path)["n"].tolist()[0] == 1


def test_currency_needs_the_key_and_the_file(tmp_path):
    like = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    path = write.image(tmp_path / "a_mask.nii.gz", np.zeros((2, 2, 2), bool), like, meta={write.KEY: "k"})
    assert write.is_current([path], "k")
    assert not write.is_current([path], "other")
    (tmp_path / "a_mask.json").write_text("{ half")
    assert not write.is_current([path], "k")
    write.as_json(tmp_path / "a_mask.json", {write.KEY: "k"})
    path.unlink()
    assert not write.is_current([path], "k")


def test_leftovers_are_swept(tmp_path):
    (tmp_path / ".epvs-tmp-123.nii.gz").write_text("x")
    (tmp_path / "keep").write_text("x")
    write.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["keep"]


def test_several_things_at_a_time_and_their_first_error(tmp_path):
    done = []

    def fail():
        raise ValueError("no")

    write.together([partial(done.append, k) for k in range(5)], 2)
    assert sorted(done) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="no"):
        write.together([fail, partial(done.append, 5)], 2)
    assert 5 in done, "the others are finished all the same"


def test_files_written_at_the_same_time_have_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        jobs = [partial(write.text, tmp_path / f"{k}.txt", "a") for k in range(40)]
        write.together(jobs, 8)
        assert {oct(p.stat().st_mode & 0o777) for p in tmp_path.iterdir()} == {"0o640"}
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
