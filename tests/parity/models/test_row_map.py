"""The kernel map against scikit-learn, and where it is better than a linear one."""

import numpy as np
import torch
from sklearn.kernel_ridge import KernelRidge

from polydistill.models import row_map
from polydistill.models.row_map import KERNEL_RIDGE, KERNEL_WIDTH, fit_map


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def kernel(left, right):
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (left, right)]
    return np.exp(KERNEL_WIDTH * (unit[0] @ unit[1].T - 1))


def expected(source, target, rows):
    x, y, new = (
        part.numpy() for part in (source - source.mean(0), target - target.mean(0), rows - source.mean(0))
    )
    fitted = KernelRidge(alpha=KERNEL_RIDGE, kernel="precomputed").fit(kernel(x, x), y)
    return fitted.predict(kernel(new, x))


def test_the_kernel_map_is_kernel_ridge_regression() -> None:
    source, target, rows = draw(90, 6), draw(90, 11, seed=1), draw(40, 6, seed=2)
    mapped, fit = fit_map(source, target, rows, "kernel")
    wanted = expected(source, target, rows)
    np.testing.assert_allclose((mapped - target.mean(0)).numpy() / fit["stretch"], wanted, atol=1e-8)
    np.testing.assert_allclose(mapped.std(), target.sub(target.mean(0)).std(), rtol=0.05)


def test_the_held_out_tenth_is_not_fitted() -> None:
    source, target = draw(200, 8), draw(200, 5, seed=1)
    left = np.arange(200) % 10 == 0
    y = target - target.mean(0)
    x = (source - source.mean(0)).numpy()
    fitted = KernelRidge(alpha=KERNEL_RIDGE, kernel="precomputed").fit(
        kernel(x[~left], x[~left]), y.numpy()[~left]
    )
    guess = fitted.predict(kernel(x[left], x[~left]))
    wanted = torch.nn.functional.cosine_similarity(torch.from_numpy(guess), y[torch.from_numpy(left)]).mean()
    _, fit = fit_map(source, target, source, "kernel")
    np.testing.assert_allclose(fit["held_out_cosine"], wanted, atol=1e-6)


def test_a_bent_space_is_mapped_better_than_by_a_linear_map() -> None:
    """The target is a nonlinear function of few directions, as a wide space over a narrow one is."""
    source = draw(800, 4)
    target = torch.sin(3 * source @ draw(4, 24, seed=1))
    cosine = {
        name: fit_map(source, target, source, name)[1]["held_out_cosine"]
        for name in ("kernel", "least_squares")
    }
    assert cosine["kernel"] > cosine["least_squares"] + 0.1


def test_many_shared_pieces_are_thinned(monkeypatch) -> None:
    """A system of all of them would not fit into memory; chunks of rows change nothing."""
    source, target, rows = draw(301, 4), draw(301, 3, seed=1), draw(25, 4, seed=2)
    monkeypatch.setattr(row_map, "MAX_ANCHORS", 101)
    monkeypatch.setattr(row_map, "_CHUNK", 7)
    mapped, fit = fit_map(source, target, rows, "kernel")
    chosen = slice(None, None, 3)
    wanted = expected(source[chosen], target[chosen], rows)
    np.testing.assert_allclose((mapped - target[chosen].mean(0)).numpy() / fit["stretch"], wanted, atol=1e-8)
