"""The page of a cohort: every figure it promises is there, and it stays small."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from bids_epvs.group import analysis, table
from bids_epvs.prepare.template import SPACE, space_grid
from bids_epvs.records import Cohort, Failure, FrequencyMap
from bids_epvs.report import group, plots, statistics
from bids_epvs.synth.cohort import Design, write_cohort


class Page(HTMLParser):
    """Ids, links and the data of the tables."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.data, self._open = set(), [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if "id" in found:
            self.ids.add(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        if found.get("type") == "application/json":
            self._open = found["id"]

    def handle_data(self, data):
        if self._open:
            self.data[self._open] = json.loads(data)
            self._open = None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    write_cohort(root / "raw", root / "out", Design(60, sessions=2, rate=1.05, seed=2))
    cohort = table.collect(root / "out", root / "raw")
    found = analysis.analyse(cohort, source=root / "raw", root=root / "out", with_maps=False)
    analysis.save(found, root / "out")
    table.write_tables(cohort, root / "out")
    return root / "out", cohort, found


def page(cohort, found, **more):
    given = {
        "thumbnails": {},
        "methods": "As described <here>.",
        "references": ["Shrout & Fleiss"],
        "versions": {"bids_epvs": "1"},
        **more,
    }
    return group.render(cohort, found, **given)


def test_every_section_is_there_with_its_numbers(made):
    root, cohort, found = made
    text = page(cohort, found)
    parsed = Page(text)
    wanted = {"unet", "frangi", "descriptives", "agreement", "repeatability", "associations", "quality", "methods"}
    assert wanted <= parsed.ids
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= parsed.ids
    assert all((root / link).is_file() for link in parsed.links if link.endswith(".tsv"))
    assert len(parsed.data["data-unet"]["rows"]) == 120
    row = parsed.data["data-unet"]["rows"][0]
    assert row[:2] == ["sub-00001_ses-1", "sub-00001.html#sub-00001_ses-1"]
    assert len(row) == len(parsed.data["data-unet"]["header"]) + 1  # the link has no heading
    age = found.associations.query("term == 'age' and model == 'unet' and region == 'CentrumSemiovale'").iloc[0]
    assert f"{age['value']:.3f} ({age['value_low']:.3f} to {age['value_high']:.3f})" in text
    assert "As described &lt;here&gt;." in text
    assert "<li>Shrout &amp; Fleiss</li>" in text
    assert len(text) < 1.5e6


def test_a_method_without_counts_has_no_empty_columns_and_no_empty_pictures(made):
    _, cohort, found = made
    graded = cohort.long[(cohort.long["model"] == "unet") & (cohort.long["region"] == "BasalGanglia")]
    graded = graded.assign(model="resnet152", rating=1.0, count=np.nan, volume_mm3=np.nan)
    wide = cohort.wide.assign(resnet152_BasalGanglia_count=np.nan, resnet152_BasalGanglia_rating=1.0)
    text = page(replace(cohort, wide=wide, long=pd.concat([cohort.long, graded])), found)
    table = Page(text).data["data-resnet152"]
    covariates = list(cohort.covariates[: group.COVARIATES_SHOWN])
    assert [name for name, _ in table["header"]] == ["session", *covariates, "BasalGanglia severe", "warnings"]
    assert {row[-2] for row in table["rows"]} == {"1"}
    assert "<svg" not in text[text.index('id="resnet152"') : text.index("</section>", text.index('id="resnet152"'))]
    assert "<svg" in text[text.index('id="unet"') : text.index("</section>", text.index('id="unet"'))]


def test_captions_say_n_test_and_interval(made):
    _, cohort, found = made
    parts = statistics.parts(cohort, found)
    for own in (parts["Agreement"][0], parts["Repeatability"][0], parts["Associations"][0]):
        assert re.search(r"n = \d+", own.caption), own.title
        assert "95 %" in own.caption
    assert "Wilcoxon" in parts["Descriptives"][0].caption
    assert "negative binomial GEE" in parts["Associations"][0].caption
    assert any("Williams" in p.caption for p in parts["Agreement"])
    assert all(len(r) == len(p.header) for own in parts.values() for p in own for r in p.rows)


def test_a_map_is_drawn_where_the_epvs_are():
    share = np.zeros(space_grid(SPACE).shape, np.float32)
    share[110:120, 120:130, 100] = 0.4  # right of the midline
    (part,) = statistics.frequency([FrequencyMap("unet", "all", "all", 7, share, share)])
    assert "n = 7" in part.pictures[0][0]
    assert "40.0 %" in part.caption
    index = round(float((np.linalg.inv(space_grid(SPACE).affine) @ [0, 0, 28, 1])[2]))
    base = np.asarray(space_grid(SPACE).dataobj)
    shown = np.roll(share, index - 100, axis=2)
    picture = statistics.figures.heat(base, shown, top=0.4, slices=[index], columns=1).astype(int)
    colored = np.argwhere(np.abs(picture[..., 0] - picture[..., 2]) > 40)
    assert len(colored) > 20
    assert colored[:, 1].max() < picture.shape[1] / 2  # the patient's right is on the left


def test_no_label_can_end_the_data():
    text = group.payload([("a", "")], [["</script><b>", "x"]])
    assert "</script>" not in text
    assert json.loads(text)["rows"] == [["</script><b>", "x"]]


def test_failures_and_pictures_of_a_large_cohort(made, monkeypatch):
    _, cohort, found = made
    failed = replace(cohort, failures=tuple(Failure(f"sub-x{k}", "broken") for k in range(250)))
    monkeypatch.setattr(group, "SHEET", 5)
    pictures = {f"sub-{k:05d}_ses-1": b"jpeg" for k in range(1, 21)}
    quality = found.quality.assign(verdict="ok")
    quality.loc[quality["participant_id"] == "sub-00015", "verdict"] = "check"
    shown = group.to_show(replace(found, quality=quality), pictures)
    assert len(shown) == 5
    assert "sub-00015_ses-1" in shown
    text = page(failed, replace(found, quality=quality), thumbnails=pictures)
    assert "And 50 more" in text
    assert "15 further sessions are not shown" in text


def test_nothing_but_failures_has_a_page(tmp_path):
    empty = Cohort(pd.DataFrame(), pd.DataFrame(), {}, failures=(Failure("sub-01", "truncated"),))
    found = analysis.analyse(empty, source=tmp_path, root=tmp_path)
    analysis.save(found, tmp_path)
    assert "truncated" in page(empty, found)
    assert "truncated" in (tmp_path / "group_qc.tsv").read_text()
    assert (tmp_path / "group_agreement.tsv").read_text().startswith("kind\t")


def test_dots_of_a_large_cohort_are_thinned():
    values = np.arange(10_000.0)
    few = plots.thinned(values)
    assert (len(few), few[0], few[-1]) == (plots.MOST_DOTS, 0, 9999)
    assert len(plots.distributions({"a": values}, "x")) < 200_000
    assert np.array_equal(plots.thinned(values[:10]), values[:10])


def test_forests_mark_no_effect():
    rows = [("age", 1.02, 1.01, 1.03), ("sex", 0.8, 0.5, 1.4)]
    assert "age" in plots.forest(rows, "rate ratio", ratio=True)
    assert "1.25" in plots.forest(rows, "rate ratio", ratio=True)
    assert plots.forest(rows, "slope", ratio=False).startswith("<svg")
