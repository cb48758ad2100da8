"""What was added, removed and changed between two lists of maps, told apart by an id.

params: {"before": [{"id": 1, "n": 1}, {"id": 2, "n": 2}], "after": [{"id": 2, "n": 3}, {"id": 3, "n": 3}]}
result: {"added": [{"id": 3, "n": 3}], "removed": [{"id": 1, "n": 1}], "changed": [{"id": 2, "n": 3}]}
"""


def run(params, context):
    key = params.get("key", "id")
    before = {row[key]: row for row in params["before"]}
    after = {row[key]: row for row in params["after"]}
    return {
        "added": [row for one, row in after.items() if one not in before],
        "removed": [row for one, row in before.items() if one not in after],
        "changed": [row for one, row in after.items() if one in before and row != before[one]],
    }
