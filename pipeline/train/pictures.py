"""Pictures and tables that go with a run: batches as the network sees them, curves, the confusion matrix."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.files import write_atomically
from pipeline.track.curves import Points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8
_SMALLEST = 96  # pixels: smaller images are enlarged, so that their captions fit
_CAPTION = 30  # pixels: two lines of the default font


def grid(images: Tensor, captions: Sequence[str], path: Path) -> None:
    """Write uint8[B, 3, S, S] images as a PNG, `COLUMNS` a row, each with a caption of up to two lines below.

    Raises:
        UsageError: if the file can't be written.
    """
    pixels: NDArray[np.uint8] = images.permute(0, 2, 3, 1).cpu().numpy()
    side = max(pixels.shape[1], _SMALLEST)
    columns = min(COLUMNS, len(pixels))
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + _CAPTION + 4)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        x, y = place % columns * (side + 4) + 2, place // columns * (side + _CAPTION + 4) + 2
        sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (x, y))
        shown = "\n".join(_fitting(line, font, side) for line in caption.splitlines()[:2])
        draw.multiline_text((x, y + side), shown, fill="black", font=font, spacing=1)
    write_atomically(path, lambda temporary: sheet.save(temporary, "PNG"))


def _fitting(text: str, font: Any, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text


def curves(points: Points, path: Path) -> None:
    """Write loss, accuracy and learning rate against steps as one PNG.

    Raises:
        UsageError: if the file can't be written.
    """
    figure = _figure(12, 3.6)
    panels = {"loss": ("train/loss", "val/loss"), "top-1": ("train/top1", "val/top1"), "learning rate": ("train/lr",)}
    for axes, (title, keys) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for key in keys:
            if key in points:
                axes.plot(*points[key], label=key, marker="." if key.startswith("val/") else None)
                axes.legend(frameon=False)
        axes.set(title=title, xlabel="optimiser steps")
        axes.grid(alpha=0.3)
    _save(figure, path)


def confusion(matrix: Tensor, classes: Sequence[str], path: Path) -> None:
    """Write an int64 [classes, classes] confusion matrix as a PNG, each row in shares of its true class.

    Raises:
        UsageError: if the file can't be written.
    """
    counts = matrix.numpy().astype(np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _figure(8, 7)
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 30:
        ticks = range(len(classes))
        axes.set_xticks(ticks, classes, rotation=90)
        axes.set_yticks(ticks, classes)
        for row, column in zip(*counts.nonzero(), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=7)
    _save(figure, path)


def per_class(matrix: Tensor, classes: Sequence[str], path: Path) -> None:
    """Write a CSV with a line for each class: images, top-1 accuracy, and the class that it is most often taken for.

    Raises:
        UsageError: if the file can't be written.
    """
    counts = matrix.numpy()
    others = counts - np.diag(np.diag(counts))

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["class", "images", "top1", "most_taken_for", "times"])
            for i, name in enumerate(classes):
                n, worst = int(counts[i].sum()), int(others[i].argmax())
                times = int(others[i, worst])
                accuracy = f"{counts[i, i] / n:.6f}" if n else ""
                writer.writerow([name, n, accuracy, classes[worst] if times else "", times])

    write_atomically(path, write)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # slow to import, and only needed at the end

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
