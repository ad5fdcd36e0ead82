"""Losses on soft targets, from logits; classes on the last axis."""

from __future__ import annotations

from typing import Any

from keras import ops


def soft_cross_entropy_and_dice(target: Any, logits: Any) -> Any:
    """Mean cross-entropy plus one minus the mean soft Dice over the classes, background apart, that are there.

    Parameters
    ----------
    target : tensor
        (batch, X, Y, Z, classes) or (batch, X, Y, classes): share of each class, sums to 1.
    logits : tensor
        The same shape.

    Returns
    -------
    tensor
        Scalar.

    References
    ----------
    Soft Dice: Milletari et al. 2016, doi:10.1109/3DV.2016.79.
    """
    target = ops.cast(target, logits.dtype)
    log = ops.log_softmax(logits, axis=-1)
    entropy = -ops.mean(ops.sum(target * log, axis=-1))
    likely = ops.exp(log)[..., 1:]
    target = target[..., 1:]
    axes = tuple(range(len(target.shape) - 1))
    overlap = ops.sum(likely * target, axis=axes)
    total = ops.sum(likely * likely, axis=axes) + ops.sum(target * target, axis=axes)
    there = ops.cast(ops.sum(target, axis=axes) > 1.0, logits.dtype)
    dice = (2 * overlap + 1.0) / (total + 1.0)
    return entropy + 1 - ops.sum(dice * there) / ops.maximum(ops.sum(there), 1.0)


def weighted_entropy_and_dice(target: Any, logits: Any) -> Any:
    """Weighted binary cross-entropy with shares as targets, plus half of one minus the soft Dice of the batch.

    Parameters
    ----------
    target : tensor
        (batch, ..., 2): share of the structure in each voxel, and the weight of the voxel.
    logits : tensor
        (batch, ..., 1).

    Returns
    -------
    tensor
        Scalar; the cross-entropy is scaled by 50, as few voxels are not background.
    """
    target = ops.cast(target, logits.dtype)
    share, weight, logit = target[..., 0], target[..., 1], logits[..., 0]
    entropy = ops.softplus(logit) - share * logit
    entropy = ops.sum(weight * entropy) / ops.maximum(ops.sum(weight), 1.0)
    likely = ops.sigmoid(logit)
    overlap = ops.sum(weight * likely * share)
    total = ops.sum(weight * likely * likely) + ops.sum(weight * share * share)
    return 50 * entropy + 0.5 * (1 - (2 * overlap + 1.0) / (total + 1.0))
