"""Mixing against torchvision's and timm's, for the same random draws."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from pipeline.config.sections import Mix
from pipeline.data import mixing
from pipeline.recipe.mix import mix

CLASSES = 5


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 3, 12, 12), torch.randint(CLASSES, (6,))


def test_mixup_is_torchvisions(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = batch
    theirs = v2.MixUp(num_classes=CLASSES)
    expected = [theirs.transform(x, {"lam": 0.3, "labels": labels, "batch_size": 6}) for x in (images, labels)]
    found = mix(images.clone(), labels, 0.3, None, CLASSES)
    torch.testing.assert_close(list(found), expected)


def test_cutmix_is_torchvisions(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = batch
    theirs, box = v2.CutMix(num_classes=CLASSES), (2, 3, 9, 7)
    share = 1 - 7 * 4 / 144
    params: dict[str, Any] = {"box": (3, 2, 7, 9), "lam_adjusted": share, "labels": labels, "batch_size": 6}
    expected = [theirs.transform(x, params) for x in (images, labels)]
    found = mix(images.clone(), labels, share, box, CLASSES)
    torch.testing.assert_close(list(found), expected)


def test_mixup_is_timms(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """timm mixes with the batch turned round; ours with the one before."""
    from timm.data.mixup import mixup_target

    _, labels = batch
    _, target = mix(torch.zeros(6, 3, 2, 2), labels, 0.3, None, CLASSES)
    theirs = mixup_target(labels, CLASSES, lam=0.3, smoothing=0.0)
    # The same rule for another pairing: undo the pairing of both.
    own = torch.nn.functional.one_hot(labels, CLASSES).float() * 0.3
    torch.testing.assert_close((target - own).roll(-1, 0), (theirs - own).flip(0))


def drawn(cfg: Mix, n: int = 3000, size: int = 32) -> list[mixing.Mixing | None]:
    return [mixing.choose(cfg, 8 * i, seed=1, epoch=0, size=size) for i in range(n)]


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    shares = [m.share for m in drawn(Mix(mixup=alpha)) if m is not None]
    assert len(shares) == 3000 and stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_boxes_are_distributed_as_torchvisions() -> None:
    ours = [m for m in drawn(Mix(cutmix=1.0)) if m is not None]
    theirs = v2.CutMix(num_classes=CLASSES)
    torch.manual_seed(0)
    sample = [theirs.make_params([torch.zeros(1, 3, 32, 32)]) for _ in range(3000)]
    assert stats.ks_2samp([m.share for m in ours], [p["lam_adjusted"] for p in sample]).pvalue > 1e-3
    boxes = np.array([m.box for m in ours])
    for ours_column, theirs_column in zip((1, 0, 3, 2), range(4), strict=True):
        assert stats.ks_2samp(boxes[:, ours_column], [p["box"][theirs_column] for p in sample]).pvalue > 1e-3


def test_keys_choose_between_the_two() -> None:
    found = drawn(Mix(mixup=0.2, cutmix=1.0, prob=0.8, switch_prob=0.25))
    assert sum(m is None for m in found) / 3000 == pytest.approx(0.2, abs=0.03)
    cut = [m.box is not None for m in found if m is not None]
    assert sum(cut) / len(cut) == pytest.approx(0.25, abs=0.03)
    assert drawn(Mix()) == [None] * 3000
