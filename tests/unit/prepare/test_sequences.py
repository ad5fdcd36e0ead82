"""How the sequences of a session are divided between processes and evened."""

from concurrent.futures import Executor, Future

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.prepare import ants, sequences
from bids_epvs.prepare.session import ATLAS_SHOWING
from bids_epvs.records import SHOWING


def ones(*names):
    return {n: nib.Nifti1Image(np.full((4, 4, 4), k + 1, np.float32), np.eye(4)) for k, n in enumerate(names)}


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """What is done with which sequence, in order; nothing is corrected, all lie where they should."""
    done = []
    align = sequences._correct_and_align

    def found(path, reference):
        done.append(("align", path.parent.name))
        return align(path, reference)

    def still(reference, image, *, work_dir):
        return image, ants.identity(work_dir)

    monkeypatch.setattr(sequences, "_correct", lambda path: done.append(("correct", path.stem)) or 1.5)
    monkeypatch.setattr(sequences, "_correct_and_align", found)
    monkeypatch.setattr(sequences.register, "onto", still)
    return done


@pytest.mark.parametrize(
    ("given", "limits", "expected"),
    [
        (("FLAIR", "T2w", "T1w", "SWI"), SHOWING, ["T2w", "T1w"]),
        (("FLAIR", "SWI"), SHOWING, ["FLAIR"]),
        (("FLAIR", "T1w"), SHOWING, ["T1w"]),
        (("SWI", "FLAIR", "T2w"), SHOWING, ["T2w", "FLAIR"]),
        (("FLAIR", "T2w"), ATLAS_SHOWING, ["T2w"]),
        (("T2w", "T1w", "FLAIR"), {}, ["T2w"]),
    ],
)
def test_anatomy_is_looked_for_in_two_sequences_unless_it_is_given(steps, tmp_path, given, limits, expected):
    found = sequences.Sequences(ones(*given), tmp_path, None, limits=limits)
    assert found.looked_at() == expected
    found.first()
    found.arrive()
    assert sorted(found.aligned) == sorted(given)


def test_a_sequence_is_evened_whenever_it_comes_and_by_what_is_known_then(steps, tmp_path, monkeypatch):
    by: list[tuple[str, int]] = []

    def even(image, tissues, to_template, degree):
        by.append((tissues, degree))
        return nib.Nifti1Image(np.asarray(image.dataobj) * 2, image.affine)

    monkeypatch.setattr(sequences.bias, "even", even)
    found = sequences.Sequences(ones("T2w", "T1w", "SWI"), tmp_path, None)
    found.first()
    found.even_out("atlas", np.eye(4), 2)
    assert [i.get_fdata().mean() for i in found.native()] == [2, 4]
    found.even_out("network", np.eye(4))
    found.arrive()
    middle = {n: float(i.get_fdata()[1:3, 1:3, 1:3].mean()) for n, i in found.aligned.items()}
    assert middle == pytest.approx({"T2w": 4, "T1w": 4, "SWI": 6}, abs=1e-3)
    assert by == [("atlas", 2)] * 2 + [("network", 3)] * 3


def test_anatomy_is_looked_for_where_each_sequence_was_acquired(tmp_path, monkeypatch):
    """A turned T1w of small voxels: its grid stays, its place is that of the one on the grid of the T2w."""
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    turn[:3, 3] = 5, -3, 2
    monkeypatch.setattr(sequences, "_correct", lambda path: 1.0)

    def onto(reference, image, *, work_dir):
        transform = ants.affine(turn, work_dir)
        return ants.apply(image, reference, transform), transform

    monkeypatch.setattr(sequences.register, "onto", onto)
    spot = np.zeros((40, 40, 40), np.float32)
    spot[20:23, 11:14, 17:20] = 100.0
    t2w = nib.Nifti1Image(np.ones((40, 40, 10), np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
    images = {"T2w": t2w, "T1w": nib.Nifti1Image(spot, np.eye(4))}
    found = sequences.Sequences(images, tmp_path, None)
    found.first()
    _, own = found.native()
    assert own.shape == spot.shape
    assert own.get_fdata().max() == 100.0
    found.arrive()
    moved = found.aligned["T1w"]
    centre = moved.affine @ [*ndimage.center_of_mass(moved.get_fdata()), 1]
    assert (np.abs(centre - own.affine @ [21, 12, 18, 1])[:3] < [0.3, 0.3, 1.5]).all()


NAMES = ("FLAIR", "SWI", "T2w", "T1w")


class Later(Executor):
    """Does what it was given when told to."""

    def __init__(self):
        self.waiting = []

    def submit(self, function, *given):
        done = Future()
        self.waiting.append((done, function, given))
        return done

    def go(self):
        done, function, given = self.waiting.pop(0)
        done.set_result(function(*given))


def test_the_helper_begins_with_what_is_waited_for_and_each_contrast_is_given_as_it_comes(steps, tmp_path):
    helper = Later()
    found = sequences.Sequences(ones(*NAMES), tmp_path, helper)
    helper.go()
    assert found.first()[1] == 1.5
    contrasts = found.native()
    assert next(contrasts).get_fdata().mean() == 1 + NAMES.index("T2w")
    helper.go()
    assert next(contrasts).get_fdata().mean() == 1 + NAMES.index("T1w"), "before FLAIR"
    assert next(contrasts, None) is None
    assert len(found.contrasts()) == 2
    helper.go()
    helper.go()
    found.arrive()
    assert [name for what, name in steps if what == "align"] == ["T1w", "FLAIR", "SWI"]
    assert steps[0] == ("correct", "reference")
    assert list(found.aligned) == ["T2w", "T1w", "FLAIR", "SWI"]
    assert not helper.waiting
