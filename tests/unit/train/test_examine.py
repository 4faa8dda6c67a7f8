import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.loader import Batch
from pipeline.train.examine import MOST_CLASSES, WORST, Watch
from pipeline.world import World


class Table(nn.Module):
    """A network that answers each image with the logits written in it."""

    def forward(self, images):
        return images


def batches(logits, labels, size):
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        yield Batch(logits[part], labels[part], np.arange(len(labels))[part])


def watch(logits, labels, size, passes=1):
    found = Watch(Table())
    for batch in found.over(batches(logits, labels, size)):
        for _ in range(passes):
            assert found(batch.images).equal(batch.images)
    return found


@pytest.mark.parametrize("passes", [1, 2])
def test_confusion_and_worst_errors(passes):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=generator), torch.randint(4, (50,), generator=generator)
    found = watch(logits, labels, 8, passes).result(World(), 4)
    predicted = logits.argmax(1)
    for true in range(4):
        for other in range(4):
            assert found.confusion[true, other] == ((labels == true) & (predicted == other)).sum()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    wrong = sorted((-losses[i].item(), i) for i in range(50) if predicted[i] != labels[i])[:WORST]
    assert [error.sample for error in found.worst] == [i for _, i in wrong]
    assert [error.loss for error in found.worst] == pytest.approx([-loss for loss, _ in wrong])
    assert all(error.predicted == predicted[error.sample] and error.label == labels[error.sample] for error in found.worst)


def test_nothing_wrong_nothing_seen_and_too_many_classes():
    perfect = watch(torch.eye(3), torch.arange(3), 2).result(World(), 3)
    assert perfect.worst == () and perfect.confusion.equal(torch.eye(3, dtype=torch.int64))
    nothing = Watch(Table()).result(World(), 3)
    assert nothing.worst == () and nothing.confusion.sum() == 0
    many = watch(torch.eye(3), torch.tensor([0, 1, 1]), 2).result(World(), MOST_CLASSES + 1)
    assert many.confusion is None and [error.sample for error in many.worst] == [2]


def test_evaluating_through_it_leaves_the_networks_mode_alone():
    model = nn.Sequential(nn.BatchNorm1d(3))
    found = Watch(model)
    found.eval()
    assert not model[0].training
    assert not Watch(model).training
    found.train()
    assert model[0].training and Watch(model).training
