import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import coarse_plan as dataset_plan

from bids_epvs.errors import DataError
from bids_epvs.prepare import planes
from bids_epvs.prepare.regions import REGIONS, from_labels
from bids_epvs.synth import anatomy, contrast, dataset, mimics, scene, tubes

AFFINE = np.diag([0.5, 0.6, 2.0, 1.0])


def straight(start, end, radius):
    points = np.linspace(start, end, 40)
    return tubes.Tube(1, points, np.full(40, radius))


def test_occupancy_is_the_volume_of_the_cylinder():
    tube = straight((6, 7, 10), (9, 11, 22), 0.9)
    fraction, index = tubes.occupancy([tube], (40, 36, 18), AFFINE, sub_mm=0.1)
    expected = np.pi * 0.9**2 * tube.centre_mm + 4 / 3 * np.pi * 0.9**3
    assert fraction.sum() * 0.6 == pytest.approx(expected, rel=0.03)
    centre = (fraction[..., None] * np.stack(np.indices(fraction.shape), -1)).sum((0, 1, 2)) / fraction.sum()
    np.testing.assert_allclose(centre * np.diag(AFFINE)[:3], (7.5, 9, 16), atol=0.05)
    assert set(np.unique(index)) == {0, 1}
    assert 0 < fraction.max() <= 1


def test_partial_volume_conserves_the_signal():
    tube = straight((6, 7, 10), (9, 11, 22), 0.35)
    fine, _ = tubes.occupancy([tube], (80, 72, 90), np.diag([0.25, 0.3, 0.4, 1]), sub_mm=0.1)
    coarse, _ = tubes.occupancy([tube], (40, 36, 18), AFFINE, sub_mm=0.1)
    assert coarse.sum() * 0.6 == pytest.approx(fine.sum() * 0.03, rel=0.02)
    assert coarse.max() < fine.max()


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (1.0, 1.0, 1.0), (0.5, 0.5, 3.0), (0.5, 0.5, 6.0)])
def test_volume_is_analytic_at_every_resolution(spacing, rng):
    drawn = []
    for _ in range(12):
        points = np.cumsum(rng.normal([0.3, 0.1, 0.35], 0.08, (16, 3)), axis=0) + rng.uniform(8, 22, 3)
        drawn.append(tubes.Tube(3, points, tubes.profile(rng, 16, float(rng.uniform(0.3, 1.2)))))
    shape = tuple(int(40 / s) for s in spacing)
    total = 0.0
    for tube in drawn:
        fraction, _ = tubes.occupancy([tube], shape, np.diag([*spacing, 1.0]), sub_mm=0.15)
        total += float(fraction.sum()) * float(np.prod(spacing))
    assert total == pytest.approx(sum(t.volume_mm3 for t in drawn), rel=0.02)


@pytest.fixture(scope="module")
def made():
    return scene.build(np.random.default_rng(4), anatomy.packaged(1.0), burden="high", age=80, fine_mm=1.0)


def test_a_deformed_head_keeps_its_structures_and_sides(made):
    labels = anatomy.plain(made.head.labels)
    assert set(anatomy.NEEDED) <= set(np.unique(labels))
    for index, region in REGIONS.items():
        assert (made.regions == index).sum() > 30, region.full_name
    centre = {r.side: np.argwhere(made.regions == i).mean(0)[0] for i, r in REGIONS.items() if r.name == "BasalGanglia"}
    assert centre["Left"] < centre["Right"]
    middle = np.argwhere(np.isin(labels, (4, 43))).mean(0)
    assert abs((made.head.to_template @ made.head.affine @ [*middle, 1])[0]) < 5


def test_a_tilted_head_is_planned_upright(rng):
    flat = anatomy.average()
    angle = np.deg2rad(25)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    tilted = anatomy.Anatomy(flat.labels, flat.affine, turn)
    new = anatomy.deformed(tilted, rng, spacing=3.0, amount=0.0)
    np.testing.assert_allclose(new.to_template[:3, :3], np.eye(3), atol=1e-6)


def test_tubes_stay_in_their_tissue_and_apart(made):
    found = made.tubes
    courses = tubes.Courses(made.head, made.regions)
    for tube in found:
        assert courses.inside(tube.points, tube.region).all()
        assert 1.0 <= tube.length_mm <= 22
        assert tube.diameter_mm <= 5.3
        chord = np.linalg.norm(tube.points[-1] - tube.points[0])
        assert tube.centre_mm <= 1.15 * chord + 1e-6
    assert len(found) > 0.8 * sum(made.parameters["CountsWanted"].values())
    points = np.concatenate([t.points for t in found])
    reach = np.concatenate([t.radius for t in found])
    owner = np.repeat(np.arange(len(found)), [len(t.points) for t in found])
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) - reach[:, None] - reach[None]
    assert distance[owner[:, None] != owner[None]].min() >= 0.79


