"""What is reported of a judged function besides what holds and what fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twofold.core.verify import report

if TYPE_CHECKING:
    from twofold.core.verify.foreign.trial import Trial

IMPLIED = {"enable_gqa": "grouped heads", "ignore_index": "targets of −100"}
UNLIKE = "are not ignored, unlike torch's: add ignore_index=… to have them judged"


def notes(trial: Trial) -> list[str]:
    """Say what was not judged, and what was refused."""
    judged = trial.judged
    passes = {n: p for n, p in trial.contract.passes.items() if n not in judged.instead}
    notes = []
    if missing := [o for o in judged.missing if o not in judged.implied]:
        notes.append(f"not judged, for it takes none of them: {', '.join(missing)}")
    for option in judged.implied:
        asked = f"not judged: add {option}=…"
        if option in trial.implied:
            asked = f"judged, though it takes no {option}"
        elif option in trial.unlike:
            asked = UNLIKE
        elif not trial.implied_asked:
            fails = any(v for cases in trial.tried.values() for v in cases.values())
            asked = "not judged while other cases fail" if fails else "not judged: out of time"
        notes.append(f"{IMPLIED[option]} {asked}")
    if judged.unpassed:
        notes.append(f"never passed: {', '.join(judged.unpassed)}")
    if judged.unexercised:
        notes.append(f"never exercised: {', '.join(judged.unexercised)}")
    lost = {n: pass_ for n, pass_ in passes.items() if n not in judged.ever}
    backward = {n for n, pass_ in passes.items() if pass_ == "backward"}
    if judged.ever and backward and backward <= lost.keys():
        why = "no gradient fits its shape" if judged.learns else "the output requires no grad"
        notes.append(f"forward only: {why}")
        lost = {n: pass_ for n, pass_ in lost.items() if pass_ == "forward"}
    if judged.ever and lost:
        notes.append(f"not judged, for it is not computed: {', '.join(lost)}")
    if outside := judged.outside():
        notes.append(f"not in the domain: {'; '.join(outside)}")
    notes += sorted(judged.remarks)
    taken, away = len(trial.taken), len(trial.turned_away)
    if away:
        mostly = "mostly refused, which says little: " if away > taken else ""
        notes.append(f"{mostly}{taken} of {taken + away} cases were taken")
    for refusals in trial.refused.values():
        case, words = next(iter(refusals.items()))
        first = f"{case.dtype} {report.short(case)}"
        notes.append(f"refused {len(refusals)} cases, such as {first}: {words}")
    return notes
