import pytest

from bids_epvs.derivatives import paths
from bids_epvs.records import Scan


def test_names_are_built_and_parsed(tmp_path):
    scan = Scan("01", "2", {})
    path = paths.derivative(
        tmp_path, scan, from_="T2w", to="MNI152NLin2009aSym", mode="image", suffix="xfm", extension=".h5"
    )
    assert path.relative_to(tmp_path).as_posix() == (
        "sub-01/ses-2/anat/sub-01_ses-2_from-T2w_to-MNI152NLin2009aSym_mode-image_xfm.h5"
    )
    assert paths.parse(path) == {
        **{"sub": "01", "ses": "2", "from": "T2w", "to": "MNI152NLin2009aSym", "mode": "image"},
        **{"suffix": "xfm", "extension": ".h5"},
    }
    assert paths.session_dir(tmp_path, Scan("01", None, {})) == tmp_path / "sub-01" / "anat"


def test_the_order_of_entities_is_that_of_the_schema():
    from bidsschematools.schema import load_schema

    schema = load_schema()
    order = [schema.objects.entities[e].name for e in schema.rules.entities]
    known = [e for e in paths.ENTITY_ORDER if e in order]
    assert known == sorted(known, key=order.index)
    assert {"sub", "ses", "space", "seg", "label", "desc"} <= set(known)


def test_wrong_entities_are_refused():
    with pytest.raises(ValueError, match="expected entities"):
        paths.name(sub="01", model="x", suffix="mask", extension=".nii.gz")
    with pytest.raises(ValueError, match="letters and digits"):
        paths.name(sub="01", desc="a_b", suffix="mask", extension=".nii.gz")


def test_uris(tmp_path):
    assert paths.bids_uri(tmp_path / "sub-01" / "a.nii", tmp_path, "raw") == "bids:raw:sub-01/a.nii"
