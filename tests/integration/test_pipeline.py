"""The app from files to reports, on simulated heads and (where they are) real scans."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from distributed import LocalCluster
from scipy import ndimage

from bids_epvs import pipeline
from bids_epvs.cli import main, run, settings_from
from bids_epvs.derivatives import paths
from bids_epvs.errors import UsageError
from bids_epvs.measure.ratings import shown, slice_counts
from bids_epvs.models import default, load
from bids_epvs.prepare.regions import NAMES, indices

MODELS = default()
WRITES = {name: load(name).outputs for name in MODELS}
MARKING = [name for name in MODELS if "mask" in WRITES[name]]
"""Methods that mark EPVS."""
SOME = ("unet", "frangi")
"""One with and one without a network, where what all methods are given is tested."""
KINDS = {
    "mask": "label-EPVS_desc-{}_mask.nii.gz",
    "probability": "label-EPVS_desc-{}_probseg.nii.gz",
    "instances": "label-EPVS_desc-{}instances_dseg.nii.gz",
    "saliency": "desc-{}_saliency.nii.gz",
    "findings": "desc-{}_epvs.tsv",
}


def go(source, out, *options, level="participant"):
    return run(settings_from([str(source), str(out), level, "-q", *map(str, options)]))


def digests(root: Path, *, reports: bool = True) -> dict[str, str]:
    """Content of everything a run leaves, logs aside."""
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(content(p)).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file() and "logs" not in p.relative_to(root).parts and (reports or p.suffix != ".html")
    }


def content(path: Path) -> bytes:
    """Bytes of a file, of a description but the way to the raw data, which differs from folder to folder."""
    if path.name != "dataset_description.json":
        return path.read_bytes()
    told = json.loads(path.read_text())
    link = told.pop("DatasetLinks")["raw"]
    assert told.pop("SourceDatasets") == [{"URL": link}]
    return json.dumps(told).encode()


def copy_subject(source, target, subject="01"):
    target.mkdir()
    for item in source.iterdir():
        if item.is_file():
            shutil.copy(item, target)
    shutil.copytree(source / f"sub-{subject}", target / f"sub-{subject}")
    return target


def test_every_promised_file_is_there(finished):
    expected = {
        *(
            "dataset_description.json",
            "README",
            ".bidsignore",
            "CITATION.bib",
            "group_epvs.tsv",
            "group_epvs.json",
            "group.html",
            "group_epvs_long.tsv",
            "group_qc.tsv",
        ),
        *("sub-01.html", "sub-02.html"),
        *(f"group_{name}.tsv" for name in ("descriptives", "agreement", "repeatability", "associations")),
        *(f"group_space-MNI152NLin2009aSym_desc-{m}_frequency.nii.gz" for m in MARKING),
    }
    assert expected <= {p.name for p in finished.iterdir()}
    folder = finished / "sub-01" / "anat"
    for stem in (
        *("desc-preproc_T2w.nii.gz", "desc-brain_mask.nii.gz", "seg-epvs_dseg.nii.gz", "seg-epvs_dseg.tsv"),
        *("desc-lesions_epvs.tsv", "desc-lesions_epvs.json", "desc-summary_epvs.tsv", "desc-summary_epvs.json"),
        "from-T2w_to-MNI152NLin2009aSym_mode-image_xfm.h5",
        *(KINDS[kind].format(m) for m in MODELS for kind in WRITES[m]),
    ):
        assert (folder / f"sub-01_{stem}").is_file(), stem
    assert not list(finished.rglob(".epvs-tmp*"))


def test_every_image_has_sources_that_exist(finished, simulated):
    description = json.loads((finished / "dataset_description.json").read_text())
    roots = {"": finished, "raw": (finished / description["DatasetLinks"]["raw"]).resolve()}
    assert roots["raw"] == simulated.resolve()
    images = list(finished.rglob("*.nii.gz"))
    written = sum(kind != "findings" for m in MODELS for kind in WRITES[m])
    assert len(images) == 2 * (4 + written) + 2 * len(MARKING)  # of each session, and frequency maps
    for image in images:
        for uri in json.loads(paths.sidecar(image).read_text())["Sources"]:
            _, link, name = uri.split(":", 2)
            assert (roots[link] / name).is_file(), uri


def test_results_lie_on_the_grid_of_the_t2w(finished, simulated):
    raw = nib.load(simulated / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    for image in (finished / "sub-01").rglob("*.nii.gz"):
        found = nib.load(image)
        assert found.shape == raw.shape
        np.testing.assert_allclose(found.affine, raw.affine, atol=1e-5)


def test_tables_agree_with_images(finished):
    base = finished / "sub-01" / "anat"
    for model in MARKING:
        labels = nib.load(base / f"sub-01_label-EPVS_desc-{model}instances_dseg.nii.gz")
        data = np.asarray(labels.dataobj)
        lesions = pd.read_csv(base / "sub-01_desc-lesions_epvs.tsv", sep="\t").query("model == @model")
        summary = pd.read_csv(base / "sub-01_desc-summary_epvs.tsv", sep="\t").query("model == @model")
        assert lesions["index"].tolist() == list(range(1, data.max() + 1))
        voxel = float(np.prod(labels.header.get_zooms()))
        np.testing.assert_allclose(lesions["volume_mm3"], np.bincount(data.ravel())[1:] * voxel, rtol=1e-3)
        both = summary.query("hemisphere == 'both'")
        assert both["region"].tolist() == [n for n in NAMES if n in load(model).regions]
        if "findings" in WRITES[model]:  # rounded in each region and hemisphere
            assert both["count"].sum() == pytest.approx(len(lesions), abs=4)
        else:
            assert both["count"].sum() == len(lesions) > 0
        if load(model).calibrated:
            share = np.asarray(nib.load(base / f"sub-01_{KINDS['probability'].format(model)}").dataobj)
            inside = np.asarray(nib.load(base / "sub-01_seg-epvs_dseg.nii.gz").dataobj)
            assert (data[inside == 0] > 0).any(), "some EPVS run on where no region is"
            assert not share[(inside == 0) & (data == 0)].any()
            for row in both.itertuples():
                own = share[np.isin(inside, indices(row.region))].sum(dtype=float) * voxel
                begun = lesions.query("region == @row.region")["index"]
                own += share[(inside == 0) & np.isin(data, begun)].sum(dtype=float) * voxel
                assert row.volume_expected_mm3 == pytest.approx(own, abs=0.01)
        else:
            assert both["volume_expected_mm3"].isna().all()
        for _, row in lesions.iterrows():
            i, j, k = np.rint([row.i, row.j, row.k]).astype(int)
            near = data[max(0, i - 4) : i + 5, max(0, j - 4) : j + 5, max(0, k - 1) : k + 2]
            assert (near == row["index"]).any()
            world = labels.affine @ [row.i, row.j, row.k, 1]
            np.testing.assert_allclose(world[:3], [row.x_mm, row.y_mm, row.z_mm], atol=0.02)
        names = pd.read_csv(base / "sub-01_seg-epvs_dseg.tsv", sep="\t")
        assert names["name"].tolist()[:2] == ["LeftBasalGanglia", "RightBasalGanglia"]


def test_numbers_of_regions_agree_with_their_tables(finished):
    base = finished / "sub-01" / "anat"
    summary = pd.read_csv(base / "sub-01_desc-summary_epvs.tsv", sep="\t").set_index(["model", "region", "hemisphere"])
    for model in (m for m in MODELS if "findings" in WRITES[m]):
        found = pd.read_csv(base / f"sub-01_desc-{model}_epvs.tsv", sep="\t")
        assert len(found)
        for _, row in found.iterrows():
            told = summary.loc[(model, row["region"], row["hemisphere"])]
            for column in ("count", "p_0", "p_1"):
                assert told[column] == row[column] or (np.isnan(told[column]) and np.isnan(row[column]))
            if not np.isnan(row["count"]):
                assert told["count_low"] <= row["count_low"] and told["count_high"] >= row["count_high"]
                assert row["count_low"] <= row["count"] + 0.5 and row["count"] <= row["count_high"] + 0.5
        if found["rating"].notna().any():
            assert found["p_0"].notna().any()


def test_attention_sums_to_the_count(finished):
    base = finished / "sub-01" / "anat"
    attention = nib.load(base / "sub-01_desc-gpunet_saliency.nii.gz")
    voxel = float(np.prod(attention.header.get_zooms()))
    told = pd.read_csv(base / "sub-01_desc-gpunet_epvs.tsv", sep="\t").query("hemisphere == 'both'")
    total = float(np.asarray(attention.dataobj, np.float64).sum() * voxel)
    assert total == pytest.approx(told["count"].sum(), rel=0.05, abs=1)


def test_ratings_and_severity_come_through(finished, simulated, quick, tmp_path):
    """With random weights: what matters is that every answer reaches tables, maps and page."""
    from bids_epvs.models import rating2d, resnet152, weights

    out, small = tmp_path / "out", {"depth": 50, "width": 2, "stride_z": 1}
    shutil.copytree(finished, out)
    weights.save(rating2d.build((2, 2, 2, 2, 2)), tmp_path / "rating2d.npz", {"widths": (2, 2, 2, 2, 2)})
    weights.save(resnet152.build(**small), tmp_path / "resnet152.npz", small)
    names = ("--models", "frangi", "rating2d", "resnet152", "--weights-dir", tmp_path, "--participant-label", "01")
    assert go(simulated, out, "--config-file", quick, "--skip-bids-validation", *names) == 0
    base = out / "sub-01" / "anat"
    summary = pd.read_csv(base / "sub-01_desc-summary_epvs.tsv", sep="\t").set_index(["model", "region", "hemisphere"])
    grade = summary.loc[("rating2d", "BasalGanglia", "both")]
    sides = [summary.loc[("rating2d", "BasalGanglia", side), "rating"] for side in ("left", "right")]
    assert grade["rating"] == max(sides) and grade["rating_scale"] == "Potter"
    assert sum(grade[f"p_{k}"] for k in range(5)) == pytest.approx(1, abs=1e-3)
    severe = summary.loc[("resnet152", "BasalGanglia", "both")]
    assert severe["rating_scale"] == "Severity" and severe["rating"] == (severe["p_1"] >= 0.5)
    assert np.isnan(summary.loc[("resnet152", "BasalGanglia", "left"), "rating"])
    found = nib.load(base / "sub-01_desc-resnet152_saliency.nii.gz")
    brain = np.asarray(nib.load(base / "sub-01_desc-brain_mask.nii.gz").dataobj) > 0
    assert not np.asarray(found.dataobj)[~brain].any()
    about = json.loads((base / "sub-01_desc-resnet152_epvs.json").read_text())["Parameters"]
    assert sum(about["Histogram"]) > 0 and 0 <= about["FractionAbove7"] <= 1
    words = " ".join(Page((out / "sub-01.html").read_text()).words)
    assert "Images that rating2d graded" in words and ("none or mild" in words or "moderate to severe" in words)
    assert ("Where resnet152 looked" in words) == bool(np.asarray(found.dataobj).any())


def test_methods_without_weights_are_refused_at_once(simulated, tmp_path, capsys, monkeypatch):
    spec = load("resnet152")
    none = replace(spec, weights=replace(spec.weights, sha256=""))
    monkeypatch.setattr(pipeline, "load", lambda name: none)
    with pytest.raises(SystemExit) as end:
        main([str(simulated), str(tmp_path / "out"), "participant", "--models", "resnet152"])
    assert end.value.code == 64
    assert "bids_epvs-train resnet152" in capsys.readouterr().err


def test_regions_agree_with_the_truth(finished, simulated):
    for subject in ("01", "02"):
        found = np.asarray(nib.load(finished / f"sub-{subject}/anat/sub-{subject}_seg-epvs_dseg.nii.gz").dataobj)
        truth = simulated / f"derivatives/truth/sub-{subject}/anat/sub-{subject}_seg-epvs_dseg.nii.gz"
        true = np.asarray(nib.load(truth).dataobj)
        for index, least in ((1, 0.65), (2, 0.65), (3, 0.7), (4, 0.7), (9, 0.5), (10, 0.5)):
            a, b = found == index, true == index
            assert 2 * (a & b).sum() / (a.sum() + b.sum()) > least, (subject, index)


def test_bids_validator_reports_no_errors(finished):
    program = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    result = subprocess.run([program, str(finished), "--format", "json"], capture_output=True, text=True, check=False)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []


def test_a_second_run_computes_nothing(finished, simulated, quick, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in (finished / "sub-01").rglob("*") if p.is_file()}
    assert before
    monkeypatch.setattr("bids_epvs.prepare.session.prepare", None)
    assert go(simulated, finished, "--config-file", quick) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    last = sorted((finished / "logs").glob("*/manifest.json"))[-1]
    stages = [
        s for session in json.loads(last.read_text())["sessions"] for s in session["stages"] if s["name"] != "inputs"
    ]
    assert stages and all(s["reused"] for s in stages)


def test_a_lost_file_is_made_again_and_equal(finished, simulated, quick, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = digests(out, reports=False)
    (out / "sub-01/anat/sub-01_label-EPVS_desc-frangi_mask.nii.gz").unlink()
    (out / "sub-02/anat/sub-02_desc-lesions_epvs.json").write_text("{ half a fi")
    assert go(simulated, out, "--config-file", quick) == 0
    assert digests(out, reports=False) == before


def test_one_bad_subject_does_not_stop_the_others(simulated, quick, tmp_path, capsys):
    raw, out = copy_subject(simulated, tmp_path / "raw"), tmp_path / "out"
    bad = raw / "sub-00" / "anat" / "sub-00_T2w.nii.gz"
    bad.parent.mkdir(parents=True)
    bad.write_bytes((raw / "sub-01/anat/sub-01_T2w.nii.gz").read_bytes()[:100_000])
    options = ("--config-file", quick, "--skip-bids-validation", "--models", "frangi")
    assert go(raw, out, *options) == 1
    assert (out / "sub-01/anat/sub-01_desc-summary_epvs.tsv").is_file()
    page = (out / "sub-00.html").read_text()
    assert "sub-00_T2w.nii.gz" in page and "truncated" in page and "copy" in page.lower()
    assert len(list(out.glob("logs/*/crash-sub-00.txt"))) == 1
    assert not list((out / "sub-00").rglob("*.nii.gz"))
    assert "failed: sub-00" in capsys.readouterr().err
    assert go(raw, out, level="group") == 0
    assert "truncated" in (out / "group.html").read_text()
    assert go(raw, out, *options, "--stop-on-first-crash") == 1


class Page(HTMLParser):
    """Sources, anchors and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.links, self.ids, self.words, self.tags = [], [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        if "src" in found:
            self.sources.append(found["src"])
        if tag == "a":
            self.links.append(found["href"])
        if "id" in found:
            self.ids.add(found["id"])

    def handle_data(self, data):
        self.words.append(data)


def test_subject_report_is_self_contained_and_complete(finished):
    text = (finished / "sub-01.html").read_text()
    page = Page(text)
    assert len(page.sources) >= 6
    assert all(s.startswith("data:image/") for s in page.sources)
    assert not re.search(r'(?:href|src)="https?:|url\(', text)
    words = " ".join(page.words)
    summary = pd.read_csv(finished / "sub-01/anat/sub-01_desc-summary_epvs.tsv", sep="\t")
    for _, row in summary.query("hemisphere == 'both'").iterrows():
        assert row["region"] in words
        whole = float(row["count"]).is_integer()
        assert f"{row['count']:,.{0 if whole else 1}f}" in words
        assert np.isnan(row["volume_mm3"]) or f"{row['volume_mm3']:,.1f}" in words
    for part in ("research use", "N4", "sub-01/anat/sub-01_T2w.nii.gz", "no FLAIR found", "differences from the paper"):
        assert part in words
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids


def test_group_report_links_and_lists(finished):
    page = Page((finished / "group.html").read_text())
    for link in page.links:
        target, _, anchor = link.partition("#")
        where = finished / target if target else finished / "group.html"
        assert where.is_file()
        if anchor:
            assert anchor in Page(where.read_text()).ids
    assert page.tags.count("svg") >= 2
    pictures = sum(s.startswith("data:image/jpeg") for s in page.sources)
    assert pictures == 2 + len(MARKING)  # a thumbnail a session, a frequency map a method
    table = pd.read_csv(finished / "group_epvs.tsv", sep="\t")
    assert len(table) == 2 and {"age", "sex", "frangi_BasalGanglia_count"} <= set(table)
    long = pd.read_csv(finished / "group_epvs_long.tsv", sep="\t")
    both = long[(long["hemisphere"] == "both") & (long["model"] == "frangi")]
    assert both.groupby("participant_id")["count"].sum().tolist() == table["frangi_count"].tolist()


def test_the_frequency_map_lies_inside_the_brain_of_the_template(finished):
    from bids_epvs.prepare.template import icbm152

    image = nib.load(finished / "group_space-MNI152NLin2009aSym_desc-frangi_frequency.nii.gz")
    share = image.get_fdata()
    assert set(np.unique(share)) <= {0.0, 0.5, 1.0}
    assert (share > 0).sum() > 100
    inside = np.asarray(icbm152("T1w").dataobj) > 0
    assert inside[share > 0].mean() > 0.95


def example(name, *arguments):
    """What one of the examples prints."""
    script = Path(__file__).parents[2] / "examples" / name
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_examples_read_tables_and_rehearse_a_cohort(finished, tmp_path):
    printed = example("read_tables.py", finished)
    long = pd.read_csv(finished / "group_epvs_long.tsv", sep="\t")
    one = long.query("participant_id == 'sub-02' and model == 'frangi' and hemisphere == 'both'").set_index("region")
    (line,) = [words for words in map(str.split, printed.splitlines()) if words[:2] == ["sub-02", "frangi"]]
    assert [float(v) for v in line[2:]] == one["count"].sort_index().tolist()
    words = example("rehearse_a_cohort.py", tmp_path / "raw", 30).split()
    row = words[words.index("BasalGanglia") :][:6]
    low, high = map(float, row[2:4])
    assert row[5] == "30" and low < 1.02 < high
    assert (tmp_path / "raw" / "derivatives" / "group.html").is_file()


def test_example_of_a_new_method(simulated, tmp_path):
    raw, out = copy_subject(simulated, tmp_path / "raw"), tmp_path / "out"
    assert "sub-01 done" in example("add_a_model.py", raw, out)
    summary = pd.read_csv(out / "sub-01" / "anat" / "sub-01_desc-summary_epvs.tsv", sep="\t")
    assert set(summary["model"]) == {"frangi", "threshold"}
    mask = nib.load(out / "sub-01" / "anat" / "sub-01_label-EPVS_desc-threshold_mask.nii.gz")
    assert np.asarray(mask.dataobj).any()


def test_group_options(finished, simulated, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    assert go(simulated, out, "--no-maps", "--group-by", "sex", "--formula", "count ~ age", level="group") == 0
    assert not list(out.glob("group_*_frequency.nii.gz"))
    assert "at least 10 needed" in (out / "group_associations.tsv").read_text()
    assert "sex" in set(pd.read_csv(out / "group_descriptives.tsv", sep="\t")["by"])
    with pytest.raises(UsageError, match="no column shoe"):
        go(simulated, out, "--group-by", "shoe", level="group")
    with pytest.raises(UsageError, match="cannot be evaluated"):
        go(simulated, out, "--formula", "count ~ shoe", level="group")


def test_reports_only_rebuilds_the_page(finished, simulated, quick, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = (out / "sub-01.html").read_bytes()
    (out / "sub-01.html").unlink()
    assert go(simulated, out, "--config-file", quick, "--reports-only") == 0
    assert (out / "sub-01.html").read_bytes() == before
    kept = logging.getLogger("bids_epvs").handlers
    assert not any(isinstance(h, logging.FileHandler) for h in kept), "the log file of a run is closed at its end"


def test_the_transform_file_is_itk_hdf5(finished):
    with h5py.File(finished / "sub-01/anat/sub-01_from-T2w_to-MNI152NLin2009aSym_mode-image_xfm.h5") as file:
        kind = file["TransformGroup/0/TransformType"][0].decode()
        assert kind == "DisplacementFieldTransform_float_3_3"


def test_masks_reach_standard_space(finished, simulated, quick, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    options = ("--participant-label", "01", "--config-file", quick, "--output-spaces", "T2w", "MNI152NLin2009aSym")
    assert go(simulated, out, *options) == 0
    mask = nib.load(out / "sub-01/anat/sub-01_space-MNI152NLin2009aSym_label-EPVS_desc-frangi_mask.nii.gz")
    points = np.argwhere(np.asarray(mask.dataobj) > 0)
    assert len(points) > 5
    where = points @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    lesions = pd.read_csv(out / "sub-01/anat/sub-01_desc-lesions_epvs.tsv", sep="\t")
    share = lesions.loc[lesions["hemisphere"] == "left", "volume_mm3"].sum() / lesions["volume_mm3"].sum()
    assert (where[:, 0] < 0).mean() == pytest.approx(share, abs=0.2)
    assert np.all(np.abs(where.mean(axis=0)) < (20, 50, 50))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "models"), [("LAS", SOME), ("RSP", MODELS), ("oblique", SOME)])
def test_storage_of_the_input_changes_no_number(finished, simulated, quick, tmp_path, kind, models):
    raw = copy_subject(simulated, tmp_path / "raw")
    path = raw / "sub-01/anat/sub-01_T2w.nii.gz"
    image = nib.load(path)
    if kind == "oblique":
        angle = np.deg2rad(12)
        turn = np.eye(4)
        turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        new = nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine)
    else:
        ornt = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(kind))
        new = image.as_reoriented(ornt)
        assert "".join(nib.aff2axcodes(new.affine)) == kind
    nib.save(new, path)
    assert go(raw, tmp_path / "out", "--config-file", quick, "--models", *models) == 0
    for name in ("lesions", "summary"):
        a, b = (
            pd.read_csv(p / f"sub-01/anat/sub-01_desc-{name}_epvs.tsv", sep="\t") for p in (finished, tmp_path / "out")
        )
        a = a[a["model"].isin(models)].reset_index(drop=True)
        assert set(b["model"]) == set(a["model"]) and len(a)
        same = [c for c in a if c not in ("x_mm", "y_mm", "z_mm", "i", "j", "k") and not c.startswith("orientation")]
        pd.testing.assert_frame_equal(
            a[same], b[same], rtol=1e-4, check_dtype=models is MODELS
        )  # others count in fractions


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """Address of a Dask scheduler with two workers, whose working directory is another one."""
    monkeypatch.chdir(tmp_path)
    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as made:
        monkeypatch.undo()
        yield made.scheduler_address


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--nprocs", "--omp-nthreads", "--dask-scheduler"])
def test_processes_and_order_change_nothing(finished, simulated, quick, tmp_path, option, request):
    """Subjects side by side, methods of one subject side by side, or subjects on a cluster."""
    out = tmp_path / "out"
    some = ("--participant-label", "01") if option == "--omp-nthreads" else ()
    value = request.getfixturevalue("scheduler") if option == "--dask-scheduler" else 2
    assert go(simulated, out, "--config-file", quick, option, value, *some) == 0
    a, b = (
        {k: v for k, v in digests(d).items() if not k.startswith("group") and k != "dataset_description.json"}
        for d in (finished, out)
    )
    if some:
        a = {k: v for k, v in a.items() if not k.startswith("sub-02")}
    assert any(k.startswith("sub-01") for k in a) and a == b


