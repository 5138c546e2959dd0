"""Opening channels and cells: what both have in common."""

import pytest

from raskid.protocol.messages import ListState, RecordPut


def test_a_channel_and_a_cell_may_have_one_name_and_declare_for_themselves(rk):
    channel, cell = rk.channel("same", type=int), rk.cell("same", type=str)
    channel.listen().put(1)
    cell.set("x")
    assert channel.get(5) == 1 and cell.value == "x"
    assert set(rk.topics("")) >= {"channels:same", "cells:same", "reactions:same"}


def test_what_could_not_be_opened_is_not_followed(rk, other):
    rk.channel("refused", type=int).close()
    rk.cell("refused", type=int).close()
    for opening in (other.channel, other.cell):
        with pytest.raises(ValueError, match="'refused' was declared with type='int'"):
            opening("refused", type=str)
    assert not {"channels:refused", "cells:refused"} & set(other._lists.replicas)
    assert not other.cells


def test_a_list_that_is_read_anew_is_a_change_only_if_its_value_is_another(rk):
    """1. A state comes that says what is known. 2. One that says something else. 3. One without the value."""
    cell = rk.cell("anew")
    cell.set(1)
    values = iter(cell)
    assert next(values) == 1
    replica = rk.replica("cells:anew")
    known, other_value = replica.records["value"], type(replica.records["value"])("value", b"\x02", "")
    for number, records in enumerate(([known], [other_value], [], [other_value])):
        with rk.engine.lock:
            state = ListState("cells:anew", replica.version + 1 + number, records)
            for effect in rk._lists._on_change(state, 0.0):
                rk._apply(effect)
        assert cell.get("none") == ([1, 2, "none", 2][number])
    assert [values.get(5), values.get(5)] == [2, 2]
    with rk.engine.lock:
        for effect in rk._lists._on_change(RecordPut("cells:anew", replica.version + 9, known), 0.0):
            rk._apply(effect)
    assert values.get(5) == 1
