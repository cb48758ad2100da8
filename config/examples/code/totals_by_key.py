"""Sums and counts of a list of maps, by one of their members; money is added exactly.

params: {"rows": [{"who": "ada", "sum": "0.10"}, {"who": "bob", "sum": "2"}, {"who": "ada", "sum": "0.20"}], "by": "who", "of": "sum"}
result: [{"key": "ada", "count": 2, "total": "0.30"}, {"key": "bob", "count": 1, "total": "2"}]
"""

from decimal import Decimal


def run(params, context):
    found = {}
    for row in params["rows"]:
        entry = found.setdefault(row[params["by"]], {"count": 0, "total": Decimal(0)})
        entry["count"] += 1
        entry["total"] += Decimal(str(row[params["of"]]))
    return [{"key": key, **entry} for key, entry in sorted(found.items())]
