"""Blocks, losses and calibration of the counting networks."""

import keras
import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.models import count, gpunet
from bids_epvs.prepare import crops
from bids_epvs.synth import anatomy, counts, scene, volumes
from bids_epvs.synth.contrast import Protocol
from bids_epvs.train import count as training
from bids_epvs.train import loop

BUILD = {"cnn": count.build, "gpunet": gpunet.build}


@pytest.fixture(scope="module")
def simulated():
    head = volumes.near_brain(anatomy.average())
    return scene.build(np.random.default_rng(4), head, burden="high", age=60.0, fine_mm=1.0)


@pytest.fixture
def path(tmp_path, rng):
    """Four regions whose EPVS are single bright voxels in the middle of their 3 x 3 x 3 neighbourhood."""
    arrays = {"spacing": np.array([0.5, 0.5, 4.0], np.float32)}
    for index, number in ((1, 5), (3, 30), (5, 2), (7, 0)):
        shape = (40, 56, 24)
        image, mask = np.full(shape, 80, np.uint8), np.zeros(shape, bool)
        mask[4:36, 4:52, 2:22] = True
        flat = rng.choice(np.flatnonzero(mask), number, replace=False)
        at = np.stack(np.unravel_index(flat, shape), axis=1).astype(np.int16)
        image[tuple(at.T)] = 250
        own = {"image": image, "soft": np.where(mask, 255, 0).astype(np.uint8), "mask": mask, "at": at}
        arrays |= {f"{k}_{index}": v for k, v in own.items()} | {f"share_{index}": np.ones(number, np.float32)}
    file = tmp_path / "example-00000.npz"
    np.savez(file, **arrays)
    return file


@pytest.mark.parametrize("kind", volumes.KINDS)
def test_an_example_counts_what_can_be_seen(simulated, kind, rng, tmp_path):
    made = counts.example(rng, simulated, kind)
    np.savez(tmp_path / "example-00000.npz", **made)
    found = training.read(tmp_path / "example-00000.npz")
    assert {r.name for r in found.values()} == set(count.COUNTED)
    assert {r.turned for r in found.values()} == {kind == "turned"}
    true = sum(t.region == 3 for t in simulated.tubes)
    least = 0.2 if kind == "turned" else 0.3  # slices of 5 mm: fewer show
    assert least * true < found[3].total <= true
    region = found[3]
    at = tuple(region.at.astype(int).T)
    inside = region.mask[at]
    assert inside.mean() > 0.8
    assert np.median(region.image[at][inside]) > np.median(region.image[region.mask]) + 8


def test_what_is_seen_does_not_depend_on_how_much_fluid_the_mask_leaves_out(simulated, rng):
    """Between the extremes of a region, noise counted as EPVS where a mask kept clear of the fluid beside it."""
    shot = volumes.t2w(rng, simulated, "clinical")
    tight = np.where(ndimage.binary_dilation(shot.csf, iterations=4), 0, shot.regions)
    given = [(r, shot.image, shot.csf, shot.protocol.spacing) for r in (shot.regions, tight)]
    seen = []
    for own in (count.sides(*g)[3] for g in given):
        back = crops.back(own.image, own, shot.image.shape)
        seen.append(back[tight == 3])
    assert np.median(np.abs(seen[0] - seen[1])) < 0.02
    assert np.corrcoef(*seen)[0, 1] > 0.95


def test_the_aqueduct_is_left_out_as_the_app_does(simulated, monkeypatch):
    def masks():
        return counts.example(np.random.default_rng(2), simulated, "research", off_mm=(0.0, 0.0))

    without = masks()
    monkeypatch.setattr(counts, "aqueduct", lambda image, found, *_: np.zeros(found.shape, bool))
    whole = masks()
    missing = {k: int(whole[f"mask_{k}"].sum() - without[f"mask_{k}"].sum()) for k in (1, 2, 3, 4, 5, 6, 7, 8)}
    volume = 0.5 * 0.5 * 0.8 * (missing[7] + missing[8])
    assert 30 < volume < 400, "mm3; the aqueduct is 15 mm long"
    assert not any(missing[k] for k in range(1, 7))


