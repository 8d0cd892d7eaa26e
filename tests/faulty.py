"""What the tests of properties share: an implementation that is right but for a planted fault."""

import numpy as np

from twofold.core.verify.contract import Outputs, Subject, subject


def scaled(name, factor):
    def fault(found, case, given):
        found[name] *= np.float32(factor)

    return fault


def plus(name, what):
    def fault(found, case, given):
        found[name] += np.asarray(what(found, case, given), np.float32)

    return fault


def faulty(contract, side, fault):
    """Return a side with a fault: a function of (outputs, case, inputs) that changes outputs."""
    right = subject(contract, side)

    def compute(case, given):
        found = Outputs({name: x.copy() for name, x in right.compute(case, given).items()})
        fault(found, case, given)
        return found

    return Subject("faulty", compute)
