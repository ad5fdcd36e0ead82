"""Training examples of the segmentation network."""

import numpy as np
import pytest

from bids_epvs.errors import DataError
from bids_epvs.models import unet
from bids_epvs.prepare.regions import WHITE_MATTER
from bids_epvs.prepare.resample import slice_axis, thickness
from bids_epvs.synth import anatomy, scene, volumes


@pytest.fixture(scope="module")
def made():
    head = volumes.near_brain(anatomy.average())
    return scene.build(np.random.default_rng(4), head, burden="high", age=60.0, fine_mm=1.0)


def seen(example, name):
    low, high = unet.RANGE
    return example["images"][..., unet.SEQUENCES.index(name)] / 255 * (high - low) + low


@pytest.mark.parametrize("kind", volumes.KINDS)
def test_an_example_is_what_the_app_would_hand_to_the_network(made, kind, rng):
    example = volumes.example(rng, made, kind)
    shape = example["regions"].shape
    assert example["images"].shape == (*shape, len(unet.SEQUENCES))
    assert example["fraction"].shape == example["index"].shape == example["csf"].shape == shape
    assert (thickness(example["spacing"]) == "thick") == (kind != "research")
    assert slice_axis(example["spacing"]) == 2, "slices are last"
    inside = (example["regions"] > 0) & ~example["csf"]
    white = np.isin(example["regions"], WHITE_MATTER) & inside & (example["fraction"] == 0)
    filled = inside & (example["fraction"] > 150)
    assert filled.sum() > 50
    for name, sign in {"T2w": 1, "T1w": -1}.items():
        values = seen(example, name)
        assert abs(np.median(values[white])) < 0.1
        assert sign * (np.median(values[filled]) - np.median(values[white])) > 0.25, name
        assert 0.6 < sign * np.median(values[example["csf"]]) < 1.2
    assert (example["index"][example["fraction"] > 0] > 0).all()
    corner = tuple(0 for _ in range(3))
    assert (example["images"][corner] == 0).all(), "what is not brain is at the lower end"


def test_the_head_is_cut_around_the_brain():
    whole = anatomy.average()
    cut = volumes.near_brain(whole, margin_mm=6.0)
    assert np.prod(cut.labels.shape) < 0.8 * np.prod(whole.labels.shape)
    for index in (2, 42):
        assert (cut.labels == index).sum() == (whole.labels == index).sum()
        a, b = (h.affine[:3] @ [*np.argwhere(h.labels == index)[0], 1] for h in (cut, whole))
        assert np.allclose(a, b)


def test_examples_are_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(volumes, "fine_head", lambda _: None)
    monkeypatch.setattr(scene, "build", lambda rng, *_, **__: rng.random())
    task = volumes.Task((tmp_path,), tmp_path, 1, 3)
    for _ in range(2):
        volumes.write_examples(task, make=lambda _, scene_, kind: made.append((scene_, kind)) or {"x": scene_})
    assert [kind for _, kind in made] == ["research", "clinical", "turned"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"example-{k:05d}.npz" for k in (9, 10, 11)]
    with pytest.raises(DataError, match="no label maps"):
        volumes.generate((), tmp_path, number=1)
