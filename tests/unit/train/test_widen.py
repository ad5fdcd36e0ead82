"""A wider network answers as the narrow one did, until it learns."""

import numpy as np
import pytest

from bids_epvs.errors import DataError
from bids_epvs.models import nuclei, parcellation, slices, unet, weights

weights.configure()
import keras  # noqa: E402

from bids_epvs.train import loop, widen  # noqa: E402

RNG = np.random.default_rng(0)


def shares(*shape):
    out = RNG.random(shape, np.float32) + 0.01
    return out / out.sum(axis=-1, keepdims=True)


KNOWN = len(parcellation.CLASSES)
CASES = {
    "parcellation": (
        lambda **k: parcellation.build(shape=(8, 8, 8), **k),
        {"widths": (3, 4)},
        {"widths": (5, 4), "sharp": 2},
        (RNG.random((1, 8, 8, 8, parcellation.CHANNELS), np.float32), shares(1, 8, 8, 8, KNOWN)),
    ),
    "nuclei": (
        nuclei.build,
        {"widths": (2, 3, 3)},
        {"widths": (4, 3, 5)},
        (RNG.random((1, 48, 80, 64, nuclei.CHANNELS), np.float32), shares(1, *nuclei.SHAPE, KNOWN)),
    ),
    "slices": (
        slices.build,
        {"widths": (2, 3, 4, 5)},
        {"widths": (4, 3, 6, 6)},
        (RNG.random((1, 16, 24, slices.CHANNELS), np.float32), shares(1, 16, 24, len(slices.CLASSES))),
    ),
    "unet": (
        unet.build,
        {"widths": (2, 3, 4)},
        {"widths": (4, 5, 4)},
        (RNG.random((1, 16, 24, unet.CHANNELS), np.float32),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wider_network_says_the_same(name, tmp_path):
    build, narrow, wide, given = CASES[name]
    old = build(**narrow)
    drawn = {w.path: RNG.normal(0, 0.3, w.shape).astype(np.float16) for w in old.weights}
    old.set_weights([np.abs(drawn[w.path]) if "variance" in w.path else drawn[w.path] for w in old.weights])
    weights.save(old, tmp_path / "old.npz", narrow)
    new, architecture = loop.started(build, (9, 9), wide["widths"], tmp_path / "old.npz", wide.get("sharp"), grows=True)
    assert architecture == wide
    before, after = (
        keras.ops.convert_to_numpy(m(list(given) if len(given) > 1 else given[0], training=False)) for m in (old, new)
    )
    assert before.std() > 0.1
    np.testing.assert_allclose(after, before, atol=2e-4)
    assert new.count_params() > old.count_params()


def test_a_narrower_network_is_refused():
    with pytest.raises(ValueError, match="at least"):
        widen.grown(None, None, (4, 8), (4, 6))


@pytest.mark.parametrize("asked", [{"widths": (2, 2, 2)}, {"widths": (1, 3, 3)}, {"sharp": nuclei.SHARP + 1}])
def test_what_cannot_begin_another_network_is_an_error_of_the_user(asked, tmp_path):
    stored = {"widths": (2, 3, 3)}
    weights.save(nuclei.build(**stored), tmp_path / "old.npz", stored)
    wide = {"widths": None, "sharp": None, **asked}
    with pytest.raises(DataError, match="expected"):
        loop.started(nuclei.build, (9, 9), wide["widths"], tmp_path / "old.npz", wide["sharp"], grows=True)


def test_only_networks_made_for_it_grow(tmp_path):
    """Those with other layers would be carried over wrong without a word."""
    weights.save(nuclei.build((2, 3)), tmp_path / "old.npz", {"widths": (2, 3)})
    with pytest.raises(DataError):
        loop.started(nuclei.build, (9, 9), (4, 3), tmp_path / "old.npz")
