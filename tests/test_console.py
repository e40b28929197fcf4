"""Tables at the terminal: arms side by side while they fit, else one below the other."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from jinja2 import Environment, PackageLoader
from report_runs import invented
from rich.console import Console

from steerback.console import headline
from steerback.report.numbers import summaries
from steerback.report.wording import entry


def printed(arms: list, width: int) -> str:
    out = Console(width=width, record=True, file=io.StringIO())
    out.print(headline(arms))
    return out.export_text()


def test_many_arms_are_rows_that_fit(tmp_path: Path) -> None:
    found = summaries([invented(tmp_path / "run")], "")
    side_by_side = printed(found, 100)
    assert "implicit recovery %" in side_by_side
    many = printed(found * 3, 100)
    assert "implicit recovery %" not in many
    assert many.count("esr, steered") == 3
    assert "…" not in many
    for s in found:
        assert f"{s.multi_attempt.rate * 100:.1f} [" in many


@pytest.mark.parametrize("prefix", ["", "see "])
def test_neuronpedia_is_linked_and_nothing_else_is(prefix: str) -> None:
    environment = Environment(loader=PackageLoader("steerback.report"), autoescape=True)
    macro = environment.get_template("macros.html.j2").module.estimate
    url = f'{prefix}https://www.neuronpedia.org/gemma/1"><script>'
    shown = str(macro(entry(url)))
    assert ("<a href=" in shown) == (not prefix)
    assert "<script>" not in shown
    assert "<a" not in str(macro(entry("https://example.org/")))
