"""``bids_epvs-evaluate`` on a dataset small enough to count by hand."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_epvs.evaluate.command import main
from bids_epvs.prepare.regions import NAMES

SHAPE, AFFINE = (24, 20, 8), np.diag([-1.0, 1.0, 2.0, 1.0])


def image(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.astype(np.float32 if data.dtype.kind == "f" else np.uint8), affine), path)


def tube(data, value, x, y, z, length=5):
    data[x : x + length, y, z] = value


@pytest.fixture
def dataset(tmp_path):
    """Two subjects: three EPVS each, one of them hardly visible; ``good`` finds two, ``bad`` one wrong lesion."""
    for number in ("01", "02"):
        truth, out = (tmp_path / n / f"sub-{number}" / "anat" / f"sub-{number}" for n in ("truth", "out"))
        share, lesions, regions = np.zeros(SHAPE), np.zeros(SHAPE, int), np.full(SHAPE, 3)
        regions[12:] = 1
        for index, (x, y, z, amount) in enumerate([(2, 4, 2, 0.9), (14, 10, 4, 0.8), (2, 15, 6, 0.2)], start=1):
            tube(lesions, index, x, y, z)
            tube(share, amount, x, y, z)
        image(truth.with_name(truth.name + "_label-EPVS_probseg.nii.gz"), share)
        image(truth.with_name(truth.name + "_label-EPVS_mask.nii.gz"), (share >= 0.5).astype(int))
        image(truth.with_name(truth.name + "_label-EPVS_desc-instances_dseg.nii.gz"), lesions)
        image(truth.with_name(truth.name + "_seg-epvs_dseg.nii.gz"), regions)
        mimic = np.zeros(SHAPE, int)
        tube(mimic, 1, 15, 2, 1)
        image(truth.with_name(truth.name + "_desc-mimics_dseg.nii.gz"), mimic)
        rows = {"index": [1, 2, 3], "width_mean_mm": [0.9, 1.6, 0.5]}
        pd.DataFrame(rows).to_csv(f"{truth}_desc-truth_epvs.tsv", sep="\t", index=False)
        good, bad = np.zeros(SHAPE, int), np.zeros(SHAPE, int)
        tube(good, 1, 2, 4, 2)
        tube(good, 2, 14, 10, 4)
        tube(bad, 1, 15, 2, 1)
        for name, found in (("good", good), ("bad", bad)):
            image(out.with_name(f"{out.name}_label-EPVS_desc-{name}_mask.nii.gz"), (found > 0).astype(int))
        image(out.with_name(f"{out.name}_label-EPVS_desc-good_probseg.nii.gz"), (good > 0) * 0.9)
        noisy = 100 + 200 * share + np.random.default_rng(1).normal(0, 5, SHAPE)
        image(out.with_name(f"{out.name}_desc-preproc_T2w.nii.gz"), noisy)
    return tmp_path


def run(dataset, *options):
    return main([str(dataset / "truth"), str(dataset / "out"), str(dataset / "evaluation"), *options])


def read(dataset, name="evaluation"):
    return pd.read_csv(dataset / "evaluation" / f"{name}.tsv", sep="\t", na_values="n/a")


def test_tables_hold_what_was_put_in(dataset):
    assert run(dataset) == 0
    table = read(dataset).set_index(["part", "model", "region"])
    good, bad = table.loc[("all", "good", "all")], table.loc[("all", "bad", "all")]
    assert (good["n"], good["sensitivity"], good["precision"], good["f1"], good["dice"], good["auc"]) == (
        2,
        1,
        1,
        1,
        1,
        1,
    )
    assert (bad["sensitivity"], bad["precision"], bad["f1"], bad["dice"]) == (0, 0, 0, 0)
    assert np.isnan(bad["auc"])
    assert bad["bias_count"] == -1
    assert bad["bias_volume"] == -5 * 2
    assert table.loc[("all", "good", "BasalGanglia"), "sensitivity"] == 1
    assert table.loc[("all", "bad", "CentrumSemiovale"), "f1"] == 0
    sessions = read(dataset, "evaluation_sessions")
    assert sessions["contrast_to_noise"].between(15, 60).all()
    assert set(sessions["resolution"]) == {"thick"}
    assert set(sessions["mimics"]) == {"with"}
    classes = read(dataset, "evaluation_diameters").set_index(["model", "diameter_mm"])
    assert classes.loc[("good", "1.5 and more"), "sensitivity"] == 1
    assert classes.loc[("bad", "0.8-1"), "found"] == 0
    assert classes.loc[("good", "0-0.8"), "n"] == 0, "what hardly shows is not expected"


def test_probabilities_and_intervals_are_judged(dataset):
    summary = "model\tregion\themisphere\tcount_low\tcount_high\n"
    for region, low, high in (("CentrumSemiovale", 1, 2), ("BasalGanglia", 2, 4)):
        summary += f"good\t{region}\tboth\t{low}\t{high}\n"
    for region in NAMES[2:]:
        summary += f"good\t{region}\tboth\tn/a\tn/a\n"
    for number in ("01", "02"):
        (dataset / f"out/sub-{number}/anat/sub-{number}_desc-summary_epvs.tsv").write_text(summary)
    assert run(dataset) == 0
    table = read(dataset).set_index(["part", "model", "region"])
    assert table.loc[("all", "good", "CentrumSemiovale"), "interval_coverage"] == 1
    assert table.loc[("all", "good", "BasalGanglia"), "interval_coverage"] == 0
    assert np.isnan(table.loc[("all", "bad", "BasalGanglia"), "interval_coverage"])
    bins = read(dataset, "evaluation_reliability")
    assert set(bins["model"]) == {"good"}
    high = bins.set_index("bin").loc[9]
    assert (high["n"], high["predicted"]) == (2 * 10, pytest.approx(0.9, abs=1e-4))
    assert high["observed"] == pytest.approx(0.85, abs=1e-4)
    gaps = 10 * (0.9 - 0.85) + 5 * 0.2  # what was found, and the EPVS that hardly shows
    assert table.loc[("all", "good", "all"), "ece"] == pytest.approx(gaps / np.prod(SHAPE), abs=1e-4)
    out = dataset / "out/sub-01/anat/sub-01_label-EPVS_desc-good_probseg.json"
    out.write_text('{"Calibrated": false}')
    assert run(dataset) == 0
    assert read(dataset, "evaluation_reliability")["n"].sum() == np.prod(SHAPE), "one session claims no probability"


def test_the_page_says_that_truth_was_simulated_and_what_misled(dataset):
    assert run(dataset, "--nprocs", "2") == 0
    page = (dataset / "evaluation" / "evaluation.html").read_text()
    assert "The truth was simulated" in page
    assert "bad: 2 of 2 wrong lesions lie on a simulated lesion or vessel" in page
    assert page.count("<svg") == 5
    assert "<script src" not in page and '<img src="http' not in page


def test_a_manual_mask_alone_is_truth_enough(dataset):
    for path in dataset.glob("truth/**/*"):
        if path.is_file() and not path.name.endswith("_label-EPVS_mask.nii.gz") and "seg-epvs" not in path.name:
            path.unlink()
    assert run(dataset, "--models", "good", "--participant-label", "sub-02") == 0
    table = read(dataset)
    assert set(table["model"]) == {"good"}
    assert table["n"].max() == 1
    assert "The truth was simulated" not in (dataset / "evaluation" / "evaluation.html").read_text()


def test_what_cannot_be_compared_is_refused(dataset, capsys):
    assert run(dataset, "--models", "perfect") == 64
    assert "no results of perfect. There are: bad, good" in capsys.readouterr().err
    assert run(dataset, "--participant-label", "99") == 66
    image(dataset / "out/sub-01/anat/sub-01_label-EPVS_desc-good_mask.nii.gz", np.zeros((24, 20, 9), int))
    assert run(dataset) == 65
    assert "another grid" in capsys.readouterr().err
    for path in dataset.glob("truth/**/*_seg-epvs_dseg.nii.gz"):
        path.unlink()
    assert run(dataset, "--models", "bad") == 65
    assert "seg-epvs_dseg.nii.gz: missing" in capsys.readouterr().err
    for path in dataset.glob("out/**/*_mask.nii.gz"):
        path.unlink()
    assert run(dataset) == 66
    assert "run the participant level first" in capsys.readouterr().err


def test_the_grid_may_be_stored_in_any_order(dataset):
    run(dataset)
    before = read(dataset)
    for path in dataset.glob("out/**/*.nii.gz"):
        stored = nib.load(path)
        turned = stored.as_reoriented(nib.orientations.axcodes2ornt("SRA"))
        nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), path)
    run(dataset)
    pd.testing.assert_frame_equal(before, read(dataset))


def summarised(dataset):
    """Truth of 3 and 12 EPVS, grades 1 and 2; ``cnn`` is near, ``rating2d`` right, ``resnet152`` unsure."""
    keys = ("model", "region", "hemisphere", "count", "count_low", "count_high", "rating", "rating_scale")
    for number, count, grade, said in (("01", 3, 1, 2.5), ("02", 12, 2, 11.2)):
        for kind in ("truth", "out"):
            path = dataset / kind / f"sub-{number}" / "anat" / f"sub-{number}_desc-summary_epvs.tsv"
            rows = [("truth", "BasalGanglia", "both", count, None, None, grade, "Potter")]
            if kind == "out":
                rows = [
                    ("cnn", "BasalGanglia", "both", said, said - 1, said + 0.7, None, None),
                    ("rating2d", "BasalGanglia", "both", None, None, None, grade, "Potter"),
                    ("resnet152", "BasalGanglia", "both", None, None, None, grade - 1, "Severity"),
                ]
            table = pd.DataFrame([dict(zip(keys, r, strict=True)) for r in rows])
            for k in range(5):
                table[f"p_{k}"] = [float("nan")] * len(rows)
            if kind == "out":
                table.loc[table["model"] == "rating2d", [f"p_{k}" for k in range(5)]] = np.eye(5)[grade]
                table.loc[table["model"] == "resnet152", ["p_0", "p_1"]] = (0.4, 0.6) if grade == 2 else (0.7, 0.3)
            table.to_csv(path, sep="\t", index=False, na_rep="n/a")


def test_methods_that_only_count_or_rate_are_judged(dataset):
    summarised(dataset)
    assert run(dataset) == 0
    counts = read(dataset, "evaluation_counts").set_index("model")
    assert counts.loc["cnn", "mae"] == pytest.approx(0.65)
    assert counts.loc["cnn", "bias"] == pytest.approx(-0.65)
    assert counts.loc["cnn", "coverage"] == 0.5
    assert set(counts.index) == {"cnn"}
    grades = read(dataset, "evaluation_grades").set_index("model")
    assert (grades.loc["rating2d", "accuracy"], grades.loc["rating2d", "rps"]) == (1, 0)
    severe = read(dataset, "evaluation_severity").set_index("model")
    assert severe.loc["resnet152", "auc"] == severe.loc["resnet152", "accuracy"] == 1
    assert severe.loc["resnet152", "brier"] == pytest.approx((0.3**2 + 0.4**2) / 2)
    assert severe.loc["resnet152", "ece"] == pytest.approx((0.3 + 0.4) / 2)
    assert severe.loc["rating2d", "sensitivity"] == 1 and grades.loc["rating2d", "ece"] == 0
    bins = read(dataset, "evaluation_calibration").set_index(["model", "bin"])
    assert bins.loc[("resnet152", "0.2-0.4"), ["n", "predicted", "observed"]].tolist() == pytest.approx([1, 0.3, 0])
    assert bins.loc[("resnet152", "0.6-0.8"), ["n", "predicted", "observed"]].tolist() == pytest.approx([1, 0.6, 1])
    page = (dataset / "evaluation" / "evaluation.html").read_text()
    assert "Counts by region" in page and "None or mild against moderate to severe" in page
    hits = read(dataset, "evaluation_hits").set_index(["model", "region"])
    assert hits.loc[("good", "CentrumSemiovale"), "hit_at_1.5"] == 1
    assert hits.loc[("bad", "CentrumSemiovale"), "hit_at_10"] == 0
    assert run(dataset, "--models", "cnn") == 0, "without any mask"
    assert run(dataset, "--models", "none") == 64


def test_volumes_are_compared_with_what_epvs_fill(dataset):
    """5.5 voxels of 2 mm3 in the centrum semiovale, 4 in the basal ganglia; masks are 2 and 4 mm3 larger or smaller."""
    for number, error in (("01", 2.0), ("02", -4.0)):
        for kind in ("truth", "out"):
            said = [
                ("unet", "CentrumSemiovale", 11 + error, 10.5),
                ("frangi", "BasalGanglia", 8 + error, np.nan),
            ]
            table = pd.DataFrame(said, columns=["model", "region", "volume_mm3", "volume_expected_mm3"])
            table = table.assign(hemisphere="both", count=1, count_low=np.nan, count_high=np.nan, rating=np.nan)
            table = table.assign(rating_scale="Potter", **{f"p_{k}": np.nan for k in range(5)})
            path = dataset / kind / f"sub-{number}" / "anat" / f"sub-{number}_desc-summary_epvs.tsv"
            table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    assert run(dataset, "--models", "unet", "frangi") == 0
    found = read(dataset, "evaluation_volumes").set_index(["measure", "model", "region"])
    assert len(found) == 3, "frangi expects no volume"
    mask = found.loc[("mask", "unet", "CentrumSemiovale")]
    assert mask[["n", "mean_truth", "mean_found", "mae", "bias"]].tolist() == pytest.approx([2, 11, 10, 3, -1])
    assert found.loc[("expected", "unet", "CentrumSemiovale"), "mae"] == pytest.approx(0.5)
    assert found.loc[("mask", "frangi", "BasalGanglia"), "mean_truth"] == pytest.approx(8)
    assert "Volumes by region" in (dataset / "evaluation" / "evaluation.html").read_text()
    for path in dataset.glob("truth/**/*_probseg.nii.gz"):
        path.unlink()
    assert run(dataset, "--models", "unet") == 0
    assert read(dataset, "evaluation_volumes")["mean_truth"].tolist() == pytest.approx([10, 10]), "of the mask"


def test_counts_are_compared_with_what_can_be_seen_too(dataset):
    """Of the two EPVS drawn in each region one hardly shows; ``sharp`` counts both, ``fair`` what shows."""
    counted = {
        "01": ({"CentrumSemiovale": 1, "BasalGanglia": 1}, 2),
        "02": ({"CentrumSemiovale": 2, "BasalGanglia": 0}, 3),
    }
    for number, (shown, hidden) in counted.items():
        stem = dataset / "truth" / f"sub-{number}" / "anat" / f"sub-{number}"
        share, lesions = np.zeros(SHAPE), np.zeros(SHAPE, int)
        rows, index = [], 0
        for amount, number_of in ((0.9, shown), (0.2, dict.fromkeys(shown, hidden))):
            for region, n in number_of.items():
                for _ in range(n):
                    index += 1
                    tube(lesions, index, 14 if region == "BasalGanglia" else 2, index, 4)
                    tube(share, amount, 14 if region == "BasalGanglia" else 2, index, 4)
                    rows.append({"index": index, "width_mean_mm": 1.0, "region": region})
        image(stem.with_name(stem.name + "_label-EPVS_probseg.nii.gz"), share)
        image(stem.with_name(stem.name + "_label-EPVS_desc-instances_dseg.nii.gz"), lesions)
        pd.DataFrame(rows).to_csv(f"{stem}_desc-truth_epvs.tsv", sep="\t", index=False)
        answers = [
            {"model": model, "region": region, "hemisphere": "both", "count": n + more}
            for model, more in (("sharp", hidden), ("fair", 0))
            for region, n in shown.items()
        ]
        table = pd.DataFrame(answers).assign(count_low=np.nan, count_high=np.nan, rating=np.nan, rating_scale="Potter")
        table = table.assign(**{f"p_{k}": np.nan for k in range(5)})
        out = dataset / "out" / f"sub-{number}" / "anat" / f"sub-{number}_desc-summary_epvs.tsv"
        table.to_csv(out, sep="\t", index=False, na_rep="n/a")
    assert run(dataset) == 0
    counts = read(dataset, "evaluation_counts").set_index(["truth", "model", "region"])
    for region in ("CentrumSemiovale", "BasalGanglia"):
        assert counts.loc[("visible", "fair", region), "mae"] == counts.loc[("all", "sharp", region), "mae"] == 0
        assert counts.loc[("visible", "sharp", region), "bias"] == 2.5
        assert counts.loc[("all", "fair", region), "bias"] == -2.5
    rows = read(dataset, "evaluation_numbers").set_index(["label", "model", "region"])
    assert rows.loc[("sub-02", "fair", "BasalGanglia"), "count_visible"] == 0
    assert "visible" in (dataset / "evaluation" / "evaluation.html").read_text()
    for path in dataset.glob("truth/**/*_desc-truth_epvs.tsv"):
        path.unlink()
    assert run(dataset) == 0
    assert set(read(dataset, "evaluation_counts")["truth"]) == {"all"}, "nobody says where each EPVS is"


def test_peaks_of_a_map_are_ranked(dataset):
    for number in ("01", "02"):
        stem = dataset / "out" / f"sub-{number}" / "anat" / f"sub-{number}"
        values = np.zeros(SHAPE)
        values[4, 4, 2], values[16, 10, 4], values[15, 2, 1] = 0.9, 0.5, 0.7  # right, right, wrong
        image(stem.with_name(f"{stem.name}_desc-gpunet_saliency.nii.gz"), values)
        image(stem.with_name(f"{stem.name}_label-EPVS_desc-gpunet_mask.nii.gz"), (values > 0).astype(int))
    assert run(dataset, "--models", "gpunet") == 0
    hits = read(dataset, "evaluation_hits").set_index("region")
    assert hits.loc["CentrumSemiovale", "hit_at_0.5"] == 1
    assert hits.loc["BasalGanglia", "hit_at_0.5"] == 0, "the wrong peak of each image is stronger"
    assert hits.loc["BasalGanglia", "hit_at_1"] == 1
    assert hits.loc["BasalGanglia", "epvs"] == 2


def test_a_method_is_not_judged_where_it_says_nothing(dataset):
    summarised(dataset)
    for number in ("01", "02"):
        path = dataset / "out" / f"sub-{number}" / "anat" / f"sub-{number}_desc-summary_epvs.tsv"
        path.write_text(path.read_text().replace("cnn", "good"))
    assert run(dataset) == 0
    table = read(dataset)
    assert set(table.loc[table["model"] == "good", "region"]) == {"BasalGanglia"}
    assert "all" in set(table.loc[table["model"] == "bad", "region"])
    hits = read(dataset, "evaluation_hits")
    assert set(hits.loc[hits["model"] == "good", "region"]) == {"BasalGanglia"}