def test_networks_are_told_how_noisy_each_region_is(simulated, rng, tmp_path, monkeypatch):
    """Noise, and neither the contrast of nuclei nor EPVS; more in the middle of the head; what is added, too."""
    found = {}
    for snr, depth in ((200.0, 1.0), (10.0, 1.0), (10.0, 3.0)):
        protocol = Protocol((0.7, 0.7, 4.0), 4.0, snr=snr, bias=0.0, depth=depth)
        monkeypatch.setattr(volumes, "draw_protocol", lambda *_, p=protocol: p)
        np.savez(tmp_path / "example.npz", **counts.example(np.random.default_rng(4), simulated, "clinical"))
        found[snr, depth] = training.read(tmp_path / "example.npz")
    quiet, even, deep = ({k: r.noise for k, r in f.items()} for f in found.values())
    assert all(even[k] > 2 * quiet[k] for k in even)
    ratio = {k: deep[k] / even[k] for k in even}
    assert ratio[7] > 1.25 and ratio[7] > 1.1 * ratio[1] > 1.2 * ratio[3], "midbrain, basal ganglia, centrum semiovale"
    told = {k: training.block(rng, r)[2][-1] for k, r in found[200.0, 1.0].items()}
    assert all(told[k] > count.marks("Midbrain", 4.0, 0.95 * quiet[k])[-1] for k in told)


def test_noise_is_added_as_a_scan_has_it(simulated, rng, tmp_path):
    np.savez(tmp_path / "example.npz", **counts.example(rng, simulated, "clinical"))
    region = training.read(tmp_path / "example.npz")[3]
    still = np.full((48, 48, 40), 100, np.uint8)
    rest, told = training._varied(np.random.default_rng(1), still, region)
    rest = rest - rest.mean()
    away = round(region.slice_mm / crops.SPACING_MM[2] / 2)
    along = float((rest[:, :, away:] * rest[:, :, :-away]).mean() / rest.var())
    assert along > 0.3, "half a slice on it is much the same"
    assert told >= np.hypot(0.5 * region.noise, 0.3 * rest.std())


def test_borders_lie_off_as_far_as_asked(simulated, rng):
    spacing = (0.7, 0.7, 4.0)
    true = simulated.regions_on(spacing) == 3
    assert np.array_equal(counts.regions_off(rng, simulated, spacing, 0.0) == 3, true)
    dice = []
    for off in (0.3, 1.0):
        found = counts.regions_off(rng, simulated, spacing, off) == 3
        dice.append(2 * (found & true).sum() / (found.sum() + true.sum()))
    assert 0.99 > dice[0] > dice[1] > 0.7


def test_epvs_of_another_region_count_where_the_mask_holds_them(simulated, rng):
    shot = volumes.t2w(rng, simulated, "research")
    origin, spacing = shot.affine[:3, 3], shot.protocol.spacing
    both = np.where(np.isin(shot.regions, (3, 11)), 3, 0)  # the other white matter of that side is taken for it
    wide, own = (count.sides(r, shot.image, shot.csf, spacing)[3] for r in (both, shot.regions))
    here, there = (sum(t.region == k for t in simulated.tubes) for k in (3, 11))
    assert there > 0
    assert counts.points(list(simulated.tubes), 3, wide, origin)[1].sum() == pytest.approx(here + there, rel=0.1)
    assert counts.points(list(simulated.tubes), 3, own, origin)[1].sum() == pytest.approx(here, rel=0.1)


