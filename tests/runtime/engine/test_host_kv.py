import inspect
import os
import subprocess
import sys

import pytest

from runtime.engine.host_kv import HostKv, HostKvFullError, LeasedHostKv


@pytest.fixture
def host():
    kv = HostKv.create(4096, slab_bytes=1024, min_block_bytes=64)
    yield kv
    kv.check_integrity()
    kv.close()


def test_host_kv_gives_a_slab_to_one_size(host):
    small, large = host.take(64, 1), host.take(256, 1)
    assert small[0] // 1024 != large[0] // 1024
    assert host.free(64) == 15 + 2 * 16
    assert host.taken() == 320


def test_host_kv_slab_serves_any_size_when_it_is_empty_again(host):
    taken = host.take(64, 64)
    assert host.free(512) == 0
    host.give(64, taken)
    assert host.free(512) == 8


def test_host_kv_without_room_takes_nothing(host):
    host.take(256, 15)
    with pytest.raises(HostKvFullError, match="2 blocks of 256 bytes, room for 1"):
        host.take(256, 2)
    assert host.taken() == 15 * 256


def test_host_kv_refuses_a_block_given_twice(host):
    taken = host.take(64, 2)
    host.give(64, taken[:1])
    with pytest.raises(AssertionError):
        host.give(64, taken[:1])


def test_host_kv_is_one_memory_in_all_that_attach(host):
    other = HostKv.attach(host.fd)
    mine, theirs = host.take(64, 3), other.take(64, 3)
    assert not set(mine) & set(theirs)
    host.view(mine[0], 64).fill_(7)
    assert other.view(mine[0], 64).tolist() == [7] * 64
    other.give(64, mine)
    assert host.taken() == 3 * 64
    other.close()


def test_leased_host_kv_uses_its_lease_and_leaves_the_book_alone(host):
    lease = host.take(256, 3)
    leased = LeasedHostKv.attach(host.fd)
    leased.lease = list(lease)
    with pytest.raises(HostKvFullError, match="4 blocks of 256 bytes, 3 leased"):
        leased.take(256, 4)
    assert leased.take(256, 2) == lease[:2]
    with pytest.raises(HostKvFullError):
        leased.take(256, 1)  # what is left of a lease is not for the next one
    leased.give(256, lease)
    assert host.taken() == 3 * 256
    leased.close()


def use(host: HostKv, number: int, times: int) -> None:
    """Take, write, read and give back; what others take meanwhile is not ours."""
    for _ in range(times):
        taken = host.take(64, 3)
        for offset in taken:
            assert int(host.view(offset, 64).max()) == 0, "someone else wrote here"
            host.view(offset, 64).fill_(number)
        for offset in taken:
            assert host.view(offset, 64).tolist() == [number] * 64
            host.view(offset, 64).fill_(0)
        host.give(64, taken)


CHILD = f"""
import sys
from runtime.engine.host_kv import HostKv
{inspect.getsource(use)}
host = HostKv.attach(int(sys.argv[1]))
print(flush=True)
use(host, 1, 300)
"""


def test_host_kv_processes_never_take_the_same_block(host):
    os.set_inheritable(host.fd, True)
    command = [sys.executable, "-c", CHILD, str(host.fd)]
    with subprocess.Popen(command, close_fds=False, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        while child.poll() is None:
            use(host, 2, 10)
    assert child.returncode == 0
    assert host.taken() == 0
