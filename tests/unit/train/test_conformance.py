from pipeline.config import load, make_plan
from pipeline.train.conformance import band, never_compared


def test_a_band_is_for_its_epoch_and_its_data() -> None:
    cfg = load(None, ["expect.top1={5: [0.48, 0.53]}", "expect.images=1000", "batch.global=100", "batch.micro=50"])
    plan = make_plan(cfg, world_size=1, train_images=1000, val_images=1, classes=2)
    found = band(cfg, plan, 50, 0.412)
    assert found is not None and not found.inside
    assert str(found) == "epoch 5: 41.2% top-1, expected 48-53 %"
    inside = band(cfg, plan, 50, 0.5)
    assert inside is not None and inside.inside
    assert band(cfg, plan, 40, 0.1) is None and band(cfg, plan, 51, 0.1) is None
    other = make_plan(cfg, world_size=1, train_images=1001, val_images=1, classes=2)
    assert band(cfg, other, 50, 0.1) is None


def test_bands_that_no_evaluation_meets_are_told_of() -> None:
    given = ("expect.top1={1: [0, 1], 2: [0, 1], 3: [0, 1], 9: [0, 1]}", "train.epochs=3", "schedule.warmup=0ep")
    for every, images, missed in (
        ("1ep", 1000, []),
        ("0.5ep", 1000, []),
        ("2ep", 1000, [1]),
        ("4ep", 1000, [1, 2]),
        ("4ep", 990, []),
    ):
        cfg = load(None, [*given, f"eval.every={every}", "expect.images=1000", "batch.global=10", "batch.micro=10"])
        plan = make_plan(cfg, world_size=1, train_images=images, val_images=1, classes=2)
        assert never_compared(cfg, plan) == missed