def test_a_block_has_the_number_of_epvs_inside_it(path, rng):
    regions = training.read(path)
    assert {r.name: r.total for r in regions.values()}["CentrumSemiovale"] == 30
    for _ in range(20):
        image, mask, told, number = training.block(rng, regions[3], (32, 32, 16))
        assert number.shape == (4, 4, 4, 1)
        assert image.shape == mask.shape == (32, 32, 16, 1)
        bright = (image[..., 0] > np.median(image[mask > 0]) + 0.8) & (mask[..., 0] > 0)
        assert number.sum() == pytest.approx(bright.sum(), abs=1)
        cells = bright.reshape(4, 8, 4, 8, 4, 4).sum(axis=(1, 3, 5))
        assert np.abs(cells - number[..., 0]).sum() <= 2
        assert told[:-1].tolist() == count.marks("CentrumSemiovale", 4.0, 0.1)[:-1].tolist()
    whole = training.block(rng, regions[1], (64, 64, 32))
    assert whole[0].shape == (64, 64, 32, 1)


def test_one_epoch_draws_from_every_file(path, monkeypatch):
    """A window that moved between epochs alone never reached the end of a large folder in a short training."""
    for k in range(1, 4 * training.WINDOW):
        (path.parent / f"example-{k:05d}.npz").hardlink_to(path)
    regions, drawn = training.read(path), []
    monkeypatch.setattr(training, "_kept", lambda file: drawn.append(file.name) or regions)
    data = training.Examples(path.parent, steps=300, batch=4, seed=3)
    for index in range(len(data)):
        data[index]
        near = drawn[-4 * 40 :]
        assert len(set(near)) <= training.WINDOW + 40
    assert len(set(drawn)) > 0.95 * len(data.files)
    drawn.clear()
    data.epochs = 4
    for epoch in range(4):
        data.epoch, before = epoch, len(drawn)
        for index in range(len(data)):
            data[index]
        assert len(set(drawn[before:])) <= 2 * training.WINDOW, "few are read anew in each epoch"
    assert set(drawn) == {f.name for f in data.files}


@pytest.mark.parametrize("name", BUILD)
def test_the_sum_of_the_density_is_the_count_and_the_loss_falls(name, path, rng):
    keras.utils.set_random_seed(3)
    model = BUILD[name]((4, 6))
    blocks = [training.block(rng, training.read(path)[k]) for k in (3, 1)]
    image, mask, told, number = (np.stack(part) for part in zip(*blocks, strict=True))
    made = np.asarray(model.predict_on_batch([image, mask, told]))
    assert made.min() >= 0
    outside = np.asarray(model.predict_on_batch([image, mask * 0, told]))
    assert outside.sum() == 0, "what is not in the mask does not count"
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=training.loss)
    losses = [float(model.train_on_batch((image, mask, told), number)) for _ in range(45)]
    assert losses[-1] < 0.6 * losses[0]


def test_the_loss_is_the_squared_difference_of_roots():
    density = np.zeros((2, 3, 3, 3, 1), np.float32)
    density[0, 0, 0, 0], density[1, 1, 1, 1] = 8.625, 3.625
    found = float(training.loss(np.full((2, 1, 1, 1, 1), 3.625, np.float32), density))
    assert found == pytest.approx(4 * ((3 - 2) ** 2 + 0) / 2)


def test_cells_teach_where(rng):
    """The same number in the wrong cell costs; in the right one nothing does."""
    true = np.zeros((1, 2, 2, 2, 1), np.float32)
    true[0, 0, 1, 0] = 3
    right, wrong = np.zeros((1, 8, 8, 4, 1), np.float32), np.zeros((1, 8, 8, 4, 1), np.float32)
    right[0, :4, 4:, :2], wrong[0, 4:, 4:, :2] = 3 / 32, 3 / 32
    assert float(training.loss(true, right)) == pytest.approx(0, abs=1e-5)
    assert float(training.loss(true, wrong)) > 5


