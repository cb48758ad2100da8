"""What an answer says of itself."""

from __future__ import annotations

import pytest

from stackd.http.message import Response
from stackd.http.reading import filename_of


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="a b.pdf"', "a b.pdf"),
        ("attachment;filename=plain.zip", "plain.zip"),
        ("attachment; filename=\"x.pdf\"; filename*=UTF-8''%e2%82%ac%20r.pdf", "€ r.pdf"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\work\\\\plan.txt"', "plan.txt"),
        ("attachment; filename*=UTF-8''a%00b%0d%0a%1b.txt", "ab.txt"),
        (f'attachment; filename="{"x" * 300}.pdf"', f"{'x' * 196}.pdf"),
        ('attachment; filename=".."', None),
        ('attachment; filename=" "', None),
        ("attachment; filename=../a", None),
        ("inline", None),
        ("", None),
        (f"attachment; {'filename*1=a; ' * 500}", None),
        (None, None),
    ],
    ids=[
        "quoted", "bare", "the extended form first", "a way up", "a way of Windows", "control characters",
        "long", "dots", "blank", "malformed", "no name", "empty", "thousands of parts", "no header",
    ],
)  # fmt: skip
def test_the_name_of_an_answer_leads_nowhere(disposition, name):
    headers = {} if disposition is None else {"content-disposition": disposition}
    answer = Response(200, headers, b"", "https://a.example/", "application/pdf", None)

    assert filename_of(answer) == name
