import numpy as np
import pytest

from bids_epvs.report import figures, plots


@pytest.fixture
def volume():
    """Bright on the left, brighter in front, brightest at the top; R, A, S."""
    data = np.zeros((8, 10, 6))
    data[:4] += 100
    data[:, 5:] += 10
    data[:, :, 3:] += 1
    return data


def test_left_is_on_the_right_and_front_at_the_top(volume):
    axial = figures.plane(volume, 2, 0)
    assert axial.shape == (10, 8)
    assert axial[0, -1] == 110 and axial[-1, 0] == 0
    coronal = figures.plane(volume, 1, 0)
    assert coronal.shape == (6, 8)
    assert coronal[0, -1] == 101 and coronal[-1, 0] == 0
    sagittal = figures.plane(volume, 0, 0)
    assert sagittal.shape == (6, 10)
    assert sagittal[0, 0] == 111 and sagittal[-1, -1] == 100


def test_tiles_keep_proportions_and_overlays_lie_on_the_voxels(volume):
    epvs = np.zeros(volume.shape, bool)
    epvs[1, 7, 2] = True
    base, overlay = figures.tile(
        volume, {"epvs": epvs}, axis=2, index=2, spacing=(0.5, 1.0, 3.0), limits=(0, 200), width=80
    )
    assert base.shape == (200, 80) and overlay.shape == (200, 80, 4)
    rows, columns = np.nonzero(overlay[..., 3])
    assert columns.mean() == pytest.approx((8 - 1 - 1 + 0.5) * 10 - 0.5, abs=1)
    assert rows.mean() == pytest.approx((10 - 1 - 7 + 0.5) * 20 - 0.5, abs=1)


def test_the_margin_around_a_region_is_as_wide_across_coronal_slices_as_within_them():
    inside = np.zeros((200, 30, 10), bool)
    inside[90:110, 14:16] = True
    rows, columns = figures.region_view(inside, (0.5, 4.0, 0.5), 5)
    assert (columns.stop - columns.start, rows.stop - rows.start) == (60, 8), "10 mm on each side, in whole voxels"
    rows, columns = figures.region_view(inside, (0.5, 0.5, 4.0), 5)
    assert (columns.stop - columns.start, rows.stop - rows.start) == (60, 30), "as far as the scan goes"


def test_the_mosaic_shows_the_brain_and_nothing_fails_without_one(volume):
    brain = np.ones(volume.shape, bool)
    for mask in (brain, ~brain):
        base, (overlay,) = figures.mosaic(volume, [{"brain": mask}], mask, (1, 1, 2), tiles=12, columns=6, width=40)
        assert base.shape[:2] == overlay.shape[:2]
        assert base.shape[1] == 240


def test_blending_keeps_the_picture_where_nothing_is_drawn():
    base = np.arange(64, dtype=np.uint8).reshape(8, 8)
    overlay = np.zeros((8, 8, 4), np.uint8)
    overlay[2, 3] = (255, 0, 0, 255)
    out = figures.blended(base, overlay)
    assert out[2, 3].tolist() == [255, 0, 0]
    assert out[5, 5].tolist() == [base[5, 5]] * 3


def test_distributions_are_the_same_svg_for_the_same_values(rng):
    values = {"BasalGanglia": rng.poisson(8, 30).astype(float), "Midbrain": np.empty(0)}
    text = plots.distributions(values, "EPVS count")
    assert text.startswith("<svg") and "no value" in text and "BasalGanglia" in text
    assert text == plots.distributions(values, "EPVS count")
    assert plots.distributions({}, "nothing").startswith("<svg")


def test_a_map_is_transparent_where_it_is_small_and_bright_where_it_is_large():
    level = np.array([[0.0, 0.05, 0.5, 1.0]], np.float32)
    made = figures.colored(level)
    assert made[0, :2].max() == 0 and (made[0, 2:, 3] == 190).all()
    assert made[0, 3, :3].sum() > made[0, 2, :3].sum()
    bar = figures.color_bar(100, 8)
    assert bar.shape == (8, 100, 3) and bar[0, -1].sum() > bar[0, 40].sum()


def test_the_map_of_a_slice_lies_where_its_values_are():
    image = np.ones((40, 30, 5), np.float32)
    values = np.zeros(image.shape, np.float32)
    values[5, 25, 2] = 1
    common = {"axis": 2, "index": 2, "spacing": (1.0, 1.0, 3.0), "limits": (0.0, 2.0), "width": 40}
    _, overlay = figures.tile(image, {"map": values}, **common)
    row, column = np.unravel_index(overlay[..., 3].argmax(), overlay.shape[:2])
    assert abs(row - 4) <= 1 and abs(column - 34) <= 1, "front at the top, the patient's left on the right"
