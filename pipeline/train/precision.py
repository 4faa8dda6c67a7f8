"""Which arithmetic a network computes in, and its place in memory."""

import contextlib
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pipeline.config.schema import Train

Precision = Literal["fp32", "bf16", "fp16", "fp64"]


def resolve(cfg: Train, device: torch.device) -> Precision:
    """Return the arithmetic to use; `auto` is bf16 where the hardware has it, else fp16 on GPUs and fp32 on CPUs."""
    if cfg.precision != "auto":
        return cfg.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    with contextlib.suppress(OSError):
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
        if flags & {"avx512_bf16", "amx_bf16", "bf16"}:  # emulated elsewhere, and many times slower than fp32
            return "bf16"
    return "fp32"


def autocast_type(cfg: Train, device: torch.device) -> torch.dtype | None:
    """Return the type that autocast computes in, or None where everything is computed as it is stored."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(resolve(cfg, device))


def place(model: nn.Module, cfg: Train, device: torch.device) -> nn.Module:
    """Return the model on the device, its weights in fp32 (fp64 if asked for) and in the memory order asked for."""
    model = model.to(device, torch.float64 if cfg.precision == "fp64" else torch.float32)
    return model.to(memory_format=torch.channels_last) if cfg.channels_last else model
