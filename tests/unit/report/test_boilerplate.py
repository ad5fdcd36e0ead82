"""The methods text says where parameters came from."""

from pathlib import Path

from bids_epvs.report import boilerplate
from bids_epvs.settings import Settings


def test_methods_say_whose_weights_were_used(tmp_path):
    given = {"bids_dir": tmp_path, "output_dir": tmp_path, "analysis_level": "participant"}
    text = boilerplate.methods(Settings(**given, models=("frangi", "unet")))
    assert text.count("trained on simulated EPVS (") == 1, "the filter was not trained"
    own = Settings(**given, models=("frangi", "unet"), weights={"unet": Path("own.npz")})
    text = boilerplate.methods(own)
    assert "with weights given by the user" in text and "trained on simulated EPVS (" not in text
    assert "no method has been validated" in text


def test_methods_say_which_field_was_fitted(tmp_path):
    given = {"bids_dir": tmp_path, "output_dir": tmp_path, "analysis_level": "participant"}
    assert "field of degree 3" in boilerplate.methods(Settings(**given, regions_from="network"))
    assert "field of degree 2" in boilerplate.methods(Settings(**given, regions_from="atlas"))
