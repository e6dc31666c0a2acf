"""Fair shares: what clients are held to have used, and who starts where."""

import pytest

from balancer.admission.fair_shares import FairShares
from balancer.core.ticket import ClientId

A, B = ClientId("a"), ClientId("b")


def test_a_client_is_charged_and_corrected() -> None:
    shares = FairShares()
    shares.enter(A, least_waiting=None, waits=False)
    start = shares.used(A)

    shares.charge(A, 3.0)
    shares.correct(A, charged=3.0, took=2.0)

    assert shares.used(A) - start == 2.0


def test_who_comes_back_does_not_catch_up_on_what_it_has_not_asked_for() -> None:
    shares = FairShares()
    shares.enter(A, least_waiting=None, waits=False)
    shares.enter(B, least_waiting=None, waits=False)
    shares.leave(B)
    for _ in range(100):
        shares.charge(A, 1.0)

    shares.enter(B, least_waiting=shares.used(A), waits=False)

    assert shares.used(A) == shares.used(B)


def test_who_leaves_and_comes_back_at_once_is_not_better_off() -> None:
    shares = FairShares()
    for each in (A, B):
        shares.enter(each, least_waiting=None, waits=False)
    for _ in range(10):
        shares.charge(A, 1.0)
    used = shares.used(A)

    shares.leave(A)
    shares.enter(A, least_waiting=shares.used(B), waits=False)

    assert used == shares.used(A)


def test_who_is_always_there_saves_nothing_up_while_it_wants_no_more() -> None:
    shares = FairShares()
    for each in (A, B):
        shares.enter(each, least_waiting=None, waits=False)
    for _ in range(100):
        shares.charge(B, 1.0)

    shares.enter(A, least_waiting=shares.used(B), waits=True)
    assert shares.used(B) - shares.used(A) == 100.0  # one of A's waits, so this is owed to it
    shares.enter(A, least_waiting=shares.used(B), waits=False)

    assert shares.used(B) - shares.used(A) == pytest.approx(shares.leeway)


def test_newcomers_one_after_the_other_keep_nobody_waiting_for_ever() -> None:
    shares = FairShares()
    shares.enter(A, least_waiting=None, waits=False)
    shares.charge(A, 50.0)
    shares.correct(A, charged=50.0, took=50.0)
    waiting = shares.used(A)

    served = 0
    for number in range(1000):
        newcomer = ClientId(f"n{number}")
        shares.enter(newcomer, least_waiting=0.0, waits=False)  # there is always one of them that waits, too
        if shares.used(newcomer) >= waiting:
            break
        shares.charge(newcomer, 1.0)
        shares.leave(newcomer)
        served += 1

    assert shares.used(newcomer) >= waiting
    assert 0 < served < 300


def test_clients_that_are_gone_are_forgotten_once_they_would_start_anew() -> None:
    shares = FairShares()
    shares.enter(A, least_waiting=None, waits=False)
    for number in range(5000):
        client = ClientId(str(number))
        shares.enter(client, least_waiting=None, waits=False)
        shares.charge(client, 1.0)
        shares.charge(A, 1.0)
        shares.leave(client)

    assert len(shares) < 2100


def test_a_client_counts_until_its_last_request_has_left() -> None:
    shares = FairShares()
    for _ in range(2):
        shares.enter(A, least_waiting=None, waits=False)
    shares.charge(A, 5.0)
    used = shares.used(A)

    shares.leave(A)
    shares.enter(B, least_waiting=None, waits=False)
    shares.charge(B, 100.0)
    shares.enter(A, least_waiting=None, waits=True)

    assert used == shares.used(A)