def test_chromium_shows_the_report(finished, tmp_path):
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    picture = tmp_path / "page.png"
    size = "--window-size=1200,2400"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", size, f"--screenshot={picture}"]
    subprocess.run([*command, (finished / "sub-01.html").as_uri()], capture_output=True, timeout=120, check=True)
    from PIL import Image

    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.std() > 20
    assert (np.ptp(pixels, axis=-1) > 60).sum() > 500, "no coloured overlay is visible"


def test_nothing_finished_is_an_error(simulated, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(simulated), str(tmp_path / "out"), "group"])
    assert stop.value.code == 66
    assert "participant level" in capsys.readouterr().err


@pytest.mark.realdata
@pytest.mark.slow
def test_a_real_clinical_scan(real_data, tmp_path):
    settings = ("--participant-label", "03", "--session-label", "1", "--skip-bids-validation")
    assert go(real_data / "openms", tmp_path, *settings) == 0
    folder = tmp_path / "sub-03" / "ses-1" / "anat"
    brain = nib.load(folder / "sub-03_ses-1_desc-brain_mask.nii.gz")
    volume = np.asarray(brain.dataobj).sum() * np.prod(brain.header.get_zooms()) / 1000
    assert 1000 < volume < 1900
    summary = pd.read_csv(folder / "sub-03_ses-1_desc-summary_epvs.tsv", sep="\t")
    sizes = summary.query("model == 'unet'").pivot(index="region", columns="hemisphere", values="region_volume_mm3")
    np.testing.assert_allclose(sizes["left"] / sizes["right"], 1, atol=0.25)
    assert 4000 < sizes.loc["Hippocampus", "both"] < 12000
    assert 20000 < sizes.loc["BasalGanglia", "both"] < 60000
    assert pipeline.plan(settings_from([str(real_data / "openms"), str(tmp_path), "participant", *settings]))


