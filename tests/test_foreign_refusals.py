"""A refusal is told from a fault, whatever exception is being handled when it is raised."""

import pytest

from twofold.core.verify.foreign.refusals import Refused, refusals, where
from twofold.core.verify.strict.memory import Fault


def refuse():
    raise NotImplementedError("head_dim below 16")


def test_a_refusal_while_an_earlier_fault_is_handled_is_none_of_it():
    try:
        raise Fault("int32 overflow in mul")
    except Fault:
        with pytest.raises(Refused, match="head_dim below 16"), refusals():
            refuse()


def test_a_fault_behind_what_is_raised_is_what_is_said():
    with pytest.raises(Fault, match="int32 overflow"), refusals():
        try:
            raise Fault("int32 overflow in mul")
        except Fault:
            refuse()


def test_where_an_earlier_fault_came_from_is_not_said():
    def fail():
        return 1 / 0

    try:
        refuse()
    except NotImplementedError as outer:
        try:
            fail()
        except ZeroDivisionError as error:
            line = fail.__code__.co_firstlineno + 1
            assert where(error, outer) == f"test_foreign_refusals.py:{line}"