def test_a_region_with_one_number_comes_whole(path, rng):
    with np.load(path) as stored:
        arrays = {k: stored[k] for k in stored.files if k.endswith("_3") or k == "spacing"}
    arrays |= {"at_3": np.zeros((0, 3), np.int16), "share_3": np.zeros(0, np.float32), "total_3": np.float32(7)}
    np.savez(path, **arrays)
    region = training.read(path)[3]
    assert region.total == 7
    (image, mask, told), number = training.Examples(path.parent, steps=1, batch=2)[0]
    assert image.shape == mask.shape == (2, 40, 56, 24, 1)
    assert number.tolist() == [[[[[7.0]]]]] * 2
    model = BUILD["cnn"]((2, 2))
    assert np.isfinite(float(training.loss(number, model.predict_on_batch([image, mask, told]))))


def test_layers_are_those_of_the_paper():
    kinds = {
        n: [
            type(layer).__name__
            for layer in build((32, 64)).layers
            if "Conv3D" in type(layer).__name__ or "Max" in type(layer).__name__
        ]
        for n, build in BUILD.items()
    }
    assert kinds["cnn"] == ["Conv3D", "Conv3D", "MaxPooling3D", "Conv3D", "Conv3D", "Conv3D"]  # the last: 1 x 1 x 1
    assert kinds["gpunet"] == ["Conv3D"] * 2 + ["MaxPooling3D"] + ["Conv3D"] * 5
    last = build_last(BUILD["gpunet"])
    assert last.kernel_size == (1, 1, 1)


def build_last(build):
    return [layer for layer in build().layers if isinstance(layer, keras.layers.Conv3D)][-1]


def test_from_examples_to_calibrated_weights(path, tmp_path):
    schedule = loop.Schedule(4, epoch=2, rate=1e-2, seed=1)
    out = tmp_path / "out"
    training.train(path.parent, path.parent, out, schedule, model="gpunet", widths=(2, 2), batch=1)
    from bids_epvs.models import weights

    stored = weights.calibration(out / "weights.npz")["thick"]
    assert set(stored) == set(count.COUNTED)
    assert stored["CentrumSemiovale"]["factor"] > 0
    assert weights.architecture(out / "weights.npz") == {"widths": (2, 2)}
    assert "icc" in (out / "log.csv").read_text().split("\n")[0]


def test_totals_are_without_bias_and_the_spread_is_that_of_roots(monkeypatch, path):
    monkeypatch.setattr(training, "counted", lambda _, region: region.total / 2)
    found = training.calibrate(None, [path])["thick"]
    regions = list(training.read(path).values())
    own = [r.total for r in regions if r.name == "CentrumSemiovale"]
    told = count.calibrated(np.array(own) / 2, found["CentrumSemiovale"])
    assert told.sum() == pytest.approx(sum(own), rel=1e-3)
    away = count.root(told) - count.root(np.array(own))
    assert found["CentrumSemiovale"]["spread"] == pytest.approx(np.sqrt((away**2).mean()), abs=1e-3)
    assert found["Midbrain"]["factor"] == 1.0
    assert found["Midbrain"]["gain"] == 1.0


def test_a_network_that_shrinks_counts_is_stretched_again(rng):
    true = rng.poisson(rng.uniform(0, 40, 200)).astype(float)
    shrunk = np.maximum((1.2 + 0.6 * count.root(true)) ** 2 - 0.375, 0) * np.exp(rng.normal(0, 0.05, 200))
    known = training.line(true, shrunk)
    assert 1.3 < known["gain"] < 1.75
    told = count.calibrated(shrunk, known)
    assert told.sum() == pytest.approx(true.sum())
    assert told.std() == pytest.approx(true.std(), rel=0.1)
    assert np.abs(told - true).mean() < 0.5 * np.abs(shrunk * true.sum() / shrunk.sum() - true).mean()
    few = training.line(true[:4], shrunk[:4])
    assert abs(few["gain"] - 1) < abs(known["gain"] - 1), "few hemispheres say little"
    assert training.line(np.array([3.0]), np.array([1.5])) == {"shift": 0.0, "gain": 1.0, "factor": pytest.approx(2.0)}
    assert (count.calibrated(np.array([0.0, 5.0]), {}) == [0.0, 5.0]).all()
    assert (count.calibrated(np.arange(9.0), known) >= 0).all()
