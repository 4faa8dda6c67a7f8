import time

import pytest

from pipeline.track.system import KEYS, Gpus, Sampler


def test_a_sampler_tells_the_means_since_it_was_last_asked():
    sampler = Sampler(every_s=0.1)
    sampler.start()
    try:
        deadline = time.monotonic() + 60
        while len(sampler._samples) < 1:
            assert time.monotonic() < deadline, "no sample was taken"
            sum(range(10_000))
        assert sampler._samples[0]["cpu"] > 0  # this thread was busy
        while len(sampler._samples) < 3:
            assert time.monotonic() < deadline, "no samples were taken"
            sum(range(10_000))
        means, energy_j = sampler.take()
        assert set(means) <= set(KEYS) and {"cpu", "memory_gb", "process_gb", "net_mb_s"} <= set(means)
        assert 0 <= means["cpu"] <= 1
        assert 0.01 < means["process_gb"] < means["memory_gb"]
        assert energy_j == 0
    finally:
        sampler.close()
    assert not sampler._thread.is_alive()


def test_one_that_had_no_time_to_sample_samples_when_asked():
    sampler = Sampler(every_s=3600)
    assert "process_gb" in sampler.take()[0]
    sampler.close()


def test_gpus_that_are_not_there_are_left_out():
    gpus = Gpus(["GPU-00000000-0000-0000-0000-000000000000"])
    assert (gpus.sample(), gpus.energy_j()) == ({}, 0.0)
    gpus.close()


@pytest.mark.gpu
def test_the_jobs_gpu_is_read():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    gpus = Gpus([f"GPU-{torch.cuda.get_device_properties(0).uuid}"])
    found = gpus.sample()
    assert 0 <= found["gpu"] <= 1 and found["gpu_memory_gb"] > 0 and found["gpu_watts"] > 0
    gpus.close()