@pytest.mark.slow
def test_a_given_segmentation_replaces_the_atlas(tmp_path, quick, skeleton):
    from bids_epvs.synth import anatomy, contrast, scene

    rng = np.random.default_rng(8)
    made = scene.build(rng, anatomy.packaged(1.0), burden="low", fine_mm=1.0, with_mimics=False)
    head, protocol = made.head, contrast.Protocol((1.0, 1.0, 4.0), 4.0, snr=40, bias=0.05)
    _, affine = made.grid(protocol.spacing)
    image = made.scan(rng, scene.draw_look(rng, "T2w", strength=0.8), protocol)
    path = skeleton.add("sub-01_T2w.nii.gz")
    nib.save(nib.Nifti1Image(image.astype(np.int16), affine), path)
    given = tmp_path / "seg" / "sub-01" / "anat" / "sub-01_space-T2w_dseg.nii.gz"
    given.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(head.labels.astype(np.int32), head.affine), given)
    out = tmp_path / "out"
    options = ("--config-file", quick, "--models", "frangi", "-d", f"mine={tmp_path / 'seg'}")
    assert go(skeleton.root, out, *options) == 0
    found = np.asarray(nib.load(out / "sub-01/anat/sub-01_seg-epvs_dseg.nii.gz").dataobj)
    expected = made.regions_on(protocol.spacing)
    for index in (1, 2, 3, 4, 5, 6, 9, 10):
        a, b = found == index, expected == index
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85, index
    meta = json.loads((out / "sub-01/anat/sub-01_seg-epvs_dseg.json").read_text())
    assert meta["Atlas"] == "given with -d"
    assert meta["Sources"] == ["bids:raw:sub-01/anat/sub-01_T2w.nii.gz"]


