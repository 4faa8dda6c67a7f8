"""The side of training images over time, a pure function of the epoch."""

from collections.abc import Callable

from pipeline.config import Config, Plan


def resolution(cfg: Config, plan: Plan) -> Callable[[int], int]:
    """Return the function from epoch (0, 1, ...) to the side of training images in pixels.

    Between the ramp's ends it rises linearly, in multiples of `resize.multiple`; the size changes between epochs only.

    Source: progressive resizing as in ffcv-imagenet's `get_resolution` (https://github.com/libffcv/ffcv-imagenet).
    """
    full, ramp = cfg.data.resolution, cfg.resize
    start = ramp.start
    if start is None:
        return lambda epoch: full
    begin, end = (p.steps(plan.steps_per_epoch, plan.total_steps) / plan.steps_per_epoch for p in (ramp.begin, ramp.end))

    def side(epoch: int) -> int:
        if epoch <= begin:
            return start
        if epoch >= end:
            return full
        between = start + (full - start) * (epoch - begin) / (end - begin)
        return min(full, max(start, round(between / ramp.multiple) * ramp.multiple))

    return side
