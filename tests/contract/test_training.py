"""``bids_epvs-train`` from label maps to weights that the app can use."""

import json

import nibabel as nib
import numpy as np
import pytest

from bids_epvs import training
from bids_epvs.errors import DataError, UsageError
from bids_epvs.models import looks, parcellation, weights
from bids_epvs.synth import anatomy


@pytest.fixture(scope="module")
def labelmaps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelmaps")
    head = anatomy.average()
    for name in ("01", "02"):
        nib.save(nib.Nifti1Image(head.labels, head.affine), folder / f"sub-{name}_dseg.nii.gz")
    return folder


def train(labelmaps, out, *options):
    return training.main(["parcellation", str(labelmaps), str(out), *options])


def test_wrong_subjects_are_named(labelmaps, tmp_path, capsys):
    assert train(labelmaps, tmp_path, "--held-out", "07") == 64
    assert "no label map of 07" in capsys.readouterr().err
    assert train(labelmaps, tmp_path, "--held-out", "01", "--exclude", "02") == 66
    assert "no label map is left" in capsys.readouterr().err


def test_images_by_the_clock_are_of_each_contrast(labelmaps, tmp_path, capsys):
    given = ("--held-out", "02", "--minutes", "1", "--contrast", "FLAIR")
    assert training.main(["slices", str(labelmaps), str(tmp_path), *given]) == 64
    assert "--contrast: --minutes makes images of each contrast" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_from_label_maps_to_weights(labelmaps, tmp_path):
    small = ("--examples", "1", "--judges", "1", "--steps", "4", "--epoch", "2", "--widths", "2", "2", "--nprocs", "1")
    assert train(labelmaps, tmp_path, "--held-out", "02", *small) == 0
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["HeldOutSubjects"] == ["sub-02"]
    assert 0 < card["HeldOut"]["dice"] < 1
    model = parcellation.network(tmp_path / "weights.npz")
    head = anatomy.average()
    image = nib.Nifti1Image((head.labels % 90).astype(np.float32), head.affine)
    found = looks.predict([image], np.eye(4), model=model)
    total = np.asarray(found.probability.dataobj).sum(axis=-1)
    assert total.max() < 1.001
    more = ("--init", str(tmp_path / "weights.npz"), *small[:8], "--nprocs", "1")
    (tmp_path / "again").mkdir()
    for made in ("examples", "held-out"):
        (tmp_path / made).rename(tmp_path / "again" / made)
    assert train(labelmaps, tmp_path / "again", "--held-out", "02", *more) == 0
    assert json.loads((tmp_path / "again/card.json").read_text())["Architecture"] == {"widths": [2, 2]}


@pytest.mark.slow
def test_by_the_clock_from_label_maps_to_weights(labelmaps, tmp_path):
    """Also a network that another one looks for, which is the one trained just before."""
    small = ("--held-out", "02", "--examples", "1", "--judges", "1", "--heads", "1", "--images", "1", "--nprocs", "1")
    short = ("--minutes", "0.1", "--repeat", "1", "--widths", "2", "2")
    assert training.main(["parcellation", str(labelmaps), str(tmp_path / "a"), *small, *short, "--sharp", "2"]) == 0
    card = json.loads((tmp_path / "a/card.json").read_text())
    assert card["HeldOutSubjects"] == ["sub-02"]
    assert 0 < card["HeldOut"]["dice"] < 1
    assert card["Architecture"] == {"widths": [2, 2], "sharp": 2}
    before = ("--parcellation", str(tmp_path / "a/weights.npz"))
    assert training.main(["nuclei", str(labelmaps), str(tmp_path / "b"), *small, *short, *before]) == 0
    assert 0 < json.loads((tmp_path / "b/card.json").read_text())["HeldOut"]["dice"] < 1


def test_packaged_weights_are_checked(monkeypatch):
    none = parcellation.WEIGHTS.__class__("none.npz", "", "", "")
    with pytest.raises(DataError, match="no packaged weights"):
        weights.shipped(none)
    wrong = parcellation.WEIGHTS.__class__("absent.npz", "0" * 64, "", "")
    with pytest.raises(DataError, match="missing"):
        weights.shipped(wrong)
    damaged = parcellation.WEIGHTS.__class__(parcellation.WEIGHTS.file, "0" * 64, "", "")
    with pytest.raises(DataError, match="checksum"):
        weights.shipped(damaged)


def test_without_a_backend_the_remedy_is_named(monkeypatch):
    def missing(*_, **__):
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(parcellation, "build", missing)
    with pytest.raises(UsageError, match="--regions-from atlas"):
        parcellation.network.__wrapped__()


def test_an_interrupted_training_says_how_to_go_on(labelmaps, tmp_path, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    assert train(labelmaps, tmp_path, "--held-out", "01") == 130
    assert "run again to resume" in capsys.readouterr().err
