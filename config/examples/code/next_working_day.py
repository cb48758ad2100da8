"""The day that lies some working days after another, weekends and holidays left out.

params: {"from": "2026-12-23", "days": 2, "holidays": ["2026-12-25"]}
result: {"date": "2026-12-28", "weekday": "Monday"}
"""

from datetime import date, timedelta


def run(params, context):
    day, left = date.fromisoformat(params["from"][:10]), params["days"]
    holidays = {date.fromisoformat(one) for one in params.get("holidays", [])}
    while left > 0:
        day += timedelta(days=1)
        if day.weekday() < 5 and day not in holidays:
            left -= 1
    return {"date": day, "weekday": day.strftime("%A")}
