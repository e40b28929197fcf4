"""One self-contained page about one or several runs, and its figures as files beside it."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from steerback.errors import UserError
from steerback.protocols.base import Analysis
from steerback.report import significance, wording
from steerback.report.gallery import Gallery
from steerback.report.gather import HEADLINE, Run, gather, told_apart
from steerback.report.numbers import common_folder, run_folders
from steerback.report.provenance import about
from steerback.report.published import published
from steerback.report.strengths import CLOSE, share_close
from steerback.report.transcripts import island
from steerback.stats import Comparison, Summary

FIGURES = "report_figures"


class Written(NamedTuple):
    path: Path
    summaries: tuple[Summary, ...]


def write_report(folders: Sequence[Path], out: Path | None = None, judge: str = "") -> Written:
    """Write the report of the runs in or below `folders`.

    `out` is a file, or a folder for `report.html`; without it, the run's folder is meant, or the one
    that several runs share.
    Raises UserError: no run, nothing stored yet, an unknown judge, a place that cannot be written.
    """
    places = run_folders(folders)
    runs = [run for run in (gather(place, judge) for place in places) if run.holds_anything]
    if not runs:
        names = ", ".join(str(p) for p in places)
        raise UserError(
            f"{names}: nothing to report yet, no trial is stored; `steerback status` shows how far "
            "the run is"
        )
    target = out or common_folder(places)
    return write_runs(runs, target / "report.html" if target.is_dir() else target)


def write_runs(runs: Sequence[Run], target: Path) -> Written:
    """Write the page of runs that were read. Raises UserError for a place that cannot be written."""
    try:
        figures = target.parent / FIGURES
        figures.mkdir(parents=True, exist_ok=True)
        runs = told_apart(runs)
        html = render(runs, Gallery(figures))
        _write(target, html)
    except OSError as error:
        raise UserError(f"{target}: cannot write here ({error.strerror or error})") from error
    return Written(target, tuple(_summaries(runs, everything=True)))


def _write(target: Path, html: str) -> None:
    """All of it or nothing: a page that was open stays readable."""
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_bytes(html.encode("utf-8", "backslashreplace"))
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def render(runs: Sequence[Run], gallery: Gallery) -> str:
    """The page as HTML. Everything that is not ours is escaped: by Jinja, by matplotlib, by `island`."""
    environment = Environment(
        loader=PackageLoader("steerback.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = wording.number
    script = _asset(environment, "page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        **_context(runs, gallery),
        style=Markup(_asset(environment, "page.css")),
        script=Markup(script),
        script_hash=digest,
    )


def _asset(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _context(runs: Sequence[Run], gallery: Gallery) -> dict[str, Any]:
    main, everything = _summaries(runs), _summaries(runs, everything=True)
    return {
        "runs": runs,
        "title": _title(runs),
        "headline": table(main),
        "stories": [wording.story(arms) for arms in wording.by_model(main).values()],
        "experiments": _experiments(runs, gallery),
        "controls": [s for s in main if s.protocol == "baseline"],
        "published": published(),
        "rates": gallery.rates(main),
        "ours": [s for s in main if s.protocol == "esr"],
        "cell": wording.cell,
        "calibrations": [
            {
                "run": run,
                "close": wording.cell(share_close(run.strengths, run.target)),
                "figures": gallery.calibration(run),
                "left_out": [s for s in run.strengths if not s.calibration.reached],
            }
            for run in runs
            if run.strengths
        ],
        "margin": CLOSE,
        "scores": [shown for run in runs for shown in gallery.scores(run)],
        "outcomes": gallery.outcomes(everything),
        "three_way": [s for s in everything if s.n],
        "doses": [shown for run in runs for shown in gallery.doses(run)],
        "funnels": [(run, gallery.funnel(run)) for run in runs if run.funnel],
        "island": island(runs),
        "about": [about(run) for run in runs],
    }


def _title(runs: Sequence[Run]) -> str:
    names = ", ".join(run.name for run in runs)
    return names if len(runs) < 3 else f"{len(runs)} runs: {names}"


def _summaries(runs: Sequence[Run], everything: bool = False) -> list[Summary]:
    """Of the headline's protocols or of all, with runs of one model told apart."""
    return [
        replace(s, model=_subject(run, s.model)) if len(runs) > 1 else s
        for run in runs
        for e in run.experiments
        if everything or e.name in HEADLINE
        for s in e.analysis.summaries
    ]


def _subject(run: Run, model: str) -> str:
    """What heads an arm where runs stand side by side: the run, and its model if it has several."""
    models = {s.model for e in run.experiments for s in e.analysis.summaries}
    return f"{run.name}, {model}" if len(models) > 1 and model != run.name else run.name


def table(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Measures in rows, arms in columns grouped by model."""
    groups = wording.by_model(summaries)
    columns = [s for arms in groups.values() for s in arms]
    given = [s.prefilled for s in columns]
    measures = [m for m in wording.MEASURES if not (m.chance and columns and all(given))]
    return {
        "groups": [(model, len(arms)) for model, arms in groups.items()],
        "columns": columns,
        "rows": [(m.title, m.gloss, [m.cell(s) for s in columns]) for m in measures],
        "notes": [wording.PREFILLED] if any(given) else [],
    }


def _comparisons(analysis: Analysis) -> list[tuple[str, Comparison, dict[str, Any]]]:
    """(what is compared with what, the comparison, its cells)"""
    adjusted = significance.adjusted([c for _, c in analysis.comparisons])
    return [
        (what, c, {**wording.comparison(c, p), "disagree": significance.disagree(c)})
        for (what, c), p in zip(analysis.comparisons, adjusted, strict=True)
    ]


def _experiments(runs: Sequence[Run], gallery: Gallery) -> list[dict[str, Any]]:
    """Every experiment that is not in the headline, as its analysis says."""
    return [
        {
            "run": run,
            "name": e.name,
            "asks": e.asks,
            "analysis": e.analysis,
            "in_headline": e.name in HEADLINE,
            "table": table(e.analysis.summaries),
            "stories": [wording.sentence(s) for s in e.analysis.summaries],
            "sheets": [
                (s, [[wording.entry(x) for x in r] for r in s.rows]) for s in e.analysis.sheets
            ],
            "charts": gallery.charts(run, e),
            "comparisons": _comparisons(e.analysis),
            "on_tests": significance.notes([c for _, c in e.analysis.comparisons]),
        }
        for run in runs
        for e in run.experiments
        if e.name not in HEADLINE or e.analysis.comparisons or e.analysis.sheets
    ]
