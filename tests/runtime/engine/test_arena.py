"""The arena: all bytes accounted for, slots apart, the first slot that fits."""

import pytest

from runtime.engine.arena import Arena
from runtime.errors import UserError

MB = 1 << 20


def test_arena_is_all_the_device_holds_and_all_of_it_is_slots_or_kv(device):
    arena = Arena(device, 10 * MB, [3 * MB, MB, 100])
    arena.check_integrity()
    assert device.memory_used() == 10 * MB
    assert arena.kv.numel() == 6 * MB - 4096
    assert [arena.slot(i).numel() for i in range(len(arena))] == [3 * MB, MB, 4096]
    assert all(arena.slot(i).data_ptr() % 256 == 0 for i in range(3))


def test_arena_slots_do_not_share_bytes(device):
    arena = Arena(device, 3 * MB, [MB, MB])
    for i in range(2):
        arena.slot(i).fill_(i + 1)
    arena.kv.fill_(9)
    assert arena.slot(0).eq(1).all()
    assert arena.slot(1).eq(2).all()


def test_arena_fits_a_model_into_the_smallest_vacant_slot(device):
    arena = Arena(device, 8 * MB, [4 * MB, MB, MB])
    assert arena.fit(MB) == 1
    arena.take(1, MB)
    assert arena.fit(MB) == 2
    arena.take(2, 5)
    assert arena.fit(1) == 0
    arena.take(0, 2 * MB)
    assert arena.fit(1) is None
    assert arena.weight_bytes_used == 3 * MB + 5
    assert arena.weight_bytes_free == 0
    arena.give(0)
    assert arena.fit(5 * MB) is None
    assert arena.fit(4 * MB) == 0
    assert arena.weight_bytes_free == 4 * MB
    arena.check_integrity()


def test_arena_slot_is_held_by_one_model(device):
    arena = Arena(device, 2 * MB, [MB])
    arena.take(0, 10)
    with pytest.raises(AssertionError, match="is held"):
        arena.take(0, 10)


@pytest.mark.parametrize(("nbytes", "slots"), [(MB, [2 * MB]), (MB, []), (MB, [0]), (100, [50])])
def test_arena_without_room_for_its_slots_is_refused(device, nbytes, slots):
    with pytest.raises(UserError, match=r"engine\.memory_bytes"):
        Arena(device, nbytes, slots)
