"""The segmentation network: what it sees, its size, its answer for any combination of sequences."""

from dataclasses import replace

import numpy as np
import pytest

from bids_epvs.errors import DataError
from bids_epvs.models import pieces, unet, weights
from bids_epvs.models.spec import Weights
from bids_epvs.records import Prepared

SMALL = (2, 3, 4)
SETTLED = {"slope": 1.0, "offset": 0.0, "threshold": 0.5}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of a small network that was not trained."""
    path = tmp_path_factory.mktemp("unet") / "weights.npz"
    weights.save(unet.build(SMALL), path, {"widths": SMALL}, {"thin": {"T2w": SETTLED, "T1w": SETTLED}})
    return path


def test_sequences_mean_the_same_whatever_the_scanner():
    white = np.zeros((10, 10, 4), bool)
    fluid, brain = white.copy(), white.copy()
    white[2:6], fluid[6:8], brain[2:8] = True, True, True
    for name, gain, levels, expected in (
        ("T2w", 1.0, (400, 1100), 1),
        ("T2w", 0.01, (400, 1100), 1),
        ("T1w", 3.0, (900, 200), -1),
        ("FLAIR", 1.0, (420, 110), -1),
        ("SWI", 1.0, (500, 600), 0.5),
    ):
        image = gain * np.where(white, levels[0], np.where(fluid, levels[1], 5000.0))
        made = unet.normalised(image, brain, white, fluid, name)
        assert np.allclose(made[white], 0)
        assert np.allclose(made[fluid], expected, atol=1e-6)
        assert (made[~brain] == unet.RANGE[0]).all()
    nothing = np.zeros_like(white)
    assert np.isfinite(unet.normalised(np.zeros(white.shape), nothing, nothing, nothing, "T2w")).all()


def test_a_slab_holds_the_neighbours(rng):
    volume = rng.normal(size=(5, 6, 7, 4)).astype(np.float32)
    seen = unet.slab(volume, [0, 3], unet.marks(("T2w", "FLAIR"), (0.7, 0.7, 2.8)))
    assert seen.shape == (2, 5, 6, unet.CHANNELS)
    assert np.array_equal(seen[1, ..., :20].reshape(5, 6, 5, 4), volume[:, :, 1:6])
    assert np.array_equal(seen[0, ..., :20].reshape(5, 6, 5, 4), volume[:, :, [0, 0, 0, 1, 2]])
    assert np.allclose(seen[..., 20:], [1, 0, 1, 0, 0, np.log(4) / 2])


def test_slices_are_put_back_where_they_were(rng):
    class Middle:
        def predict_on_batch(self, seen):
            return seen[..., 8:9]

    volume = rng.normal(size=(21, 18, 9, 4)).astype(np.float32)
    for flips in (False, True):
        made = unet.logits(Middle(), volume, unet.marks(("T2w",), (1, 1, 1)), flips=flips)
        assert np.allclose(made, volume[..., 0], atol=1e-6)


def test_the_network_of_the_paper_in_small():
    model = unet.build()
    kinds = [type(layer).__name__ for layer in model.layers]
    levels = len(unet.WIDTHS)
    assert kinds.count("MaxPooling2D") == kinds.count("Conv2DTranspose") == kinds.count("Concatenate") == levels - 1
    assert kinds.count("Conv2D") == 2 * (2 * levels - 1) + 1
    assert 200_000 < model.count_params() < 2_000_000
    first = np.asarray(model.predict_on_batch(np.zeros((1, 32, 48, unet.CHANNELS), np.float32)))
    assert first.shape == (1, 32, 48, 1)
    assert (first < -2).all(), "before training little is EPVS"


def test_loss_falls_on_one_batch(rng):
    import keras

    from bids_epvs.train import losses

    keras.utils.set_random_seed(3)
    seen = rng.normal(size=(2, 32, 32, unet.CHANNELS)).astype(np.float32)
    target = np.stack([seen[..., 8] > 1, np.ones((2, 32, 32))], axis=-1).astype(np.float32)
    model = unet.build(SMALL)
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=losses.weighted_entropy_and_dice)
    loss = [float(model.train_on_batch(seen, target)) for _ in range(30)]
    assert loss[-1] < 0.5 * loss[0]


def prepared(rng, names):
    shape = (40, 44, 12)
    regions = np.zeros(shape, np.uint8)
    regions[8:30, 8:36, 2:10] = 3
    csf = np.zeros(shape, bool)
    csf[16:20, 20:24, 4:6] = True
    return Prepared(
        images={n: rng.uniform(300, 500, shape).astype(np.float32) for n in names},
        brain=regions > 0,
        regions=regions,
        csf=csf,
        spacing=(0.8, 0.8, 0.9),
        native=None,
        slices={},
        hemisphere=np.ones(shape, np.uint8),
    )


@pytest.mark.parametrize("names", unet.COMBINATIONS)
def test_every_combination_gives_an_answer(rng, file, names):
    session = prepared(rng, names)
    found = unet.predict(session, {**unet.SPEC.parameters, "flips": True, "weights": file})
    assert found.probability.shape == session.regions.shape
    assert found.probability.dtype == np.float32
    inside = (session.regions > 0) & ~session.csf
    assert (found.probability[inside] > 0).all()
    assert not found.probability[~inside].any()
    assert found.parameters["sequences"] == list(names)
    assert "weights" not in found.parameters, "a path of this machine is no result"


def test_a_scan_without_regions_has_no_epvs(rng, file):
    session = replace(prepared(rng, ("T2w",)), regions=np.zeros((40, 44, 12), np.uint8))
    found = unet.predict(session, {**unet.SPEC.parameters, "weights": file})
    assert not found.mask.any() and found.probability.shape == (40, 44, 12)
    assert found.notes == ("no region is in the scan",)


def test_calibration_of_the_nearest_combination():
    table = {"thin": {"T2w": {"slope": 1}, "T2w+FLAIR": {"slope": 2}, "T1w": {"slope": 3}}}
    for names, slope in ((("T2w", "FLAIR"), 2), (("T2w", "SWI"), 1), (("T1w", "SWI"), 3), (("SWI",), 1)):
        assert unet.calibrated(table, names, "thin")["slope"] == slope


def test_calibration_of_the_nearest_kind_of_slices():
    table = {kind: {"T2w": {"slope": k}} for k, kind in enumerate(("thin", "thick", "turned"))}
    for kinds, wanted, slope in (
        (("thin", "thick", "turned"), "turned", 2),
        (("thin", "thick"), "turned", 1),
        (("thin", "turned"), "thick", 2),
        (("thick",), "thin", 1),
    ):
        stored = {kind: table[kind] for kind in kinds}
        assert unet.calibrated(stored, ("T2w",), wanted)["slope"] == slope


@pytest.mark.parametrize("stored", [{}, {"thin": {}}, {"thin": {"FLAIR": SETTLED}}])
def test_weights_without_a_calibration_say_what_to_do(rng, tmp_path, stored):
    path = tmp_path / "weights.npz"
    weights.save(unet.build(SMALL), path, {"widths": SMALL}, stored)
    with pytest.raises(DataError, match=r"no calibration for T1w.*bids_epvs-train"):
        unet.predict(prepared(rng, ("T1w",)), {**unet.SPEC.parameters, "weights": path})


def test_coronal_and_sagittal_slices_have_a_network_of_their_own(rng, file, tmp_path, monkeypatch):
    own, packaged = unet.build(SMALL), {"axial.npz": file, "turned.npz": tmp_path / "turned.npz"}
    own.set_weights([w + 0.1 for w in own.get_weights()])
    weights.save(own, packaged["turned.npz"], {"widths": SMALL}, {"turned": {"T2w": {**SETTLED, "slope": 2.0}}})
    both = Weights("axial.npz", "a", "", "", own={"turned": Weights("turned.npz", "b", "", "")})
    monkeypatch.setattr(weights, "shipped", lambda given: packaged[given.file])
    monkeypatch.setattr(unet, "network", weights.network_of("unet", unet.build, both))
    thick = replace(prepared(rng, ("T2w",)), spacing=(0.6, 0.6, 4.0))
    axial, turned = (unet.predict(replace(thick, turned=t), unet.SPEC.parameters) for t in (False, True))
    assert (axial.parameters["slope"], turned.parameters["slope"]) == (1.0, 2.0)
    assert not np.allclose(axial.probability, turned.probability)
    assert weights.identities(both) == {"": "a", "turned": "b"}
    given = {**unet.SPEC.parameters, "weights": file}
    assert unet.predict(replace(thick, turned=True), given).parameters["slope"] == 1.0, "the user's serve all slices"
    assert weights.identities(both, file) == {"": weights.digest(file)}
    alone = replace(both, own={})
    assert weights.identities(alone) == {"": "a"}


def test_the_packaged_network_for_coronal_and_sagittal_slices_is_whole():
    model, stored = unet.network(slices="turned")
    assert model.count_params() == unet.network()[0].count_params()
    assert set(stored) == {"turned"} and set(stored["turned"]) == {"+".join(c) for c in unet.COMBINATIONS}


def test_the_mask_of_a_session_is_thinned_to_the_extent(rng, tmp_path, monkeypatch):
    session, path = prepared(rng, ("T2w",)), tmp_path / "weights.npz"
    settled = {"slope": 1.0, "offset": 0.0, "threshold": 0.3, "extent": 0.6}
    weights.save(unet.build(SMALL), path, {"widths": SMALL}, {"thin": {"T2w": settled}})
    monkeypatch.setattr(unet, "logits", lambda _, volume, *__, **___: rng.normal(-2, 2, volume.shape[:3]))
    found = unet.predict(session, {**unet.SPEC.parameters, "weights": path})
    assert np.array_equal(found.mask, pieces.marked(found.probability, 0.3, 0.6))
    assert found.mask[found.probability >= 0.6].all()
    assert found.mask.sum() < (found.probability >= 0.3).sum()
    assert found.parameters["extent"] == 0.6


def test_an_epvs_is_followed_out_of_its_region(rng, tmp_path, monkeypatch):
    session, path = prepared(rng, ("T2w",)), tmp_path / "weights.npz"
    session = replace(session, brain=np.ones(session.regions.shape, bool))
    logit = np.full(session.regions.shape, -4.0)
    logit[26:36, 12, 5] = 2.0  # leaves the region (its last voxel is 29), further than it is followed
    logit[30:32, 30, 5] = 2.0  # begins beyond
    logit[16:22, 22, 5] = 2.0  # runs through fluid
    weights.save(unet.build(SMALL), path, {"widths": SMALL}, {"thin": {"T2w": {**SETTLED, "threshold": 0.3}}})

    def made(model, volume, *_, **__):
        assert volume.shape[0] == 40, "the region and 16 voxels around it are looked at"
        return logit[: volume.shape[0], : volume.shape[1], : volume.shape[2]]

    monkeypatch.setattr(unet, "logits", made)
    found = unet.predict(session, {**unet.SPEC.parameters, "weights": path})
    marked = np.argwhere(found.mask).tolist()
    assert marked == [[x, 22, 5] for x in (20, 21)] + [[x, 12, 5] for x in range(26, 33)], "2.5 mm, voxels of 0.8"
    beyond = (session.regions == 0) & (found.probability > 0)
    assert np.argwhere(beyond).tolist() == [[x, 12, 5] for x in (30, 31, 32)], "nothing else has a probability there"
    kept = unet.predict(session, {**unet.SPEC.parameters, "beyond_mm": 0.0, "weights": path})
    assert np.argwhere(kept.mask)[-1].tolist() == [29, 12, 5]
    assert np.array_equal(kept.mask, found.mask & (session.regions > 0))