def test_white_matter_tubes_run_from_ventricle_to_cortex(made):
    half = anatomy.every_second(made.head)
    field = tubes.potential(anatomy.plain(half.labels))
    inverse = np.linalg.inv(half.affine)
    steps = []
    for tube in made.tubes:
        if REGIONS[tube.region].name == "CentrumSemiovale":
            at = np.rint(tube.points[[0, -1]] @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
            steps.append(field[tuple(at[1])] - field[tuple(at[0])])
    assert len(steps) > 50
    assert np.mean(np.array(steps) > 0) > 0.8


def test_the_commonest_label_of_a_block():
    labels = np.zeros((4, 3, 10), np.int16)
    labels[:, :, 0:2], labels[:, :, 2:9], labels[:, :, 9] = 2, 3, 4  # neither the first nor the last fills the slab
    labels[2:, 0] = 7
    made = anatomy.commonest(labels, (2, 1, 10))
    np.testing.assert_array_equal(made[..., 0], [[3, 3, 3], [7, 3, 3]])
    assert anatomy.commonest(labels, (1, 2, 4)).shape == (4, 2, 3)
    assert not anatomy.commonest(labels, (1, 2, 10))[:, 1].any()  # half of it lies outside
    np.testing.assert_array_equal(anatomy.commonest(labels, (1, 1, 1)), labels)


def test_two_labels_that_fill_half_of_a_block_are_drawn_as_often():
    labels = np.tile(np.array([1, 2], np.int16), (40, 40, 20))
    assert (anatomy.commonest(labels, (1, 1, 2)) == 1).mean() == pytest.approx(0.5, abs=0.02)


def test_sizes_follow_the_priors(rng):
    prior = tubes.PRIORS["CentrumSemiovale"]
    sizes = np.array([tubes.draw_size(rng, prior) for _ in range(4000)])
    assert np.median(sizes[:, 0]) == pytest.approx(6.5, rel=0.05)
    assert np.median(sizes[:, 1]) == pytest.approx(1.1, rel=0.05)
    assert 0.01 < (sizes[:, 1] > 3).mean() < 0.05


def test_lesions_and_vessels_are_where_they_belong(made):
    before = anatomy.packaged(1.0)
    half = anatomy.every_second(before)
    regions = from_labels(half.labels, half.spacing, half.to_template @ half.affine)
    load = mimics.Load(rim_mm=2.0, spots=10, lacunes=3, vessels=20)
    after = mimics.add(np.random.default_rng(0), before, regions, load)
    old, new = before.labels, after.labels
    assert set(np.unique(old[new == anatomy.WMH_LEFT])) <= {2}
    assert set(np.unique(old[new == anatomy.WMH_RIGHT])) <= {41}
    assert set(np.unique(old[new == anatomy.FLOW_VOID])) <= {24}
    assert (new == anatomy.LACUNE).sum() > 10
    assert not np.isin(old[np.isin(new, (anatomy.LACUNE, anatomy.LACUNE_RIM))], (3, 42, 4, 43, 24)).any()
    assert mimics.draw(np.random.default_rng(1), 45).spots == 0


def test_crops_agree_with_the_whole(made):
    protocol = contrast.Protocol((1.0, 1.0, 3.0), 3.0, snr=500, bias=0.0)
    look = scene.draw_look(np.random.default_rng(0), "T2w", strength=1.0)
    images, fraction, regions = made.crop(np.random.default_rng(2), [look, look], protocol, (40, 44, 9), near_tubes=1.0)
    assert images.shape == (2, 40, 44, 9) and images.dtype == np.float32
    assert fraction.max() > 0.05 and fraction.max() <= 1.001
    assert regions.shape == (40, 44, 9)
    inside = np.isin(regions, (3, 4))
    if (inside & (fraction > 0.5)).any():
        assert images[0][inside & (fraction > 0.5)].mean() > 1.3 * np.median(images[0][inside & (fraction == 0)])


def test_ideal_blocks_do_not_depend_on_the_chunk(made, monkeypatch):
    protocol = contrast.Protocol((1.0, 1.0, 4.0), 3.2, bias=0.0)
    look = scene.draw_look(np.random.default_rng(0), "T2w", strength=1.0)
    one = made.scan(np.random.default_rng(1), look, protocol)
    monkeypatch.setattr(scene, "_CHUNK", 1_000_000)
    np.testing.assert_allclose(made.scan(np.random.default_rng(1), look, protocol), one, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_lie_across_the_largest_voxels(made, axis):
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 4.0
    protocol = contrast.Protocol(tuple(spacing), 4.0, matrix=0.5, snr=1e6, bias=0.0)
    look = scene.draw_look(np.random.default_rng(0), "T2w", strength=1.0)
    scan = made.scan(np.random.default_rng(1), look, protocol)
    shape, _ = made.grid(spacing)
    assert scan.shape == shape
    ideal = made._ideal(look, replace(protocol, thickness=spacing[2]), np.zeros(3), shape)
    assert np.corrcoef(scan.ravel(), ideal.ravel())[0, 1] > 0.97
    kept = [np.diff(scan, axis=a).std() / np.diff(ideal, axis=a).std() for a in range(3)]
    assert kept[axis] > 0.9, "only within slices k-space is cut off"
    assert max(k for a, k in enumerate(kept) if a != axis) < 0.85, kept


def test_random_contrasts_keep_fluid_apart_from_white_matter(rng):
    for _ in range(50):
        means = contrast.draw_means(rng, contrast.RANDOM)
        assert min(means.values()) >= 0
        assert abs(means["CSF"] - means["WM"]) >= 149


@pytest.mark.parametrize("soft", [0.0, 0.3])
def test_averaging_weights_are_windows(soft):
    out = contrast.averaging(60, 0.5, np.array([10.0, 14.2]), 4.0, soft=soft)
    np.testing.assert_allclose(out.sum(axis=1), 1, atol=1e-5)
    centres = (np.arange(60) + 0.5) * 0.5
    np.testing.assert_allclose(out @ centres, [10.0, 14.2], atol=1e-4)
    assert (out >= -1e-7).all()
    assert np.count_nonzero(out[0] > 1e-6) <= 4.0 * (1 + soft) / 0.5 + 2


def test_gaps_between_slices_lose_what_lies_in_them():
    protocol = contrast.Protocol((0.5, 0.5, 6.0), 3.0)
    made = contrast.weights((8, 8, 48), 0.5, (8, 8, 4), protocol, np.zeros(3))
    block = np.zeros((8, 8, 48), np.float32)
    block[:, :, 11:13] = 1  # at 5.5-6.5 mm, between the first two slices
    assert contrast.average(block, made).max() < 0.05


def test_the_scanner_blurs_rings_and_ghosts(rng):
    image = np.zeros((64, 64, 2), np.float32)
    image[20:44, 20:44] = 100
    clean = contrast.through_scanner(image, rng, contrast.Protocol((1, 1, 1), 1.0), 1e-6)
    np.testing.assert_allclose(clean, image, atol=1e-2)
    cut = contrast.through_scanner(image, rng, contrast.Protocol((1, 1, 1), 1.0, matrix=0.5), 1e-6)
    assert cut.max() > 103 and np.abs(cut - image).max() > 20
    ghost = contrast.through_scanner(image, rng, contrast.Protocol((1, 1, 1), 1.0, ghost=0.02), 1e-6)
    assert ghost[32, 0].max() > 1.5 and clean[32, 0].max() < 0.1
    moved = contrast.through_scanner(image, rng, contrast.Protocol((1, 1, 1), 1.0, motion_mm=2.0), 1e-6)
    assert np.abs(moved - image).max() > 3


@pytest.mark.parametrize("matrix", [1.0, 0.6])
def test_noise_is_rician_at_the_stated_level(rng, matrix):
    protocol = contrast.Protocol((1, 1, 1), 1.0, matrix=matrix)
    quiet = contrast.through_scanner(np.zeros((60, 60, 20), np.float32), rng, protocol, 10.0)
    assert quiet.mean() == pytest.approx(10 * np.sqrt(np.pi / 2), rel=0.06)
    bright = contrast.through_scanner(np.full((60, 60, 20), 500, np.float32), rng, protocol, 10.0)
    assert bright.std() == pytest.approx(10, rel=0.06)


def test_noise_is_strongest_in_the_middle_of_the_head(made):
    protocol = contrast.Protocol((2.0, 2.0, 4.0), 4.0, snr=10.0, bias=0.0, depth=3.0)
    look = scene.draw_look(np.random.default_rng(0), "T2w", strength=1.0)
    even, deep = (
        made.scan(np.random.default_rng(1), look, replace(protocol, depth=d, snr=s))
        for d, s in ((1.0, 1e6), (protocol.depth, protocol.snr))
    )
    rest = (deep - even) / look.white
    _, affine = made.grid(protocol.spacing)
    at = np.linalg.inv(made.head.to_template @ affine)
    found = {}
    for name, mm in (("middle", contrast.MIDDLE_MM), ("white", (25.0, -20.0, 35.0)), ("front", (15.0, 45.0, 20.0))):
        i, j, k = np.rint((at @ [*mm, 1.0])[:3]).astype(int)
        found[name] = float(rest[i - 5 : i + 6, j - 5 : j + 6, k - 2 : k + 3].std())
    assert found["middle"] == pytest.approx(0.1 * 3**0.5, rel=0.15)
    assert found["middle"] > 1.5 * found["white"]
    assert found["front"] == pytest.approx(0.1 * 3**-0.4, rel=0.15)


def test_protocols_are_as_grainy_as_scans_are():
    drawn = [contrast.draw_protocol(np.random.default_rng(k), "mixed") for k in range(400)]
    snr = np.array([p.snr / (1.3 if p.tesla == 3.0 else 1.0) for p in drawn])
    assert contrast.SNR[0] - 0.1 <= snr.min() < 9 and 30 < snr.max() <= contrast.SNR[1] + 0.1
    assert np.median(snr) == pytest.approx(np.sqrt(np.prod(contrast.SNR)), rel=0.1)
    depth = np.array([p.depth for p in drawn])
    assert depth.min() >= 1 and depth.max() <= contrast.DEEPEST and np.median(depth) == pytest.approx(3**0.5, rel=0.1)


def test_coronal_and_sagittal_protocols_are_axial_ones_in_another_plane():
    axial = contrast.draw_protocol(np.random.default_rng(5), "clinical")
    side, _, distance = axial.spacing
    for kind, spacing in (("sagittal", (distance, side, side)), ("coronal", (side, distance, side))):
        drawn = contrast.draw_protocol(np.random.default_rng(5), kind)
        assert drawn == replace(axial, spacing=spacing)
        assert planes.kind(drawn.spacing) == "turned"


def test_tubes_are_bright_on_t2w_and_dark_on_t1w(rng):
    steps = {n: scene.draw_look(rng, n, strength=0.8).step for n in ("T2w", "T1w", "FLAIR")}
    assert steps["T2w"] > 300 and steps["T1w"] < -300 and -310 < steps["FLAIR"] < 0


def test_counts_follow_the_burden(rng):
    low = [tubes.sample_counts(rng, "low")["CentrumSemiovale"] for _ in range(200)]
    high = [tubes.sample_counts(rng, "high")["CentrumSemiovale"] for _ in range(200)]
    assert np.median(low) < 30 < 150 < np.median(high)
    assert 0.02 < np.mean(np.array(high) <= 2) < 0.25


def test_dataset_truth_matches_the_images(simulated):
    truth = simulated / "derivatives" / "truth" / "sub-01" / "anat"
    fraction = nib.load(truth / "sub-01_label-EPVS_probseg.nii.gz")
    table = pd.read_csv(truth / "sub-01_desc-truth_epvs.tsv", sep="\t")
    voxel = np.prod(fraction.header.get_zooms())
    assert fraction.get_fdata().sum() * voxel == pytest.approx(table["volume_mm3"].sum(), rel=0.03)
    image = nib.load(simulated / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    np.testing.assert_allclose(image.affine, fraction.affine)
    regions = np.asarray(nib.load(truth / "sub-01_seg-epvs_dseg.nii.gz").dataobj)
    filled = fraction.get_fdata() > 0.3
    white = (regions == 3) | (regions == 4)
    assert image.get_fdata()[filled & white].mean() > 1.3 * np.median(image.get_fdata()[white])
    meta = json.loads((simulated / "sub-01" / "anat" / "sub-01_T2w.json").read_text())
    assert meta["Simulated"] is True


def test_same_seed_same_files_whatever_the_number_of_processes(simulated, tmp_path):
    dataset.one_subject(replace(dataset_plan(tmp_path), subjects=9), 1)
    for old in sorted((simulated / "sub-02").rglob("*.*")):
        assert old.read_bytes() == (tmp_path / old.relative_to(simulated)).read_bytes()


def test_the_dataset_is_valid_bids_and_has_the_true_counts(simulated):
    program = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    for folder in (simulated, simulated / "derivatives" / "truth"):
        result = subprocess.run([program, str(folder), "--format", "json"], capture_output=True, text=True, check=False)
        issues = json.loads(result.stdout)["issues"]["issues"]
        assert [i for i in issues if i["severity"] == "error"] == []
    phenotype = pd.read_csv(simulated / "phenotype" / "epvs.tsv", sep="\t").set_index("participant_id")
    truth = simulated / "derivatives" / "truth" / "sub-02" / "anat" / "sub-02_desc-truth_epvs.tsv"
    regions = pd.read_csv(truth, sep="\t")["region"]
    assert phenotype.loc["sub-02", "truth_BasalGanglia_count"] == (regions == "BasalGanglia").sum()
    assert phenotype.loc["sub-02", "truth_CentrumSemiovale_rating"] in range(5)


def test_an_unreadable_label_map(tmp_path):
    path = tmp_path / "x_dseg.nii.gz"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match="not readable as an image"):
        anatomy.read_labelmap(path)


@pytest.mark.parametrize(
    "option", [["--snr", "30"], ["--spacing", "1", "1", "1"], ["--no-mimics"], ["--subjects", "2"]]
)
def test_what_describes_simulated_scans_is_refused_for_real_ones(tmp_path, capsys, option):
    assert dataset.main([str(tmp_path / "out"), "--implant", str(tmp_path), *option]) == 64
    assert f"{option[0]}: no effect with --implant" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_implanted_tubes_brighten_real_voxels_where_the_truth_says(simulated, tmp_path, monkeypatch):
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(simulated, raw, ignore=shutil.ignore_patterns("sub-02", "derivatives"))
    monkeypatch.chdir(tmp_path)
    assert dataset.main(["out", "--implant", "raw", "--burden", "mid", "--seed", "5"]) == 0
    old, new = (nib.load(p / "sub-01/anat/sub-01_T2w.nii.gz") for p in (raw, out))
    np.testing.assert_allclose(old.affine, new.affine)
    added = new.get_fdata() - old.get_fdata()
    fraction = nib.load(out / "derivatives/truth/sub-01/anat/sub-01_label-EPVS_probseg.nii.gz").get_fdata()
    assert (fraction > 0.2).sum() > 20
    assert np.corrcoef(added.ravel(), fraction.ravel())[0, 1] > 0.99
    assert added[fraction == 0].max() <= 0.5
    assert dataset.main([str(out), "--implant", str(raw)]) == 64


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (np.zeros((5, 5), np.int16), "3-D"),
        (np.full((5, 5, 5), 0.5, np.float32), "whole numbers"),
        (np.full((5, 5, 5), 2, np.int16), "missing: Right-Cerebral-White-Matter"),
    ],
)
def test_bad_label_maps(tmp_path, data, match):
    path = tmp_path / "x_dseg.nii.gz"
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    with pytest.raises(DataError, match=match):
        anatomy.read_labelmap(path)


