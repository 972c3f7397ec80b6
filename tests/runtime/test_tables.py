"""Table sets reached through one pointer: layout errors, replacement, nesting, batches."""

import pickle
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import pytest
from numba import njit

from runtime.tables import LINE_BYTES, Field, Tables, at

ROW = np.dtype([("a", "i8"), ("b", "f8")], align=True)


class Small(Tables):
    layout: ClassVar = {"rows": Field(ROW), "grid": Field(np.int64, 2)}


class Outer(Tables):
    layout: ClassVar = {"scale": Field(np.float64), "small": Small}


def small(n: int = 2) -> Small:
    rows = np.zeros(n, ROW)
    rows["a"], rows["b"] = np.arange(n), 0.5
    return Small(rows=rows, grid=np.arange(6).reshape(2, 3))


def outer(inner: Small) -> Outer:
    return Outer(scale=np.array([10.0]), small=inner)


@njit
def total(tables: Small) -> float:
    return tables.rows["a"].sum() + tables.rows["b"].sum()


@njit
def corner(tables: Small) -> tuple[int, int, int]:
    return tables.grid[1, 0], tables.grid.shape[0], tables.grid.shape[1]


@njit
def scaled(tables: Outer) -> float:
    return tables.scale[0] * tables.small.rows[1].a


@njit
def set_a(tables: Small, i: int, value: int) -> None:
    tables.rows[i].a = value


@njit
def fill_grid(tables: Small, value: int) -> None:
    for i in range(tables.grid.shape[0]):
        for j in range(tables.grid.shape[1]):
            tables.grid[i, j] = value + tables.grid[i][j]


def test_kernels_write_rows_and_cells_of_a_field() -> None:
    tables = small()
    set_a(tables, 1, 7)
    fill_grid(tables, 10)
    assert tables.rows["a"].tolist() == [0, 7]
    assert tables.grid.tolist() == [[10, 11, 12], [13, 14, 15]]


view = at(Small)


@njit
def total_of_batch(addresses: Any) -> float:
    result = 0.0
    for address in addresses:
        result += total(view(address))
    return result


@pytest.mark.parametrize(
    "fields",
    [{"rows": np.zeros(1, ROW)}, {"rows": np.zeros(1, ROW), "grid": np.zeros((1, 1), int), "x": 1}],
)
def test_tables_need_exactly_the_fields_of_the_layout(fields: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Small needs \['rows', 'grid'\], got"):
        Small(**fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", np.zeros(2, np.int64)),  # dtype
        ("grid", np.zeros(4, np.int64)),  # axes
        ("grid", np.zeros((2, 2), np.int32)),
        ("grid", np.zeros((4, 4), np.int64)[:, ::2]),  # strides
        ("grid", np.asfortranarray(np.zeros((2, 3), np.int64))),
    ],
)
def test_put_refuses_what_a_kernel_would_misread(name: str, value: Any) -> None:
    tables = small()
    before = tables.header.copy()
    with pytest.raises(TypeError, match=f"Small.{name}: "):
        tables.put(name, value)
    assert np.array_equal(tables.header, before)


def test_fields_are_replaced_by_put_only() -> None:
    tables = small()
    with pytest.raises(AttributeError, match=r"Small\.rows: use put\(\)"):
        tables.rows = np.zeros(1, ROW)
    tables.note = "other attributes are free"
    assert tables.note


def test_kernels_and_python_share_one_memory() -> None:
    tables = small()
    set_a(tables, 1, 41)
    assert tables.rows["a"].tolist() == [0, 41]
    tables.rows["a"][0] = 1
    assert total(tables) == 43.0


def test_kernels_see_an_array_that_was_put() -> None:
    tables = small()
    assert corner(tables) == (3, 2, 3)
    tables.put("grid", np.full((5, 1), 7))
    assert corner(tables) == (7, 5, 1)
    tables.put("rows", small(100).rows)
    assert total(tables) == 99 * 50 + 50.0


def test_nested_tables_are_held_by_reference() -> None:
    shared = small()
    tables = outer(shared)
    shared.put("rows", small(9).rows)
    set_a(shared, 1, 6)
    assert scaled(tables) == 60.0
    tables.put("small", small())
    assert scaled(tables) == 10.0


def test_a_batch_is_an_array_of_addresses() -> None:
    pools = [small(n) for n in (1, 2, 3)]
    addresses = np.array([pool.address for pool in pools])
    assert total_of_batch(addresses) == sum(total(pool) for pool in pools) == 7.0


def test_each_table_class_is_a_type_of_its_own() -> None:
    with pytest.raises(Exception, match="rows"):
        total(outer(small()))


def test_packed_tables_lie_side_by_side_and_mean_the_same() -> None:
    tables = outer(small(3))
    size = tables.packed_bytes
    memory = np.zeros(size + LINE_BYTES, np.uint8)
    rest = tables.pack(memory)
    assert len(rest) == LINE_BYTES
    for array in (tables.header, tables.scale, tables.small.rows, tables.small.header):
        assert np.shares_memory(array, memory[:size])
    assert tables.scale.tolist() == [10.0]
    assert total(tables.small) == total(small(3))
    assert corner(tables.small) == corner(small(3))
    with pytest.raises(ValueError, match=f"{size - 1} bytes: expected {size}"):
        outer(small(3)).pack(np.zeros(size - 1, np.uint8))


def test_copies_of_tables_hold_tables_of_their_own() -> None:
    tables = outer(small())
    for copied in (deepcopy(tables), pickle.loads(pickle.dumps(tables))):
        copied.small.rows["a"] += 5
        assert total(copied.small) == total(tables.small) + 10
        assert (scaled(copied), scaled(tables)) == (60.0, 10.0)


def test_a_copy_shares_nothing() -> None:
    tables = outer(small())
    copy = tables.copy()
    assert not np.shares_memory(copy.small.rows, tables.small.rows)
    copy.scale[0] = 1.0
    assert (scaled(copy), scaled(tables)) == (1.0, 10.0)
