"""Training examples of the parcellation network."""

import inspect

import numpy as np
import pytest

from bids_epvs.errors import DataError
from bids_epvs.models import parcellation
from bids_epvs.synth import anatomy, contrast, examples, nuclei, parcels, slices


@pytest.fixture
def coarse(monkeypatch):
    monkeypatch.setattr(parcels, "SPACING_MM", 2.5)
    monkeypatch.setattr(parcels, "BURDENS", {"low": 1.0})  # many find no room in so coarse a head, after long trying
    return anatomy.average()


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_an_example_shows_its_labels(coarse, rng):
    made = parcels.example(rng, coarse)
    assert set(made) == {*parcellation.CONTRASTS, "codes"}
    codes = made["codes"][::2, ::2, ::2]
    assert codes.shape == parcellation.SHAPE
    ventricles = codes % parcellation.RIGHT == parcellation.NAMES.index("LateralVentricle")
    assert ventricles.sum() * 8 > 5000, "mm3"
    bright = made["T2w"][..., 0].astype(float)
    white = codes % parcellation.RIGHT == parcellation.NAMES.index("CerebralWhiteMatter")
    assert np.median(bright[ventricles]) > 1.3 * np.median(bright[white])
    left, right = (codes == k for k in (1, 1 + parcellation.RIGHT))
    assert np.argwhere(left)[:, 0].mean() < parcellation.SHAPE[0] / 2 < np.argwhere(right)[:, 0].mean()
    for name in parcellation.CONTRASTS:
        assert made[name].shape == (*parcellation.SHAPE, parcellation.CHANNELS)
        assert made[name].dtype == np.uint8


def test_the_same_seed_gives_the_same_example(coarse):
    a, b = (parcels.example(np.random.default_rng(5), coarse) for _ in range(2))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    c = parcels.example(np.random.default_rng(6), coarse)
    assert not np.array_equal(a["codes"], c["codes"])


def test_atrophy_widens_ventricles_and_sulci(coarse, rng):
    head = anatomy.deformed(coarse, rng, spacing=1.5, amount=0)
    made = [anatomy.widened(np.random.default_rng(k), head) for k in range(4)]
    before = np.isin(head.labels, (4, 43)).sum()
    after = [np.isin(m.labels, (4, 43)).sum() for m in made]
    assert min(after) >= before
    assert max(after) > 1.3 * before
    assert max((m.labels == 24).sum() for m in made) > (head.labels == 24).sum()
    assert all((m.labels > 0).sum() == (head.labels > 0).sum() for m in made)


def test_stripped_and_defaced_heads_keep_their_brain(coarse):
    head = anatomy.deformed(coarse, np.random.default_rng(1), spacing=2.5, amount=0)
    brain = np.isin(head.labels, (2, 41, 3, 42, 8, 47))
    kinds = set()
    for seed in range(30):
        cut = parcels.crop_head(np.random.default_rng(seed), head)
        assert (cut[brain] == head.labels[brain]).all()
        outside = (cut >= 500).sum() / (head.labels >= 500).sum()
        kinds.add("whole" if outside == 1 else "stripped" if outside < 0.5 else "defaced")
    assert kinds == {"whole", "stripped", "defaced"}


def test_no_heads_no_examples(tmp_path):
    with pytest.raises(DataError, match="no label maps"):
        parcels.generate((), tmp_path, number=1)


def test_a_network_that_is_told_of_another_sees_other_deformations(tmp_path, monkeypatch):
    monkeypatch.setattr(parcels, "read_head", lambda path: path)
    drawn = {}
    for stream in range(3):
        task = examples.Task((tmp_path,), tmp_path / str(stream), 7, 3)
        parcels.write_example(task, lambda rng, _: {"drawn": rng.random(4)}, stream)
        drawn[stream] = np.load(task.path(3))["drawn"]
    assert np.array_equal(drawn[0], np.random.default_rng([7, 3]).random(4)), "examples of before stay what they were"
    assert not set(drawn[0]) & set(drawn[1]) | set(drawn[1]) & set(drawn[2]) | set(drawn[0]) & set(drawn[2])
    streams = [inspect.signature(kind.generate).parameters["stream"].default for kind in (parcels, nuclei, slices)]
    assert len(set(streams)) == 3


def test_looks_reach_the_contrasts_of_a_clinic():
    """Grey to white matter of a spin-echo T1w, and caudate to thalamus of a T2w, both of the `openms` scans."""
    rng = np.random.default_rng(0)
    t1w = [parcels.draw_look(rng, "T1w").table for _ in range(200)]
    assert np.mean([t[3] / t[2] > 0.825 for t in t1w]) > 0.1
    t2w = [parcels.draw_look(rng, "T2w").table for _ in range(200)]
    assert np.mean([t[11] / t[10] > 1.15 for t in t2w]) > 0.02
    assert all((t[24] > t[3]) and (t[24] > t[2]) for t in t2w), "fluid is brightest"


def test_cortex_comes_near_white_matter_and_nothing_else_changes(rng):
    labels = np.zeros((40, 40, 30), np.int16)
    labels[4:36, 4:36] = 24
    labels[8:32, 8:32] = 42
    labels[8:20, 8:32] = 3
    labels[14:26, 14:26] = 2
    labels[20:26, 14:26] = 12
    even = np.where(np.isin(labels, (3, 42)), 700, np.where(labels == 2, 500, 1500)).astype(np.float32)
    cortex = np.isin(labels, (3, 42))
    within, deep, outer = [], [], []
    for _ in range(40):
        fine = even.copy()
        parcels.myelinated(rng, labels, fine, 500.0)
        assert np.array_equal(fine[~cortex], even[~cortex])
        contrast_left = (fine - 500) / 200
        assert contrast_left[cortex].min() > 0, "brighter than white matter everywhere, as it was"
        outer.append(contrast_left[9:31, 9, 1:-1])
        deep.append(contrast_left[13, 15:25, 1:-1].mean() / contrast_left[12, 15:25, 1:-1].mean())
        within.append(outer[-1].std())
    assert 0.8 < np.median(outer) < 1.2
    assert min(within) < 0.05 < 0.1 < max(within)
    assert min(deep) < 0.6 and max(deep) > 0.9


def test_epvs_are_bright_on_t2w_and_belong_to_their_structure(rng, monkeypatch):
    head = anatomy.packaged(1.5)
    monkeypatch.setattr(parcels, "SPACING_MM", 1.5)
    monkeypatch.setattr(parcels, "BURDENS", {"elderly": 1.0})
    made, filled = parcels.draw_head(rng, head)
    assert filled.shape == made.labels.shape
    volume = filled.sum() / 255 * 1.5**3
    assert 500 < volume < 6000, "mm3"
    assert set(np.unique(made.labels)) <= {*np.unique(head.labels), 25, 57, 601, 602, 603}
    look = parcels.draw_look(rng, "T2w")
    monkeypatch.setattr(parcels, "draw_protocol", lambda _: (contrast.Protocol((1.5, 1.5, 1.5), 1.5, snr=60), 2))
    monkeypatch.setattr(parcels, "finish", lambda ideal, *_: ideal)
    monkeypatch.setattr(parcels, "myelinated", lambda *_: None)  # it draws, and this seed cuts nothing without it
    full = (filled > 128) & np.isin(made.labels, (2, 41))
    with_, without = (
        np.asarray(parcels.imaged(np.random.default_rng(1), made, look, made.labels, f).dataobj)
        for f in (filled, np.zeros_like(filled))
    )
    assert with_.shape == full.shape
    assert ((with_ - without)[full] > 0.4 * look.step).all()
