from pipeline.train.machines import Machines
from pipeline.world import World


def test_each_node_is_told_under_its_number():
    with Machines(World(), 3600) as machines:
        told, energy_j = machines.gather()
    assert {"system/node0/cpu", "system/node0/memory_gb"} <= set(told) and energy_j == 0
    second_node = World(rank=2, size=4, local_rank=0, local_size=2)
    with Machines(second_node, 3600) as machines:
        assert {key.split("/")[1] for key in machines.gather()[0]} == {"node1"}


def test_one_process_of_a_node_samples_and_none_where_it_is_off():
    with Machines(World(rank=1, size=2, local_rank=1, local_size=2), 3600) as machines:
        assert machines.gather() == ({}, 0.0)
    with Machines(World(), None) as machines:
        assert machines.gather() == ({}, 0.0)
