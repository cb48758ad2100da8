"""How lists and maps are written: the tables of OpenAPI, and what APIs do besides."""

from __future__ import annotations

import pytest

from stackd.integrations.styles import in_header, in_path, pairs

LIST = ["blue", "black"]
MAP = {"R": 100, "G": None, "B": 150}


@pytest.mark.parametrize(
    ("style", "explode", "value", "expected"),
    [
        ("form", True, LIST, "color=blue&color=black"),
        ("form", False, LIST, "color=blue,black"),
        ("form", True, MAP, "R=100&B=150"),
        ("form", False, MAP, "color=R,100,B,150"),
        ("form", True, "a b", "color=a b"),
        ("form", True, None, ""),
        ("form", True, [], ""),
        ("spaceDelimited", False, LIST, "color=blue black"),
        ("pipeDelimited", False, LIST, "color=blue|black"),
        ("deepObject", True, MAP, "color[R]=100&color[B]=150"),
        ("deepObject", True, {"a": {"b": [1, 2]}}, "color[a][b]=1&color[a][b]=2"),
        ("comma", False, LIST, "color=blue,black"),
        ("repeat", True, LIST, "color=blue&color=black"),
        ("brackets", True, LIST, "color[]=blue&color[]=black"),
        ("brackets", True, {"a": [1], "b": {"c": True}}, "color[a][]=1&color[b][c]=true"),
        ("brackets", True, [{"price": 1}, {"price": 2}], "color[0][price]=1&color[1][price]=2"),
        ("json", False, {"a": [1, None]}, 'color={"a":[1,null]}'),
        ("form", True, True, "color=true"),
    ],
)
def test_in_a_query_a_value_is_written_as_its_style_has_it(style, explode, value, expected):
    found = "&".join(f"{k}={v}" for k, v in pairs("color", value, style, explode=explode))

    assert found == expected


@pytest.mark.parametrize(
    ("style", "explode", "value", "expected"),
    [
        ("simple", False, LIST, "blue,black"),
        ("simple", False, MAP, "R,100,B,150"),
        ("simple", True, MAP, "R=100,B=150"),
        ("label", False, LIST, ".blue,black"),
        ("label", True, LIST, ".blue.black"),
        ("label", True, MAP, ".R=100.B=150"),
        ("matrix", False, LIST, ";color=blue,black"),
        ("matrix", True, LIST, ";color=blue;color=black"),
        ("matrix", True, MAP, ";R=100;B=150"),
        ("simple", False, "a/b c?", "a%2Fb%20c%3F"),
        ("simple", False, "ä", "%C3%A4"),
    ],
)
def test_in_a_path_a_value_is_written_as_its_style_has_it(style, explode, value, expected):
    assert in_path("color", value, style, explode=explode, keep_slashes=False) == expected


def test_in_a_path_slashes_may_stay():
    assert in_path("p", "a/b c", "simple", explode=False, keep_slashes=True) == "a/b%20c"


def test_in_a_header_lists_are_joined():
    assert in_header(LIST, explode=False) == "blue,black"
    assert in_header(MAP, explode=True) == "R=100,B=150"
    assert in_header(5, explode=False) == "5"
