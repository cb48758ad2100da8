"""Maps as a CSV text with a first line of names, in the order in which they are met.

params: {"rows": [{"name": "bolt", "qty": 3}, {"name": "nut, small", "price": 0.5}]}
result: "name,qty,price\r\nbolt,3,\r\n\"nut, small\",,0.5\r\n"
"""

import csv
import io


def run(params, context):
    names = list(dict.fromkeys(name for row in params["rows"] for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="")
    writer.writeheader()
    writer.writerows(params["rows"])
    return out.getvalue()
