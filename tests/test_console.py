"""Tables at the terminal: arms side by side while they fit, else one below the other."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import Environment, PackageLoader
from report_runs import invented
from rich.console import Console
from stats_data import trial

from steerback.armtable import GROUPS
from steerback.console import examples, headline
from steerback.records import Records
from steerback.report.numbers import summaries
from steerback.report.wording import entry
from steerback.stats import summarise
from steerback.store import Store


def printed(arms: list, width: int) -> str:
    out = Console(width=width, record=True, file=io.StringIO())
    out.print(headline(arms))
    return out.export_text()


@pytest.mark.parametrize("width", [60, 80, 100, 140, 250])
@pytest.mark.parametrize("times", [1, 3])
def test_no_number_is_left_out_at_any_width(tmp_path: Path, times: int, width: int) -> None:
    found = summaries([invented(tmp_path / "run")], "") * times
    shown = printed(found, width)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    for s in found:
        for row in (row for group in GROUPS for row in group):
            assert shown.count(row.cell(s)) >= times


def test_few_arms_stand_side_by_side_where_they_fit(tmp_path: Path) -> None:
    found = summaries([invented(tmp_path / "run")], "")
    assert "improved above chance, points" in printed(found, 100)
    narrow = printed(found, 50)
    assert "improved above chance, points" not in narrow
    assert "tiny, continued" in narrow


def test_improvement_and_its_chance_level_share_a_table(tmp_path: Path) -> None:
    shown = printed(summaries([invented(tmp_path / "run")], "") * 3, 80)
    [together] = [part for part in shown.split("continued") if "improved" in part]
    assert "chance" in together


def test_prefilled_arms_have_a_dash_and_a_reason(tmp_path: Path) -> None:
    given = [trial(10, 90, cluster=f"c{i % 4}", key=str(i)) for i in range(8)]
    made = [replace(o, prefilled=True) for o in given]
    s = summarise(made, protocol="prefill", arm="steered", model="m", n_resamples=50)
    [line] = [line for line in printed([s], 100).splitlines() if "by chance" in line]
    assert "–" in line
    assert "no chance level" in printed([s], 100)
    own = summarise(given, protocol="esr", arm="steered", model="m", n_resamples=50)
    assert "no chance level" not in printed([own], 100)


@pytest.mark.parametrize("prefix", ["", "see "])
def test_neuronpedia_is_linked_and_nothing_else_is(prefix: str) -> None:
    environment = Environment(loader=PackageLoader("steerback.report"), autoescape=True)
    macro = environment.get_template("macros.html.j2").module.estimate
    url = f'{prefix}https://www.neuronpedia.org/gemma/1"><script>'
    shown = str(macro(entry(url)))
    assert ("<a href=" in shown) == (not prefix)
    assert "<script>" not in shown
    assert "<a" not in str(macro(entry("https://example.org/")))


def test_examples_end_with_one_that_did_not_restart(tmp_path: Path) -> None:
    with Store.open(invented(tmp_path / "run"), mode="ro") as store:
        records = list(Records(store).of("esr"))
    shown = examples(records, 3)
    assert [r.outcome.esr for r in shown] == [True, True, False]
    assert shown[-1].outcome.multi is False
    assert len({r.outcome.cluster for r in shown[:-1]}) == 2