@pytest.mark.slow
def test_templates_of_templateflow_are_found_on_disk(finished, simulated, quick, tmp_path, monkeypatch):
    from bids_epvs.prepare.template import icbm152

    home = tmp_path / "templateflow"
    template = icbm152("T1w")
    moved = template.affine.copy()
    moved[:3, 3] += (3, -2, 4)
    path = home / "tpl-Mine" / "tpl-Mine_res-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.asarray(template.dataobj), moved), path)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    options = ("--participant-label", "01", "--config-file", quick, "--output-spaces", "Mine", "MNI152NLin2009aSym")
    assert go(simulated, out, *options) == 0
    folder = out / "sub-01" / "anat"
    found = [
        nib.load(folder / f"sub-01_space-{s}_label-EPVS_desc-frangi_mask.nii.gz")
        for s in ("Mine", "MNI152NLin2009aSym")
    ]
    centres = [np.argwhere(np.asarray(i.dataobj) > 0).mean(0) @ i.affine[:3, :3].T + i.affine[:3, 3] for i in found]
    np.testing.assert_allclose(centres[0] - centres[1], (3, -2, 4), atol=1.5)


@pytest.mark.slow
def test_a_session_without_t2w_is_read_on_its_t1w(quick, tmp_path):
    from bids_epvs.synth import dataset

    raw, out = tmp_path / "raw", tmp_path / "out"
    plan = dataset.Plan(raw, 1, 3, contrasts=("T2w", "T1w"), burden="high", spacing=(1.0, 1.0, 1.5), fine_mm=1.0)
    dataset.simulate(plan)
    for name in ("T2w.nii.gz", "T2w.json"):
        (raw / f"sub-01/anat/sub-01_{name}").unlink()
    assert go(raw, out, "--config-file", quick) == 0
    anat = out / "sub-01" / "anat"
    t1w = nib.load(raw / "sub-01/anat/sub-01_T1w.nii.gz")
    mask = nib.load(anat / "sub-01_label-EPVS_desc-unet_mask.nii.gz")
    assert mask.shape == t1w.shape and np.allclose(mask.affine, t1w.affine, atol=1e-4)
    assert (anat / "sub-01_desc-preproc_T1w.nii.gz").is_file()
    assert (anat / "sub-01_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5").is_file()
    assert not list(anat.glob("*desc-frangi*")), "it needs a T2w"
    assert "there is no T2w" in (out / "sub-01.html").read_text()
    summary = pd.read_csv(anat / "sub-01_desc-summary_epvs.tsv", sep="\t")
    assert set(summary["model"]) == {"unet"}


