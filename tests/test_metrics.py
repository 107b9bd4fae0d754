import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsolo_jax.metrics import confusion_matrix, mean_iou


def counted_by_hand(labels, truth, num_classes, ignore):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for p, t in zip(labels.ravel(), truth.ravel(), strict=True):
        if t != ignore:
            matrix[t, p] += 1
    return matrix


def random_maps(seed, num_classes, ignore, shape=(23, 31)):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, shape)
    labels = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, num_classes, shape))
    return labels.astype(np.int32), np.where(rng.random(shape) < 0.2, ignore, truth).astype(
        np.int32
    )


@pytest.mark.parametrize(
    "num_classes, ignore", [(1, 255), (2, 255), (21, 255), (150, 255), (300, -1)]
)
def test_counts_are_those_of_a_plain_loop(num_classes, ignore):
    labels, truth = random_maps(num_classes, num_classes, ignore)
    expected = counted_by_hand(labels, truth, num_classes, ignore)
    matrix = confusion_matrix(labels, truth, num_classes, ignore=ignore)
    assert isinstance(matrix, np.ndarray) and matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, expected)
    for arrays in ((jnp.asarray(labels), jnp.asarray(truth)), (jnp.asarray(labels), truth)):
        matrix = confusion_matrix(*arrays, num_classes, ignore=ignore)
        assert isinstance(matrix, jax.Array) and matrix.dtype == jnp.int32
        np.testing.assert_array_equal(matrix, expected)
    jitted = jax.jit(confusion_matrix, static_argnums=(2, 3))
    np.testing.assert_array_equal(jitted(labels, truth, num_classes, ignore), expected)


def test_types_of_files_serve_as_they_are():
    labels, truth = random_maps(0, 5, 255)
    expected = confusion_matrix(labels, truth, 5)
    for dtype in (np.uint8, np.int64, np.uint16):
        np.testing.assert_array_equal(
            confusion_matrix(labels.astype(dtype), truth.astype(dtype), 5), expected
        )


def test_an_ignored_class_index_does_not_count():
    labels, truth = random_maps(1, 4, 0)
    matrix = np.asarray(confusion_matrix(labels, truth, 4, ignore=0))
    assert matrix[0].sum() == 0
    assert matrix.sum() == (truth != 0).sum()


def test_a_label_out_of_range_is_named_unless_it_does_not_count():
    truth = np.array([[0, 1, 255]])
    with pytest.raises(ValueError, match=r"labels hold the value 7 in 1 pixels, wanted 0\.\.2"):
        confusion_matrix(np.array([[0, 7, 0]]), truth, 3)
    with pytest.raises(ValueError, match=r"truth hold the value -1"):
        confusion_matrix(np.array([[0, 1, 0]]), np.array([[0, -1, 2]]), 3)
    np.testing.assert_array_equal(
        confusion_matrix(np.array([[0, 1, 255]]), truth, 3), np.diag([1, 1, 0])
    )


def test_out_of_range_is_not_counted_inside_jit():
    count = jax.jit(confusion_matrix, static_argnums=2)
    matrix = count(np.array([0, 1, -1, 3, 2, 2]), np.array([0, 255, 1, 1, -1, 3]), 3)
    np.testing.assert_array_equal(matrix, np.diag([1, 0, 0]))


def test_shapes_and_types_are_checked():
    with pytest.raises(ValueError, match=r"\(2, 3\), truth has \(3, 2\)"):
        confusion_matrix(np.zeros((2, 3), int), np.zeros((3, 2), int), 2)
    with pytest.raises(ValueError, match="labels are float32, wanted integers"):
        confusion_matrix(np.zeros((2, 2), np.float32), np.zeros((2, 2), int), 2)


@pytest.mark.parametrize("seed", range(5))
def test_mean_iou_is_that_of_sets_of_pixels(seed):
    num_classes, rng = 12, np.random.default_rng(seed)
    missing = rng.choice(num_classes, 3, replace=False)
    total, seen = np.zeros((num_classes, num_classes), np.int64), []
    for picture in range(4):
        labels, truth = random_maps((seed, picture), num_classes, 255, shape=(9, 14))
        labels[np.isin(labels, missing)] = (missing.min() + 1) % num_classes
        truth[np.isin(truth, missing)] = 255
        labels[np.isin(labels, missing)] = next(c for c in range(12) if c not in missing)
        total += np.asarray(confusion_matrix(labels, truth, num_classes))
        seen.append((labels[truth != 255], truth[truth != 255]))
    labels, truth = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    expected = [
        np.sum((labels == c) & (truth == c)) / np.sum((labels == c) | (truth == c))
        if np.any((labels == c) | (truth == c))
        else np.nan
        for c in range(num_classes)
    ]
    miou, iou = mean_iou(total)
    assert np.isnan(iou[missing]).all()
    np.testing.assert_allclose(iou, expected, rtol=1e-12)
    np.testing.assert_allclose(miou, np.nanmean(expected), rtol=1e-12)


def test_a_class_only_predicted_counts_as_zero():
    miou, iou = mean_iou(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(iou, [0.75, 0.0, np.nan])
    assert miou == pytest.approx(0.375)


def test_sums_beyond_int32_and_sets_without_pixels():
    miou, iou = mean_iou(np.diag([2**40, 2**41]))
    assert miou == 1.0 and iou.dtype == np.float64
    miou, iou = mean_iou(np.zeros((3, 3), int))
    assert np.isnan(miou) and np.isnan(iou).all()


def test_mean_iou_refuses_what_is_no_confusion_matrix():
    with pytest.raises(ValueError, match=r"shape \(2, 3\), wanted \[C, C\]"):
        mean_iou(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="int64"):
        mean_iou(np.array([[-5, 0], [0, 1]]))


def mmsegmentation_areas(labels, truth, num_classes, ignore):
    """mmseg.evaluation.IoUMetric.intersect_and_union, written out: four histograms."""
    mask = truth != ignore
    labels, truth = labels[mask], truth[mask]
    bins = np.arange(num_classes + 1) - 0.5
    intersect, predicted, true = (
        np.histogram(values, bins)[0] for values in (labels[labels == truth], labels, truth)
    )
    return intersect, predicted + true - intersect


def test_mean_iou_is_mmsegmentations_on_1000_random_cases():
    """total_area_to_metrics with its nan: IoU = intersect / union, mIoU = nanmean(IoU)."""
    rng = np.random.default_rng(0)
    num_classes, seen = 9, {"absent": 0, "ignored": 0, "only predicted": 0}
    for _ in range(1000):
        labels, truth = (
            rng.choice(rng.choice(num_classes, rng.integers(1, 10), replace=False), (7, 8))
            for _ in range(2)
        )
        labels = np.where(rng.random(truth.shape) < rng.random(), truth, labels)
        truth[rng.random(truth.shape) < rng.choice([0, 0.3, 1], p=[0.3, 0.6, 0.1])] = 255
        intersect, union = mmsegmentation_areas(labels, truth, num_classes, 255)
        with np.errstate(invalid="ignore"):
            expected = intersect / union
        miou, iou = mean_iou(np.asarray(confusion_matrix(labels, truth, num_classes)))
        np.testing.assert_array_equal(iou, expected)
        if np.isnan(expected).all():
            assert np.isnan(miou)
        else:
            assert miou == pytest.approx(np.nanmean(expected), rel=1e-15)
        seen["absent"] += np.isnan(expected).any()
        seen["ignored"] += (truth == 255).any()
        seen["only predicted"] += ((expected == 0) & ~np.isin(range(num_classes), truth)).any()
    assert min(seen.values()) > 50
