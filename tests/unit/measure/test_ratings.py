import numpy as np
import pandas as pd
import pytest

from bids_epvs.measure import ratings
from bids_epvs.measure.ratings import potter, shown, slice_counts
from bids_epvs.prepare.regions import REGIONS
from bids_epvs.records import Finding

LEFT = ("CentrumSemiovale", "Left")


def test_potter_limits():
    assert [potter(n, "CentrumSemiovale") for n in (0, 1, 10, 11, 20, 21, 40, 41)] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert [potter(n, "Midbrain") for n in (0, 1, 5)] == [0, 1, 1]
    assert potter(5, "Hippocampus") is None


def test_slices_count_instances_not_voxels():
    labels = np.zeros((5, 6, 4), np.int32)
    labels[1, 1, 1:3] = 1
    labels[3:5, 3, 2] = 2
    assert slice_counts(shown(labels), np.array([1, 2]), 4).tolist() == [0, 1, 2, 0]
    assert slice_counts(shown(labels), np.array([2]), 4).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_a_slab_shows_whatever_its_planes_show(depth, rng):
    labels = rng.integers(0, 40, (3, 4, 12)) * (rng.random((3, 4, 12)) < 0.3)
    every = shown(labels, depth)
    assert len(every) == len(np.unique(every, axis=0)), "no EPVS counts twice"
    for middle in range(12):
        planes = labels[:, :, ratings.within(middle, depth, 12)]
        assert set(every[every[:, 1] == middle, 0]) == set(planes[planes > 0])


