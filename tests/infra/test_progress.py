"""What is said of bytes that are on their way."""

from __future__ import annotations

from infra.progress import WINDOW_SECONDS, ByteCounter, Pace

MIB = 2**20


def test_rate_and_time_left() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    assert pace.look(0, 100 * MIB) == "0 % of 100.0 MiB"
    now = 0.1
    assert pace.look(50 * MIB, 100 * MIB) == "50 % of 100.0 MiB"  # out of a buffer: nobody knows the rate
    now = 10.0
    assert pace.look(60 * MIB, 100 * MIB) == "60 % of 100.0 MiB, 6.0 MiB/s, 6 s left"
    now = 12.0
    assert pace.look(100 * MIB, 100 * MIB) == "100 % of 100.0 MiB"


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    text = pace.look(0, 1000 * MIB)
    for second in range(1, 200):  # fast, then slow
        now = float(second)
        text = pace.look(min(second, 100) * 5 * MIB + max(second - 100, 0) * MIB, 1000 * MIB)
    assert ", 1.0 MiB/s, 6 min left" in text
    done = 500 * MIB + 99 * MIB
    while now < 200 + 2 * WINDOW_SECONDS:
        now += 1
        text = pace.look(done, 1000 * MIB)
    assert text.endswith(", 0 B/s")  # it stands still, and nobody knows for how long


def test_the_next_work_of_a_step_begins_anew() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    for second, done, total in ((0, 0, 10), (1, 10, 10), (2, 0, 10), (3, 0, 20)):
        now = float(second)
        assert pace.look(done * MIB, total * MIB) == f"{100 * done // total} % of {total}.0 MiB"
    now = 4.0
    assert pace.look(5 * MIB, 20 * MIB) == "25 % of 20.0 MiB, 5.0 MiB/s, 3 s left"


def test_pieces_add_up() -> None:
    seen: list[tuple[int, int]] = []
    counter = ByteCounter(lambda done, total: seen.append((done, total)), 10)
    counter(4)
    counter(4)
    counter.reach(5)
    assert seen == [(4, 10), (8, 10), (5, 10)]
