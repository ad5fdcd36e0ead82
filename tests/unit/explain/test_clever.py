"""Robustness of classifiers whose smallest successful change is known."""

import numpy as np
import pytest

from bids_epvs.explain import clever


def logistic(weight, offset):
    """sigmoid(weight . x + offset) and its gradient."""

    def slopes(images):
        z = (images * weight).reshape(len(images), -1).sum(axis=1) + offset
        p = 1 / (1 + np.exp(-z))
        return p, (p * (1 - p))[:, None, None, None, None] * weight[None]

    return slopes


def test_points_fill_the_ball(rng):
    points = clever.in_ball(rng, 500, (2, 3, 1), 2.0)
    far = np.linalg.norm(points.reshape(500, -1), axis=1)
    assert far.max() <= 2.0 + 1e-6
    assert np.median(far) == pytest.approx(2 * 0.5 ** (1 / 6), abs=0.05)


def test_the_score_is_near_the_margin_over_the_steepest_slope(rng):
    weight = rng.normal(size=(4, 4, 2, 1))
    weight *= 0.2 / np.linalg.norm(weight)
    image = np.zeros(weight.shape, np.float32)
    found = clever.score(logistic(weight, 1.0), image, radius=1.0, batches=30, samples=20)
    margin = 2 / (1 + np.exp(-1.0)) - 1
    z = np.linspace(0.8, 1.2, 400)  # what can be reached inside the ball
    steepest = (2 * 0.2 * np.exp(-z) / (1 + np.exp(-z)) ** 2).max()
    assert found == pytest.approx(min(1.0, margin / steepest), rel=0.1)


def test_a_steeper_classifier_is_less_robust_and_nothing_beats_the_radius():
    image = np.zeros((3, 3, 2, 1), np.float32)
    weight = np.ones(image.shape) / np.sqrt(image.size)
    gentle, steep = (
        clever.score(logistic(k * weight, 1.0), image, radius=5.0, batches=20, samples=10) for k in (0.5, 5.0)
    )
    assert steep < gentle <= 5.0
    assert clever.score(logistic(0 * weight, 1.0), image, radius=5.0, batches=3) == 5.0


def test_an_undecided_image_has_no_margin():
    image = np.zeros((3, 3, 2, 1), np.float32)
    assert clever.score(logistic(np.ones(image.shape), 0.0), image, batches=5) == pytest.approx(0, abs=1e-6)
