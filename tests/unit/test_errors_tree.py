"""The error tree: every class fixes whose fault it is, its status and whether to try again."""

import pytest

from balancer import errors
from balancer.errors import (
    BalancerError,
    ClientError,
    FleetError,
    InstanceError,
    MethodNotAllowed,
    Source,
    UnknownModel,
)

CLASSES = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, BalancerError)
]


@pytest.mark.parametrize("error", CLASSES, ids=lambda each: each.__name__)
def test_only_what_an_instance_did_is_worth_another_try(error: type[BalancerError]) -> None:
    assert error.retryable is (error.source is Source.INSTANCE)
    assert error.retryable is issubclass(error, InstanceError)


@pytest.mark.parametrize("error", CLASSES, ids=lambda each: each.__name__)
def test_a_status_fits_whose_fault_it_is(error: type[BalancerError]) -> None:
    if issubclass(error, ClientError):
        assert 400 <= error.status < 500
    elif issubclass(error, FleetError):
        assert error.status in {503, 504}
    elif issubclass(error, InstanceError):
        assert error.status == 502
    else:
        assert error.status == 500


def test_the_tree_drawn_is_the_tree_there_is() -> None:
    drawn = errors.__doc__ or ""

    assert [each.__name__ for each in CLASSES if each.__name__ not in drawn] == []


def test_statuses_are_those_that_users_rely_on() -> None:
    expected = {
        "MalformedRequest": 400,
        "Forbidden": 403,
        "UnknownModel": 404,
        "UnknownPath": 404,
        "MethodNotAllowed": 405,
        "RequestTooSlow": 408,
        "BodyTooLarge": 413,
        "UnsupportedEncoding": 415,
        "HeadersTooLarge": 431,
        "ClientLeft": 499,
        "QueueFull": 503,
        "NoInstance": 503,
        "DeadlinePassed": 504,
        "InstanceError": 502,
    }

    assert expected == {name: getattr(errors, name).status for name in expected}


def test_an_unknown_model_names_what_there_is_but_not_without_end() -> None:
    assert str(UnknownModel("x")) == "model 'x' not found"
    assert str(UnknownModel("x", there_are=["b", "a"])) == "model 'x' not found; there are a, b"
    many = str(UnknownModel("x", there_are=[f"m{number:03}" for number in range(100)]))
    assert many.endswith("m019 and 80 more")


def test_a_method_that_is_not_allowed_names_those_that_are() -> None:
    assert MethodNotAllowed("no", allow=("GET",)).allow == ("GET",)
