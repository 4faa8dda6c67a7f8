import pytest
import torch
import torch.nn.functional as F

from pipeline.config import load
from pipeline.recipe import loss


def test_label_smoothing_spreads_the_mass() -> None:
    logits, labels = torch.randn(7, 5, dtype=torch.float64), torch.randint(5, (7,))
    criterion = loss.build(load(None, ["loss.label_smoothing=0.2"]).loss)
    target = F.one_hot(labels, 5) * 0.8 + 0.2 / 5
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(criterion(logits, labels), expected)


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("sum_classes", [False, True])
def test_binary_cross_entropy_is_timms(threshold: float | None, sum_classes: bool) -> None:
    from timm.loss import BinaryCrossEntropy

    theirs = BinaryCrossEntropy(0.1, target_threshold=threshold, sum_classes=sum_classes)
    keys = ["name=binary_cross_entropy", "label_smoothing=0.1", f"sum_classes={sum_classes}"]
    keys += [f"threshold={threshold}"] if threshold else []
    ours = loss.build(load(None, [f"loss.{key}" for key in keys]).loss)
    logits, labels = torch.randn(7, 5), torch.randint(5, (7,))
    torch.testing.assert_close(ours(logits, labels), theirs(logits, labels))
    hot = F.one_hot(labels, 5).float()
    soft = 0.7 * hot + 0.3 * hot.roll(1, 0)
    torch.testing.assert_close(ours(logits, soft), theirs(logits, soft * 0.9 + 0.1 / 5))


@pytest.mark.parametrize("name", ["cross_entropy", "soft_cross_entropy"])
def test_cross_entropy_of_soft_targets_is_timms(name: str) -> None:
    from timm.loss import SoftTargetCrossEntropy

    logits, soft = torch.randn(7, 5), torch.rand(7, 5).softmax(1)
    ours = loss.build(load(None, [f"loss.name={name}", "loss.label_smoothing=0.1"]).loss)
    torch.testing.assert_close(ours(logits, soft), SoftTargetCrossEntropy()(logits, soft * 0.9 + 0.1 / 5))
