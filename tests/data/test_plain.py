import datetime
import decimal
import json
import uuid

import pytest

from rlhf.data.plain import Opaque, plain

DAY = datetime.date(2026, 11, 21)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, 2.5, True, None, "x"]}, {"a": [1, 2.5, True, None, "x"]}),
        (DAY, "2026-11-21"),
        (datetime.datetime(2026, 11, 21, 14, 30, tzinfo=datetime.UTC), "2026-11-21T14:30:00+00:00"),
        (datetime.time(14, 30), "14:30:00"),
        (datetime.timedelta(minutes=90), "1:30:00"),
        (decimal.Decimal("1.10"), "1.10"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ([("key", DAY)], [["key", "2026-11-21"]]),
        ({DAY: 1}, {"2026-11-21": 1}),
        (float("nan"), None),
        (float("-inf"), Opaque("an infinite number")),
        (b"\xff", Opaque("bytes")),
        ({"image": [{"bytes": b"\xff"}]}, Opaque("bytes")),
    ],
)
def test_a_value_becomes_what_json_holds_or_is_named(value, expected):
    assert plain(value) == expected


def test_deep_nesting_ends():
    value: list = []
    for _ in range(900):
        value = [value]
    assert plain(value) == Opaque("nested deeper than 64 levels")
    shallow = json.loads("[" * 60 + "]" * 60)
    assert plain(shallow) == shallow
