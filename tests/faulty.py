"""What the tests of properties share: an implementation that is right but for a planted fault."""

import numpy as np
import pytest

from twofold.core.verify.contract import Outputs, Subject, subject


def scaled(name, factor):
    def fault(found, case, given):
        found[name] *= np.float32(factor)

    return fault


def plus(name, what):
    def fault(found, case, given):
        found[name] += np.asarray(what(found, case, given), np.float32)

    return fault


def kept(name):
    """Return a fault that shows only if other calls are made in between."""

    def fault(found, case, given):
        pass

    fault.between = plus(name, lambda found, case, given: 1.0)
    return fault


def faulty(contract, side, fault):
    """Return a side with a fault: a function of (outputs, case, inputs) that changes outputs."""
    right = subject(contract, side)

    def wrong(found, case, given, *faults):
        found = Outputs({name: x.copy() for name, x in found.items()})
        for one in faults:
            one(found, case, given)
        return found

    def compute(case, given):
        return wrong(right.compute(case, given), case, given, fault)

    def disturbed(case, given):
        between = getattr(fault, "between", fault)
        return wrong(right.disturbed(case, given), case, given, between)

    return Subject("faulty", compute, disturbed=disturbed)


def check_seen(claim, contract, side, case, fault, words=None):
    """Check that a claim holds for a side, but not for the side with a fault."""
    claim(subject(contract, side), case)
    with pytest.raises(AssertionError, match=words):
        claim(faulty(contract, side, fault), case)
