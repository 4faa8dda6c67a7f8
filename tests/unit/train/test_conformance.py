from pipeline.config import load, make_plan
from pipeline.train.conformance import band


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
