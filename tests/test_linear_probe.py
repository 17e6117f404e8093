"""The linear probe against scikit-learn's ridge classifier."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from test_club import normal
from torch import Tensor

from pytl.features import linear_probe

pytestmark = pytest.mark.usefixtures("one_thread")


class Probed(NamedTuple):
    train: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def probed(n: int = 60, d: int = 7, classes: int = 4, spread: float = 0.25) -> Probed:
    """Unequal classes, called 3, 10, 17, ...; they overlap."""
    drawn = torch.multinomial(torch.arange(1.0, classes + 1), 2 * n, True, generator=torch.Generator().manual_seed(9))
    labels = 7 * drawn + 3
    x = spread * normal(40, d, seed=1)[labels] + normal(2 * n, d, seed=2) * torch.linspace(0.1, 3, d) + 10
    return Probed(x[:n], labels[:n], x[n:], labels[n:])


@pytest.mark.parametrize(("n", "d", "classes"), [(60, 7, 4), (60, 7, 2), (20, 50, 3), (30, 30, 3)])
@pytest.mark.parametrize("ridge", [1e-2, 1.0, 30.0])
def test_the_probe_is_scikit_learns_ridge_classifier(n: int, d: int, classes: int, ridge: float) -> None:
    x, y, asked, answers = map(np.asarray, probed(n, d, classes))
    theirs = RidgeClassifier(alpha=ridge * n * x.var(0).mean()).fit(x, y)
    expected = (theirs.predict(asked) == answers).mean()
    assert 0.2 < expected < 1 or classes == 2
    assert linear_probe(*probed(n, d, classes), ridge=ridge) == pytest.approx(expected, abs=1e-12)


def test_the_probe_has_few_samples_or_few_features_alike() -> None:
    x, y, asked, answers = probed(30, 20)
    wide = torch.cat([x, torch.zeros(30, 20)], 1), torch.cat([asked, torch.zeros(30, 20)], 1)
    assert linear_probe(x, y, asked, answers) == linear_probe(wide[0], y, wide[1], answers, ridge=2e-2)


@pytest.mark.parametrize(("n", "d"), [(60, 7), (20, 50)])
def test_constant_features_give_the_most_frequent_class(n: int, d: int) -> None:
    _, y, _, answers = probed(n, d)
    most = float((answers == y.mode().values).double().mean())
    assert 0.2 < most < 1
    assert linear_probe(torch.full((n, d), 3.0), y, torch.full((n, d), 3.0), answers) == pytest.approx(most)


def test_the_probe_does_not_see_dtype_scale_or_what_classes_are_called() -> None:
    x, y, asked, answers = probed()
    found = linear_probe(x, y, asked, answers)
    assert linear_probe(1e4 * x - 5, y, 1e4 * asked - 5, answers) == found
    assert linear_probe(x.float(), 1000 - y, asked.float(), 1000 - answers) == found
    assert linear_probe(x.bfloat16(), y, asked.bfloat16(), answers) == pytest.approx(found, abs=0.1)


def test_a_class_that_was_never_seen_is_never_right() -> None:
    x, y, asked, answers = probed()
    assert linear_probe(x, y, asked, torch.full_like(answers, 99)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(59)}, r"must be \[n, d\], \[n\], \[m, d\], \[m\]; got \[60, 7\], \[59\]"),
        ({"held_out": torch.zeros(60, 6)}, r"got .*\[60, 6\]"),
        ({"held_out_labels": torch.zeros(60, 1)}, r"got .*\[60, 1\]"),
        ({"train": torch.zeros(60, 7, 1)}, r"got \[60, 7, 1\]"),
        ({"train": torch.zeros(0, 7), "labels": torch.zeros(0)}, ">= 1 sample each; got 0 and 60"),
        ({"held_out": torch.zeros(0, 7), "held_out_labels": torch.zeros(0)}, ">= 1 sample each; got 60 and 0"),
    ],
)
def test_the_probe_names_shapes_that_do_not_fit(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_probe(**(probed()._asdict() | change))