def test_a_plan_says_voxels_and_noise(tmp_path):
    drawn = dataset._protocol(np.random.default_rng(1), dataset.Plan(tmp_path))
    made = dataset._protocol(np.random.default_rng(1), dataset.Plan(tmp_path, spacing=(1.0, 1.0, 2.0), snr=9.0))
    assert made == replace(drawn, spacing=(1.0, 1.0, 2.0), thickness=2.0, snr=9.0)
    assert dataset.sidecar(made)["Protocol"]["snr"] == 9.0
    coronal = dataset._protocol(np.random.default_rng(1), dataset.Plan(tmp_path, spacing=(0.5, 3.0, 0.5)))
    assert dataset.sidecar(coronal)["SliceThickness"] == dataset.sidecar(coronal)["SpacingBetweenSlices"] == 3.0


def test_command_line_errors(tmp_path, capsys):
    (tmp_path / "x").write_text("x")
    assert dataset.main([str(tmp_path)]) == 64
    assert dataset.main([str(tmp_path / "new"), "--subjects", "0"]) == 64
    assert dataset.main([str(tmp_path / "new"), "--seed", "-1"]) == 64
    assert dataset.main([str(tmp_path / "new"), "--spacing", "1", "1", "99"]) == 64
    assert dataset.main([str(tmp_path / "new"), "--snr", "0"]) == 64
    assert dataset.main([str(tmp_path / "new"), "--labelmaps", str(tmp_path)]) == 65
    assert not (tmp_path / "new").exists()
    assert "not empty" in capsys.readouterr().err


@pytest.mark.realdata
@pytest.mark.slow
def test_label_maps_of_real_heads(real_data):
    head = anatomy.read_labelmap(real_data / "labelmaps" / "sub-05_dseg.nii.gz")
    target, own = (
        anatomy.centroids(anatomy.average().labels, anatomy.average().affine),
        anatomy.centroids(head.labels, head.affine),
    )
    residual = [np.linalg.norm((head.to_template @ [*own[i], 1])[:3] - target[i]) for i in own]
    assert np.median(residual) < 4
