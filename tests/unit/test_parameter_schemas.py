"""Parameters as a schema takes them."""

from __future__ import annotations

import pytest

from stackd.core.errors import InputError
from stackd.integrations.schemas import Schema

CHAT = {"properties": {"chat": {"type": ["integer", "string"]}, "many": {"type": "integer"}}}


@pytest.mark.parametrize("value", [7, "7", "@ops"], ids=["a number", "digits", "a name"])
def test_a_value_of_one_of_several_types_stays_as_it_is(value):
    assert Schema(CHAT, {}).fitted({"chat": value, "many": "3"}) == {"chat": value, "many": 3}


def test_a_value_of_none_of_several_types_is_refused():
    with pytest.raises(InputError, match="chat must be of type"):
        Schema(CHAT, {}).fitted({"chat": [7]})


DRAFT = {
    "required": ["kind"],
    "properties": {"kind": {"default": "text"}, "priority": {"type": "integer", "default": 5}},
}


def test_what_is_left_out_stands_by_its_default():
    assert Schema(DRAFT, {}).fitted({}) == {"kind": "text", "priority": 5}


def test_an_update_has_the_defaults_of_required_parameters_only():
    schema = Schema(DRAFT, {}, fills_only_required=True)

    assert schema.fitted({}) == {"kind": "text"}
    assert schema.fitted({"priority": "0"}) == {"kind": "text", "priority": 0}
