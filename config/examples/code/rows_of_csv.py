"""Rows of a CSV text as maps, by its first line; numbers as numbers.

params: {"text": "name,qty\nbolt,3\n\"nut, small\",4.5\n"}
result: [{"name": "bolt", "qty": 3}, {"name": "nut, small", "qty": 4.5}]
"""

import csv
import io


def run(params, context):
    rows = csv.DictReader(io.StringIO(params["text"]), delimiter=params.get("delimiter", ","))
    return [{name: number(value) for name, value in row.items()} for row in rows]


def number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            continue
    return text
