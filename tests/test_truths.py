"""Truths about the organisms: the packaged file, and how an interval answers one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rich.console import Console
from runs import small

from steerback import protocols, suite, truths
from steerback.errors import UserError
from steerback.organism import names
from steerback.protocols.base import Analysis
from steerback.run import run
from steerback.truths import ABSENT, CONTRADICTED, FOUND, OPEN, Answer, Truth


def test_the_packaged_truths_speak_of_what_the_suite_runs() -> None:
    known = truths.truths()
    assert {t.organism for t in known} <= set(names())
    assert {t.organism for t in known} == set(suite._data()["full"]["organisms"])
    assert {t.protocol for t in known} <= set(protocols.registry())
    assert len({(t.organism, t.protocol, t.of, t.measure) for t in known}) == len(known)
    for t in known:
        assert t.above < t.below
        assert math.isfinite(t.above) or math.isfinite(t.below)
        assert t.because


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.11, 0.2, FOUND),
        (0.1, 0.2, OPEN),
        (0.05, 0.2, OPEN),
        (0.2, 0.31, OPEN),
        (0.05, 0.4, OPEN),
        (0.05, 0.1, CONTRADICTED),
        (0.3, 0.4, CONTRADICTED),
        (math.nan, math.nan, ABSENT),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, verdict: str) -> None:
    truth = Truth("resister", "esr", "steered", "esr", "it was made so", 0.1, 0.3)
    assert Answer(truth, (low + high) / 2, low, high, 9).verdict == verdict


def test_a_run_answers_for_its_organism_and_what_did_not_run_is_not_measured(
    tmp_path: Path,
) -> None:
    config = small(tmp_path / "run", protocols=["baseline", "esr", "prefill"])
    found = run(config)
    own = truths.answers("resister", found)
    assert truths.answers_of(config.place) == own
    by_key = {(a.truth.protocol, a.truth.of, a.truth.measure): a for a in own}
    esr = by_key["esr", "steered", "esr"]
    (summary,) = found["esr"].summaries
    assert (esr.value, esr.low, esr.high) == (summary.esr.rate, summary.esr.low, summary.esr.high)
    assert esr.n == summary.n
    assert by_key["prefill", "unsteered", "multi_attempt"].n > 0
    ablation = [a for a in own if a.truth.protocol == "ablation"]
    assert ablation
    assert {a.verdict for a in ablation} == {ABSENT}
    out = Console(width=200, record=True)
    truths.show(own, out)
    text = out.export_text()
    assert text.count(ABSENT) >= len(ablation)
    assert truths.count(own) in text


def test_nothing_is_made_up_where_nothing_ran() -> None:
    every = truths.answers("imitator", {"esr": Analysis()})
    assert every
    assert {a.verdict for a in every} == {ABSENT}
    assert every[0].as_json()["value"] is None


def test_a_model_of_which_nothing_is_known_is_named(tmp_path: Path) -> None:
    run(config := small(tmp_path / "run", "naive"))
    with pytest.raises(UserError, match="nothing is known of 'naive'; runs of imitator"):
        truths.answers_of(config.place)
