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
