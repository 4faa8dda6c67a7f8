import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from pipeline.train.metrics import Late, Sums, batch_sums
from pipeline.world import World


@given(st.integers(1, 40), st.integers(3, 12), st.integers(0, 2**31))
def test_sums_against_scikit_learn(n: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)
    sums = Sums(*batch_sums(logits, labels).tolist())

    def score(k: int) -> float:
        if k >= classes:
            return 1.0
        return float(top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=np.arange(classes)))

    assert sums.count == n
    assert sums.means()["top1"] == pytest.approx(score(1))
    assert sums.means()["top5"] == pytest.approx(score(5))
    assert sums.means()["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_batches_of_any_sizes_add_up_to_the_whole(sizes: list[int]) -> None:
    n = sum(sizes)
    logits, labels = torch.randn(n, 7, dtype=torch.float64), torch.randint(7, (n,))
    parts = zip(logits.split(sizes), labels.split(sizes), strict=True)
    total = Sums(0, 0, 0, 0)
    for part_logits, part_labels in parts:
        total += Sums(*batch_sums(part_logits, part_labels).tolist())
    whole = Sums(*batch_sums(logits, labels).tolist())
    assert (total.top1, total.top5, total.count) == (whole.top1, whole.top5, whole.count)
    assert total.loss == pytest.approx(whole.loss, rel=1e-5)


def test_late_gives_each_step_once_one_step_later() -> None:
    late = Late(World())
    given_back = [late.push(step, torch.full((5,), float(step), dtype=torch.float64), stop=step == 3) for step in (1, 2, 3)]
    last = late.pop()
    assert given_back[0] is None
    assert [found[0] for found in (*given_back[1:], last) if found] == [1, 2, 3]
    assert last is not None and last[1].stop == 1.0 and last[1].loss == 3.0
    assert given_back[2] is not None and given_back[2][1].stop == 2.0  # nothing but the flag is changed
    assert late.pop() is None
