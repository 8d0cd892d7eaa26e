"""A contract's pinned cases, judged in processes beside this one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context

from twofold.core import ops
from twofold.core.ops import Side
from twofold.core.verify import report
from twofold.core.verify.contract import Contract, Finding, fitting, judge_pinned
from twofold.core.verify.strict import strict_interpreter


class Pool:
    """Processes that judge pinned cases of one side, as `processes` starts them."""

    def __init__(self, side: Side, executor: ProcessPoolExecutor) -> None:
        self._side, self._executor = side, executor

    def judge_pinned(self, contract: Contract) -> Iterator[Finding]:
        """Start judging every pinned case; the findings come in the order of the cases."""
        asked, numbers = (self._side.name, contract.operator), range(len(contract.pinned))
        begun = [self._executor.submit(_judge, *asked, number) for number in numbers]
        return self._wait(contract, begun)

    def _wait(self, contract: Contract, begun: list[Future[list[Finding]]]) -> Iterator[Finding]:
        for case, found in zip(contract.pinned, begun, strict=True):
            case = fitting(self._side, case)
            yield from (dataclasses.replace(f, case=case) for f in found.result())


@contextmanager
def processes(side: Side, jobs: int) -> Iterator[Pool | None]:
    """Yield a pool of `jobs` processes that judge cases of a side, or None if one is enough.

    Also None on a GPU, whose time they would share.
    """
    if jobs < 2 or side.device != "cpu":
        yield None
        return
    context = get_context("spawn")  # a fork may not use the threads of NumPy and torch
    with ProcessPoolExecutor(jobs, context) as executor:
        try:
            yield Pool(side, executor)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _judge(side_name: str, operator: str, number: int) -> list[Finding]:
    """Judge one pinned case; its functions cannot be pickled, so the findings go without it."""
    side = ops.load(side_name)
    with strict_interpreter() if side_name == "triton" else nullcontext():
        findings = judge_pinned(report.contract(operator), side, [number])
    return [dataclasses.replace(finding, case=None) for finding in findings]
