"""Augmentation: which operations are chosen, against timm and torchvision, and what each does to pixels."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import AutoAugment, ColorJitter, InterpolationMode, RandomErasing, TrivialAugmentWide
from torchvision.transforms import functional as F

from pipeline.config import Config
from pipeline.config.sections import Augment
from pipeline.data import augment, pixels, tensors
from pipeline.data.augment import Choices, Op
from pipeline.data.batch import Batch
from pipeline.data.dataset import Dataset
from pipeline.data.loader import eval_batch, eval_loader, train_loader
from pipeline.world import World

SIZE = 64
CHANCE = 1e-3  # see test_plan
MEAN = (0.485, 0.456, 0.406)


def chosen(cfg: Augment, n: int = 4000, *, seed: int = 0, size: int = SIZE) -> Choices:
    found = augment.choose(cfg, np.arange(n), seed=seed, epoch=0, size=size, mean=MEAN)
    assert found is not None
    return found


def photo(seed: int = 0, low: int = 0, high: int = 256) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(low, high, (6, 6, 3), dtype=np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(coarse) + rng.normal(0, 6, (SIZE, SIZE, 3))).clip(low, high - 1).astype(np.uint8))


VALUES = {
    Op.SHEAR_X: [-0.3, 0.17, 0.99],
    Op.SHEAR_Y: [-0.3, 0.17, 0.99],
    Op.TRANSLATE_X: [-7, 3, 11.4],
    Op.TRANSLATE_Y: [-7, 3, 11.4],
    Op.ROTATE: [-30, 12.5, 135],
    Op.BRIGHTNESS: [0.1, 0.7, 1.9],
    Op.COLOR: [0, 0.7, 1.9],
    Op.CONTRAST: [0.1, 0.7, 1.9],
    Op.SHARPNESS: [0.1, 0.7, 1.9],
    Op.POSTERIZE: [0, 4, 8],
    Op.SOLARIZE: [0, 127.5, 256],
    Op.SOLARIZE_ADD: [0, 64, 128],
    Op.AUTOCONTRAST: [0],
    Op.EQUALIZE: [0],
    Op.INVERT: [0],
    Op.HUE: [-0.4, 0.1, 0.5],
}


@pytest.mark.parametrize("op", VALUES, ids=lambda op: op.name)
def test_tensors_and_pil_agree(op: Op) -> None:
    """Exact but for rounding where a place between pixels is looked up, and for hue, which PIL keeps in 8 bits."""
    images = [photo(0), photo(1, 40, 190), Image.new("RGB", (SIZE, SIZE), (7, 130, 250))]
    batch = torch.stack([F.pil_to_tensor(image) for image in images])
    for value in VALUES[op]:
        ours = tensors.apply(batch.clone(), op, [value] * 3, (10, 20, 30)).int()
        theirs = torch.stack([F.pil_to_tensor(pixels.apply(image, op, value, (10, 20, 30))) for image in images]).int()
        difference = (ours - theirs).abs()
        if op is Op.HUE:
            assert difference.double().mean() < 3
        elif op in (Op.SHEAR_X, Op.SHEAR_Y, Op.ROTATE, Op.TRANSLATE_X, Op.TRANSLATE_Y):
            assert (difference > 1).double().mean() < 0.002, value  # a place on the very border falls to either side
        else:
            assert difference.max() <= 1, (value, difference.max())


TORCHVISION: dict[Op, Callable[[Image.Image, float], Image.Image]] = {
    Op.BRIGHTNESS: F.adjust_brightness,
    Op.COLOR: F.adjust_saturation,
    Op.CONTRAST: F.adjust_contrast,
    Op.SHARPNESS: F.adjust_sharpness,
    Op.POSTERIZE: lambda image, value: F.posterize(image, int(value)),
    Op.SOLARIZE: F.solarize,
    Op.AUTOCONTRAST: lambda image, value: F.autocontrast(image),
    Op.EQUALIZE: lambda image, value: F.equalize(image),
    Op.INVERT: lambda image, value: F.invert(image),
    Op.HUE: F.adjust_hue,
    Op.ROTATE: lambda image, value: F.rotate(image, value, InterpolationMode.BILINEAR),
    Op.TRANSLATE_X: lambda image, value: F.affine(image, 0, [-int(value), 0], 1, [0, 0], InterpolationMode.BILINEAR),
    Op.TRANSLATE_Y: lambda image, value: F.affine(image, 0, [0, -int(value)], 1, [0, 0], InterpolationMode.BILINEAR),
    Op.SHEAR_X: lambda image, value: F.affine(
        image, 0, [0, 0], 1, [math.degrees(math.atan(value)), 0], InterpolationMode.BILINEAR, center=[0, 0]
    ),
    Op.SHEAR_Y: lambda image, value: F.affine(
        image, 0, [0, 0], 1, [0, math.degrees(math.atan(value))], InterpolationMode.BILINEAR, center=[0, 0]
    ),
}


@pytest.mark.parametrize("op", TORCHVISION, ids=lambda op: op.name)
def test_operations_are_torchvisions(op: Op) -> None:
    image = photo(3)
    for value in VALUES[op]:
        if (op in (Op.TRANSLATE_X, Op.TRANSLATE_Y) and value % 1) or (op is Op.POSTERIZE and not value):
            continue  # torchvision moves by whole pixels only, and keeps a bit; so do its policies
        ours = np.asarray(pixels.apply(image, op, value, (0, 0, 0))).astype(int)
        theirs = np.asarray(TORCHVISION[op](image, value)).astype(int)
        # torchvision's affine sees pixel centres half a pixel away from PIL's, which shifts a sheared image by less than one.
        allowed = 12 if op in (Op.SHEAR_X, Op.SHEAR_Y) else 0.001
        assert np.abs(ours - theirs).mean() <= allowed, value


def test_trivialaugment_is_drawn_as_torchvisions() -> None:
    found = chosen(Augment(policy="trivial"), 31 * 14 * 20)
    assert found.ops.shape == (31 * 14 * 20, 1)
    space = TrivialAugmentWide()._augmentation_space(31)
    counts = Counter(found.ops[:, 0].tolist())
    assert stats.chisquare(list(counts.values())).pvalue > CHANCE and len(counts) == len(space) == 14
    for name, (levels, signed) in space.items():
        op = Op.IDENTITY if name == "Identity" else augment._BY_NAME[name]
        ours = set(np.round(found.values[found.ops[:, 0] == op, 0], 9).tolist())
        theirs = levels.tolist() if levels.ndim else [0.0]
        theirs = [*theirs, *(-v for v in theirs)] if signed else theirs
        if name.startswith("Translate"):
            theirs = [int(v + 1e-4 * np.sign(v)) for v in theirs]  # 15.9999 in single precision
        if op in (Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS):
            theirs = [1 + v for v in theirs]
        assert sorted(ours) == pytest.approx(sorted({round(float(v), 5) for v in theirs}), abs=1e-4), name


def test_autoaugment_is_drawn_as_torchvisions() -> None:
    n = 25 * 400
    found = chosen(Augment(policy="autoaugment"), n)
    policy = AutoAugment()
    expected: Counter[tuple[int, int]] = Counter()
    for first, second in policy.policies:
        for a, p in ((augment._BY_NAME[first[0]], first[1]), (Op.IDENTITY, 1 - first[1])):
            for b, q in ((augment._BY_NAME[second[0]], second[1]), (Op.IDENTITY, 1 - second[1])):
                expected[int(a), int(b)] += p * q / 25 * n
    counts = Counter(map(tuple, found.ops.tolist()))
    assert {pair for pair, share in expected.items() if share > 1e-6} == set(counts)
    for pair, share in expected.items():
        if share > 1e-6:
            assert abs(counts[pair] - share) < 5 * math.sqrt(share), pair
    space = policy._augmentation_space(10, (SIZE, SIZE))
    levels = {name: values.tolist() for name, (values, _) in space.items() if values.ndim}
    for name in ("ShearX", "Rotate", "Posterize", "Solarize"):
        ours = found.values[found.ops == augment._BY_NAME[name]]
        assert set(np.abs(ours).round(4).tolist()) <= {round(v, 4) for v in levels[name]}, name


def test_randaugment_is_timms() -> None:
    """At every strength each operation gets timm's arguments, and gives timm's pixels."""
    from timm.data import auto_augment as theirs

    names = {
        "ShearX": Op.SHEAR_X, "ShearY": Op.SHEAR_Y, "TranslateXRel": Op.TRANSLATE_X, "TranslateYRel": Op.TRANSLATE_Y,
        "Rotate": Op.ROTATE, "BrightnessIncreasing": Op.BRIGHTNESS, "ColorIncreasing": Op.COLOR,
        "ContrastIncreasing": Op.CONTRAST, "SharpnessIncreasing": Op.SHARPNESS, "PosterizeIncreasing": Op.POSTERIZE,
        "SolarizeIncreasing": Op.SOLARIZE, "SolarizeAdd": Op.SOLARIZE_ADD, "AutoContrast": Op.AUTOCONTRAST,
        "Equalize": Op.EQUALIZE, "Invert": Op.INVERT,
    }  # fmt: skip
    assert set(names) == set(theirs._RAND_INCREASING_TRANSFORMS) and set(names.values()) == set(augment._RAND_OPS)
    image = photo(5)
    for name, op in names.items():
        for level in (0.0, 3.3, 6.0, 7.0, 10.0):
            to_arguments = theirs.LEVEL_TO_ARG[name]
            values = {s: float(augment._rand_values(np.array([op]), np.array([s * level / 10]), SIZE)[0]) for s in (-1, 1)}
            arguments = to_arguments(level, {"translate_pct": 0.45}) if to_arguments else ()
            if "Translate" in name:
                arguments = (arguments[0] * SIZE,)
            if arguments:
                assert any(arguments[0] == pytest.approx(v) for v in values.values()), (name, level)
            value = min(values.values(), key=lambda v: abs(v - (arguments[0] if arguments else v)))
            if op is Op.POSTERIZE and value < 1:
                continue  # timm lets PIL refuse it
            absolute = theirs.translate_x_abs if "X" in name else theirs.translate_y_abs
            operation = absolute if "Translate" in name else theirs.NAME_TO_OP[name]
            got = operation(image, *arguments, fillcolor=(1, 2, 3), resample=Image.Resampling.BILINEAR)
            expected = np.asarray(got).astype(int)
            ours = np.asarray(pixels.apply(image, op, value, (1, 2, 3))).astype(int)
            assert np.abs(ours - expected).mean() <= 0.02, (name, level)


def test_randaugment_follows_its_keys() -> None:
    found = chosen(Augment(policy="randaugment", n=3, magnitude=6, std=0.5, prob=0.7), 20000)
    assert found.ops.shape == (20000, 3)
    assert (found.ops == Op.IDENTITY).mean() == pytest.approx(0.3, abs=0.01)
    degrees = np.abs(found.values[found.ops == Op.ROTATE])
    assert degrees.mean() == pytest.approx(18, abs=0.15) and degrees.std() == pytest.approx(1.5, abs=0.1)
    assert (found.values[found.ops == Op.ROTATE] > 0).mean() == pytest.approx(0.5, abs=0.03)


def test_color_jitter_is_drawn_as_torchvisions() -> None:
    found = chosen(Augment(jitter=(0.4, 0.3, 0.2, 0.1)), 4000)
    ranges = ColorJitter(0.4, 0.3, 0.2, 0.1)
    for op, span in ((Op.BRIGHTNESS, ranges.brightness), (Op.CONTRAST, ranges.contrast), (Op.COLOR, ranges.saturation),
                     (Op.HUE, ranges.hue)):  # fmt: skip
        values = found.values[found.ops == op]
        assert len(values) == 4000 and stats.kstest(values, stats.uniform(span[0], span[1] - span[0]).cdf).pvalue > CHANCE
    assert len({tuple(row) for row in found.ops.tolist()}) == 24  # every order


def test_erasing_is_drawn_as_torchvisions() -> None:
    found = chosen(Augment(erase=1.0), 3000).erase
    torch.manual_seed(0)
    canvas = torch.empty(3, SIZE, SIZE)
    theirs = np.array([RandomErasing.get_params(canvas, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(3000)])
    for column in range(4):
        assert stats.ks_2samp(found[:, column], theirs[:, column]).pvalue > CHANCE
    assert (chosen(Augment(erase=0.1)).erase[:, 2] > 0).mean() == pytest.approx(0.1, abs=0.02)
    assert augment.choose(Augment(), np.arange(3), seed=0, epoch=0, size=8, mean=MEAN) is None


def test_a_padded_crop_is_a_shift() -> None:
    found = chosen(Augment(pad=4, fill="mean"), 500)
    image, seen = photo(2), set()
    padded = F.pad(image, [4], fill=found.fill)
    for place in range(500):
        ours = pixels.augment(np.asarray(image), found, place)
        x, y = (found.values[place] * (found.ops[place] > 0)).astype(int).tolist()
        seen.add((x, y))
        assert np.array_equal(ours, np.asarray(padded.crop((4 + x, 4 + y, 4 + x + SIZE, 4 + y + SIZE)))), (x, y)
    assert len(seen) > 75 and max(x for x, _ in seen) == 4 and min(y for _, y in seen) == -4


@pytest.mark.parametrize("cfg", [Augment(policy="trivial", erase=0.5), Augment(policy="randaugment", grayscale=0.3, pad=3)])
def test_whole_batches_of_tensors_agree_with_pil(cfg: Augment) -> None:
    found = chosen(cfg, 64)
    batch = np.stack([np.asarray(photo(seed)) for seed in range(64)])
    ours = tensors.augment(torch.from_numpy(batch.copy()), found).int()
    theirs = torch.from_numpy(np.stack([pixels.augment(one, found, place) for place, one in enumerate(batch)])).int()
    assert (ours - theirs).abs().double().mean() < 0.3
    assert (ours - torch.from_numpy(batch).int()).abs().double().mean() > 5


def test_it_depends_on_seed_epoch_and_position_alone() -> None:
    cfg = Augment(policy="randaugment", erase=0.3)
    whole = chosen(cfg, 50)
    part = augment.choose(cfg, np.arange(20, 30), seed=0, epoch=0, size=SIZE, mean=MEAN)
    assert part is not None and np.array_equal(part.ops, whole.ops[20:30]) and np.array_equal(part.erase, whole.erase[20:30])
    assert not np.array_equal(chosen(cfg, 50, seed=1).ops, whole.ops)


STRONG = ("augment.policy=randaugment", "augment.erase=0.3", "augment.grayscale=0.2", "data.repeats=2", "mix.mixup=0.2")


def batches(
    cfg: Config, dataset: Dataset, plan_for: Callable[..., object], rank: int = 0, size: int = 1, start: int = 0
) -> list[Batch]:
    world = World(rank=rank, size=size)
    loader = train_loader(cfg, plan_for(cfg, dataset, world), world, dataset, start)  # type: ignore[arg-type]
    found = [Batch(b.images.clone(), b.labels, b.ids, b.mixing) for b in loader]
    loader.close()
    return found


@pytest.mark.parametrize("executor", ["dali", "hybrid"])
def test_executors_augment_alike_over_worlds_and_from_the_middle(
    executor: str, image_config: Callable[..., Config], image_data: Dataset, plan_for: Callable[..., object]
) -> None:
    cfg = image_config(*STRONG, "data.interpolation=bicubic", f"data.executor={executor}")
    alone = batches(cfg, image_data, plan_for)
    reference = batches(image_config(*STRONG, "data.interpolation=bicubic", "data.executor=reference"), image_data, plan_for)
    difference = torch.cat([(a.images.int() - b.images.int()).abs() for a, b in zip(alone, reference, strict=True)])
    # Operations that look at all pixels (equalize, solarize) make more of a unit that decoding and resizing differ by.
    assert difference.double().mean() < 1.2
    shared = [b for pair in zip(*(batches(cfg, image_data, plan_for, rank, 2) for rank in range(2)), strict=True) for b in pair]
    assert all(torch.equal(a.images, b.images) and a.mixing == b.mixing for a, b in zip(shared, alone, strict=True))
    resumed = batches(cfg, image_data, plan_for, start=3)
    assert len(resumed) == 4 and all(torch.equal(a.images, b.images) for a, b in zip(resumed, alone[12:], strict=True))
    plain = batches(image_config("data.repeats=2", f"data.executor={executor}"), image_data, plan_for)
    assert not any(torch.equal(a.images, b.images) for a, b in zip(plain, alone, strict=True))


def test_repeats_stand_in_different_micro_batches(
    image_config: Callable[..., Config], image_data: Dataset, plan_for: Callable[..., object]
) -> None:
    found = batches(image_config("data.repeats=4"), image_data, plan_for)
    for step in range(len(found) // 4):
        micros = found[4 * step : 4 * step + 4]
        assert len({tuple(m.ids.tolist()) for m in micros}) == 1 and len(set(micros[0].ids.tolist())) == 2
        assert len({m.images.numpy().tobytes() for m in micros}) == 4  # each with other crops


def test_images_grow_between_epochs(
    image_config: Callable[..., Config], image_data: Dataset, plan_for: Callable[..., object]
) -> None:
    keys = ("resize.start=32", "resize.begin=0ep", "resize.end=2ep", "resize.multiple=32", "train.epochs=3")
    for executor in ("dali", "hybrid", "reference", "synthetic"):
        found = batches(image_config(*keys, f"data.executor={executor}"), image_data, plan_for)
        sides = [b.images.shape[-1] for b in found]
        assert sides == [32] * 8 + [64] * 8 + [96] * 8
        assert all(b.images.is_contiguous(memory_format=torch.channels_last) for b in found)


def test_all_that_can_be_drawn_at_once_has_its_numbers() -> None:
    most = Augment(policy="randaugment", n=16, pad=4, jitter=(0.1, 0.1, 0.1, 0.1), grayscale=0.1, erase=0.1)
    assert chosen(most, 20).ops.shape == (20, 2 + 16 + 4 + 1)


def test_a_draw_of_zero_is_a_strength_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 2^32 is, which ImageNet's recipes of hundreds of epochs come across."""
    monkeypatch.setattr(augment.order, "draws", lambda positions, *_: np.zeros((len(positions), 96)))
    for std in (0.0, 0.5):
        found = chosen(Augment(policy="randaugment", magnitude=7, std=std), 2)
        assert np.isfinite(found.values).all()


def test_pictures_are_resized_as_evaluation_does(image_config: Callable[..., Config], image_data: Dataset) -> None:
    cfg = image_config("data.interpolation=bicubic", "data.executor=reference")
    (first, *_) = eval_loader(cfg, World(), image_data.val)
    again = eval_batch(cfg, World(), image_data.val, first.ids.tolist())
    assert torch.equal(first.images, again.images)
