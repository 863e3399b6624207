"""Which versions somebody may have open."""

from datetime import UTC, datetime

from csip.maintenance.named import current_since


def test_a_version_is_old_from_when_another_one_took_its_place():
    # Written on day 1, 2 and 9: on day 10, a reader that opened the newest one on day 8 has that of day 2 open.
    days = {version: datetime(2026, 1, day, tzinfo=UTC) for version, day in {3: 1, 4: 2, 7: 9}.items()}
    assert current_since(days, datetime(2026, 1, 3, tzinfo=UTC)) == [4, 7]
    assert current_since(days, datetime(2026, 1, 1, 12, tzinfo=UTC)) == [3, 4, 7]
    assert current_since(days, datetime(2026, 1, 9, tzinfo=UTC)) == [7]