@pytest.mark.slow
def test_coronal_slices_are_looked_at_as_they_were_acquired(quick, tmp_path):
    from bids_epvs.synth import dataset

    raw, out = tmp_path / "raw", tmp_path / "out"
    dataset.simulate(dataset.Plan(raw, 1, 3, burden="high", spacing=(0.8, 3.0, 0.8), snr=30.0, fine_mm=0.8))
    assert go(raw, out, "--config-file", quick, "--models", "unet", "resnet152") == 0
    anat, truth = out / "sub-01" / "anat", raw / "derivatives" / "truth" / "sub-01" / "anat"
    found = np.asarray(nib.load(anat / "sub-01_label-EPVS_desc-unet_mask.nii.gz").dataobj) > 0
    true = np.asarray(nib.load(truth / "sub-01_label-EPVS_probseg.nii.gz").dataobj) > 0.3
    sidecar = json.loads((anat / "sub-01_label-EPVS_desc-unet_mask.json").read_text())
    assert sidecar["WeightsSHA256"] == load("unet").weights.own["turned"].sha256
    assert found.sum() > 0.3 * true.sum()
    near = ndimage.binary_dilation(true, np.ones((3, 3, 3)))
    assert near[found].mean() > 0.8
    words = " ".join(Page((out / "sub-01.html").read_text()).words)
    assert "slices are coronal (3.0 mm)" in words and "this method rates axial ones" in words and "No answer." in words
    summary = pd.read_csv(anat / "sub-01_desc-summary_epvs.tsv", sep="\t")
    assert summary.loc[summary["model"] == "resnet152", "rating"].isna().all()
    labels = np.asarray(nib.load(anat / "sub-01_label-EPVS_desc-unetinstances_dseg.nii.gz").dataobj)
    lesions = pd.read_csv(anat / "sub-01_desc-lesions_epvs.tsv", sep="\t").query("region == 'CentrumSemiovale'")
    rows = summary[(summary["model"] == "unet") & (summary["region"] == "CentrumSemiovale")].set_index("hemisphere")
    for side, own in lesions[lesions["model"] == "unet"].groupby("hemisphere"):
        plane, slab = (slice_counts(shown(labels, n), own["index"], labels.shape[2]).max() for n in (1, 5))
        assert rows.loc[side, "slice_count"] == slab > plane, "five planes of 0.8 mm"
    assert "axial planes" in words and "(4 mm together)" in words
