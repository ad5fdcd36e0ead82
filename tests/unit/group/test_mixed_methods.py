"""Methods that only count, only grade, or only say how severe, beside one that does everything."""

import numpy as np
import pandas as pd
import pytest

from bids_epvs.group import analysis, table
from bids_epvs.report import group as page
from bids_epvs.synth.cohort import Design, write_cohort

NAN = float("nan")


@pytest.fixture
def mixed(tmp_path):
    """A cohort of 30 with ``cnn`` (counts), ``rating2d`` (grades) and ``resnet152`` (severity) added."""
    write_cohort(tmp_path / "raw", tmp_path / "out", Design(30, seed=2))
    for path in (tmp_path / "out").glob("sub-*/**/*_desc-summary_epvs.tsv"):
        whole = pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)
        basal = whole[(whole["region"] == "BasalGanglia") & (whole["model"] == whole["model"].iloc[0])]
        nothing = dict.fromkeys(["volume_mm3", "volume_fraction", "adams_count", "slice_count"], NAN)
        cnn = basal.assign(model="cnn", count=basal["count"] * 0.9 + 0.3, rating=NAN, rating_scale=NAN, **nothing)
        both = basal[basal["hemisphere"] == "both"].assign(count=NAN, **nothing)
        rated = both.assign(model="rating2d", rating=(both["rating"] + 2).clip(upper=4), rating_scale="Potter")
        severe = both.assign(model="resnet152", rating=(both["rating"] > 1).astype(int), rating_scale="Severity")
        pd.concat([whole, cnn, rated, severe]).to_csv(path, sep="\t", index=False, na_rep="n/a")
    return tmp_path


def test_every_statistic_takes_what_there_is(mixed):
    cohort = table.collect(mixed / "out", mixed / "raw")
    found = analysis.analyse(cohort, source=mixed / "raw", root=mixed / "out", with_maps=False)
    rows = found.descriptives.query("region == 'BasalGanglia' and hemisphere == 'both' and by == 'all'")
    rows = rows.set_index("model")
    assert (rows["sessions"] == 30).all()
    assert np.isnan(rows.loc["rating2d", "count_median"]) and rows.loc["rating2d", "grade_0"] == 0
    assert np.isnan(rows.loc["resnet152", "grade_0"])
    assert rows.loc["cnn", "count_median"] > 0 and np.isnan(rows.loc["cnn", "volume_mm3_median"])
    agree = found.agreement.query("region == 'BasalGanglia'")
    pairs = {(r.value, frozenset((r.a, r.b))) for r in agree.itertuples()}
    main = next(m for m in rows.index if m not in ("cnn", "rating2d", "resnet152"))
    assert ("count", frozenset((main, "cnn"))) in pairs
    assert ("rating", frozenset((main, "rating2d"))) in pairs
    assert ("severity", frozenset(("rating2d", "resnet152"))) in pairs
    told = found.associations.query("region == 'BasalGanglia' and term == 'age'")
    assert {"cnn", main} <= set(told[told["formula"].str.startswith("count")]["model"])
    assert "rating2d" not in set(told[told["formula"].str.startswith("count")]["model"])
    checked = found.quality
    assert (checked["missing_regions"] == "").all()
    assert (checked["disagreements"] == "BasalGanglia").mean() > 0.5, "grades two apart"


def test_the_group_page_shows_them(mixed):
    cohort = table.collect(mixed / "out", mixed / "raw")
    found = analysis.analyse(cohort, source=mixed / "raw", root=mixed / "out", with_maps=False)
    table.write_tables(cohort, mixed / "out")
    analysis.save(found, mixed / "out")
    html = page.render(cohort, found, thumbnails={}, methods="", references=(), versions={"bids_epvs": "0"})
    assert "rating2d" in html and "resnet152" in html and "cnn" in html
    wide = pd.read_csv(mixed / "out" / "group_epvs.tsv", sep="\t", na_values="n/a")
    assert wide["cnn_BasalGanglia_count"].notna().all() and wide["resnet152_BasalGanglia_rating"].isin([0, 1]).all()
