import pytest
import torch
from torchvision.transforms import functional as F

from pipeline.data.normalize import Normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]
)
def test_it_is_torchvision_s_to_tensor_and_normalize(dtype: torch.dtype, tolerance: float) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(60).view(2, 16, 160, 3).permute(0, 3, 1, 2)
    out = Normalize(MEAN, STD, CPU, dtype)(images)
    expected = F.normalize(images.double() / 255, MEAN, STD)
    assert (out.double() - expected).abs().max() <= tolerance
    assert out.dtype == dtype


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_result_is_channels_last(channels_last: bool) -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    given = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    out = Normalize(MEAN, STD, CPU, torch.float32)(given)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(out, F.normalize(images / 255, MEAN, STD), atol=1e-6)
