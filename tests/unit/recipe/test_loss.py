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