def test_grades_of_coronal_slices_are_those_of_axial_ones_of_the_same_brain():
    height = np.arange(24) / 2 + 0.2  # mm, an EPVS on each; axial slices of 4 mm show eight, planes of 0.5 mm one
    graded = {}
    for name, spacing in {"axial": (0.5, 0.5, 4.0), "coronal": (0.5, 4.0, 0.5)}.items():
        shape = (60, round(60 / spacing[1]), round(12 / spacing[2]))
        labels = np.zeros(shape, np.int32)
        for k, z in enumerate(height):
            labels[2 * k + 1, shape[1] // 2, int(z / spacing[2])] = k + 1
        rows = [
            {"index": k + 1, "region": "CentrumSemiovale", "hemisphere": "left", "volume_mm3": 1.0} for k in range(24)
        ]
        table = ratings.summarise(
            pd.DataFrame(rows),
            labels,
            np.full(shape, next(k for k, r in REGIONS.items() if (r.name, r.side) == LEFT), np.uint8),
            voxel_mm3=1.0,
            slices={"adams_cso": round(6.2 / spacing[2] - 0.5)},
            names=["CentrumSemiovale"],
            depth=ratings.slab(spacing),
        )
        graded[name] = table.set_index("hemisphere").loc["left", ["count", "rating", "slice_count", "adams_count"]]
    assert graded["axial"].tolist() == graded["coronal"].tolist() == [24, 1, 8, 8]


def test_intervals_and_grades_from_what_is_known_of_a_method(rng):
    labels = np.zeros((40, 40, 6), np.int32)
    rows = []
    for n in range(1, 31):
        side = "left" if n % 3 else "right"
        labels[n % 40, n, n % 2] = n
        rows.append({"index": n, "region": "BasalGanglia", "hemisphere": side, "volume_mm3": 2.0, "probability": 0.6})
    regions = np.full(labels.shape, 1, np.uint8)
    regions[:20] = 2
    common = {"voxel_mm3": 1.0, "slices": {}, "names": ["BasalGanglia"]}
    perfect = ratings.Certainty(0.0, 50.0, 0.0)
    found = ratings.summarise(pd.DataFrame(rows), labels, regions, **common, certainty=perfect).set_index("hemisphere")
    for side, count in {"left": 20, "right": 10, "both": 30}.items():
        assert tuple(found.loc[side, ["count", "count_low", "count_high"]]) == (count,) * 3
        assert found.loc[side, f"p_{found.loc[side, 'rating']}"] == 1
    doubtful = ratings.Certainty(1.0, 0.0, 0.3)
    found = ratings.summarise(pd.DataFrame(rows), labels, regions, **common, certainty=doubtful).set_index("hemisphere")
    for side in ("left", "right", "both"):
        row = found.loc[side]
        true = rng.binomial(int(row["count"]), 0.6, 4000) + rng.poisson(0.3 * 0.6 * row["count"], 4000)
        assert 0.86 < np.mean((row["count_low"] <= true) & (true <= row["count_high"])) < 0.99
        assert row[[f"p_{k}" for k in range(5)]].sum() == pytest.approx(1, abs=1e-3)
    both, left, right = (
        found.loc[s, [f"p_{k}" for k in range(5)]].to_numpy(float).cumsum() for s in ("both", "left", "right")
    )
    assert both == pytest.approx(left * right, abs=1e-3), "the higher of two independent grades"
    plain = ratings.summarise(pd.DataFrame(rows), labels, regions, **common)
    assert plain[["count_low", "p_0"]].isna().all().all()


def test_the_expected_volume_holds_what_a_mask_leaves_out():
    labels, regions = np.zeros((8, 8, 3), np.int32), np.full((8, 8, 3), 1, np.uint8)
    regions[:4] = 2
    labels[1, 1:4, 1] = 1
    share = np.zeros(labels.shape, np.float32)
    share[1, 1:4, 1], share[1, 1:4, 2], share[6, 6, 0] = 0.75, 0.25, 0.1
    lesion = {"index": 1, "region": "BasalGanglia", "hemisphere": "right", "volume_mm3": 6.0, "probability": 0.75}
    common = {"voxel_mm3": 2.0, "slices": {}, "names": ["BasalGanglia", "Hippocampus"]}
    found = ratings.summarise(pd.DataFrame([lesion]), labels, regions, **common, share=share)
    expected = found.set_index(["region", "hemisphere"])["volume_expected_mm3"]
    assert expected["BasalGanglia"].to_dict() == pytest.approx({"left": 0.2, "right": 6.0, "both": 6.2})
    assert expected["Hippocampus"].isna().all(), "the scan does not show it"
    regions[:, 1] = 0
    found = ratings.summarise(pd.DataFrame([lesion]), labels, regions, **common, share=share)
    expected = found.set_index(["region", "hemisphere"])["volume_expected_mm3"]
    assert expected["BasalGanglia"].to_dict() == pytest.approx({"left": 0.2, "right": 5.5, "both": 5.7}), (
        "the EPVS where it runs on in no region, not what is faint there"
    )
    plain = ratings.summarise(pd.DataFrame([lesion]), labels, regions, **common)
    assert plain["volume_expected_mm3"].isna().all()


def test_findings_of_a_method_take_the_place_of_its_marks():
    names = ["BasalGanglia", "Hippocampus", "Midbrain"]
    sides = [(n, s) for n in names for s in ("left", "right", "both")]
    summary = pd.DataFrame(
        [{"model": "m", "region": n, "hemisphere": s, "count": 99, "rating": 4, "slice": 7} for n, s in sides],
    ).reindex(columns=ratings.SUMMARY_COLUMNS)
    summary["region_volume_mm3"], summary["slice_count"] = 100.0, 5.0
    found = ratings.from_findings(
        [
            Finding("BasalGanglia", "both", 12.3, 8, 17),
            Finding("Hippocampus", "left", 2.0),
            Finding("Midbrain", "both", 0.4),
            Finding("Midbrain", "left", 0.6),
        ],
        "m",
    )
    out = ratings.merged(summary, found, marks=True).set_index(["region", "hemisphere"])
    assert list(ratings.merged(summary, found, marks=True).columns) == ratings.SUMMARY_COLUMNS
    basal = out.loc[("BasalGanglia", "both")]
    assert (basal["count"], basal["count_low"], basal["count_high"], basal["slice"]) == (12.3, 8, 17, 7)
    assert np.isnan(basal["rating"]) and np.isnan(basal["adams_count"])
    assert np.isnan(out.loc[("BasalGanglia", "left"), "count"])
    assert out.loc[("Hippocampus", "left"), "adams_count"] == 2
    assert out.loc[("Midbrain", "both"), "rating"] == 0 and out.loc[("Midbrain", "left"), "rating"] == 1
    assert out.loc[("Midbrain", "left"), "rating_scale"] == "Potter"
    assert np.isnan(ratings.merged(summary, found, marks=False)["slice_count"]).all()


def test_a_grade_and_its_chances_come_through():
    summary = pd.DataFrame([{"model": "m", "region": "BasalGanglia", "hemisphere": "both", "region_volume_mm3": 9.0}])
    summary = summary.reindex(columns=ratings.SUMMARY_COLUMNS)
    given = Finding("BasalGanglia", "both", rating=2, scale="Potter", chances=(0.1, 0.2, 0.4, 0.2, 0.1), slice=8)
    row = ratings.merged(summary, ratings.from_findings([given], "m"), marks=False).iloc[0]
    assert (row["rating"], row["rating_scale"], row["p_2"], row["slice"]) == (2, "Potter", 0.4, 8)
    assert np.isnan(row["count"])
