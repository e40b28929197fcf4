"""The report says what the store holds, hedges as the intervals demand, and lets no text through."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from pydantic import ValidationError
from report_runs import CONFIG, HOSTILE, WAIT, invented, judged, make_trial, say
from scipy import stats as scipy_stats
from stats_data import arm, trial
from statsmodels.stats.proportion import proportion_confint
from typer.testing import CliRunner

from steerback import protocols
from steerback.cli import app
from steerback.errors import UserError
from steerback.judge.segment import restarts
from steerback.protocols.base import Analysis, Sheet
from steerback.report import doses, gallery, published, strengths, transcripts, wording
from steerback.report.gather import gather
from steerback.report.numbers import known_protocols, run_folders
from steerback.report.page import table, write_report
from steerback.stats import Outcome, compare, summarise
from steerback.store import Store
from steerback.types import Attempt, Message, Rate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return write_report([run]).path.read_text("utf-8")


class Reader(HTMLParser):
    """Scripts, attributes and visible text of a page, as a browser's tokeniser finds them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.scripts: list[str] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] == "script":
            self.scripts[-1] += data
        elif not self.inside or self.inside[-1] != "style":
            self.words += data


def island(page: str) -> Any:
    return json.loads(Reader(page).scripts[0])


# --- nothing gets through -----------------------------------------------------------------------


def test_hostile_texts_stay_texts(html: str) -> None:
    read = Reader(html)
    assert [t for t, _ in read.tags].count("script") == 2
    assert not {"img", "iframe", "object", "base", "link"} & {t for t, _ in read.tags}
    assert not [a for _, attrs in read.tags for a in attrs if a.startswith("on")]
    for text in HOSTILE[:5]:  # as labels and reasons, in the static part too
        assert text in read.words


def test_texts_come_back_from_the_page_as_they_were(run: Path, html: str) -> None:
    shown = {t["key"]: "".join(p[0] for p in t["pieces"]) for t in island(html)["trials"]}
    with Store.open(run, mode="ro") as store:
        stored = {t.key: g.text for name in ("baseline", "esr") for t, g in store.trials(name)}
    assert shown == stored


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=())), st.integers())
def test_any_text_survives_the_island(text: str, seed: int) -> None:
    one = make_trial(0, question=text, seed=seed)
    row = gather_row(one, text)
    invented_run = type("Run", (), {"name": text, "folder": "x", "rows": (row,), "labels": {}})()
    found = transcripts.island([invented_run])
    assert found.isascii()
    assert not set(found) & set("<>&")
    data = json.loads(found)
    [only] = data["trials"]
    assert (data["runs"], only["question"], only["seed"]) == ([text], text, str(seed))
    assert "".join(p[0] for p in only["pieces"]) == text


def gather_row(one: Any, text: str) -> Any:
    from steerback.report.gather import Row

    return Row(one, say(one, text), None, None)


def test_page_needs_nothing_from_elsewhere(html: str) -> None:
    tags = Reader(html).tags
    assert not [a for _, attrs in tags if (a := attrs.get("src"))]
    links = [attrs["href"] or "" for t, attrs in tags if t == "a"]
    assert all(x.startswith(("#", "https://arxiv.org/")) for x in links)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    [policy] = [a["content"] for t, a in tags if t == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_ids_are_used_once(html: str) -> None:
    ids = [a["id"] for _, a in Reader(html).tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {(a.get("href") or "")[1:] for t, a in Reader(html).tags if t == "a"}
    assert {t for t in targets if t.isalpha()} <= set(ids)


# --- pieces ---------------------------------------------------------------------------------------

SPANS = st.lists(st.tuples(st.integers(0, 65), st.integers(0, 65)), max_size=4)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40).map(lambda t: f"{t} answer. {WAIT} More."), SPANS)
def test_pieces_mark_every_character_as_the_offsets_say(
    text: str, spans: list[tuple[int, int]]
) -> None:
    attempts = [Attempt(a, b, 1.0) for a, b in spans if a < b]
    marks = restarts(text)
    expected = [
        (
            c,
            next((n for n, a in enumerate(attempts) if a.start <= i < a.end), -1),
            int(any(m.start <= i < m.end for m in marks)),
        )
        for i, c in enumerate(text)
    ]
    found = [(c, of, re) for piece, of, re in transcripts.pieces(text, attempts) for c in piece]
    assert found == expected


def test_flags_say_what_happened(run: Path) -> None:
    for row in gather(run).rows:
        flags, o = set(transcripts.flags(row)), row.outcome
        assert o is not None
        assert ("missing" in flags) == o.missing
        assert ("restarted" in flags) == bool(o.multi)
        assert ("improved" in flags) == bool(o.esr)
        assert ("improved" in flags or "worse" in flags) == bool(o.multi)
        assert ("implicit" in flags) == bool(o.implicit)


def test_what_the_model_saw_besides_is_shown() -> None:
    messages = (Message("system", "be brief"), Message("user", "Q?"))
    assert transcripts.asked_besides(make_trial(0, question="Q?")) == ""
    assert "be brief" in transcripts.asked_besides(make_trial(0, question="Q?", messages=messages))


# --- sentences ------------------------------------------------------------------------------------


def told(outcomes: list[Outcome]) -> str:
    return wording.sentence(summarise(outcomes, protocol="esr", arm="steered", model="m"))


def many(first: float, last: float | None, n: int, clusters: int = 10) -> list[Outcome]:
    return [
        trial(first, last, cluster=f"c{i % clusters}", key=f"{first}{last}{i}") for i in range(n)
    ]


def test_no_restart_says_nothing_of_improvement() -> None:
    said = told(many(20, None, 50))
    assert "did not restart in any of 50" in said
    assert "chance" not in said
    assert "nothing can be said of improvement" in said


def test_no_trial_says_nothing() -> None:
    assert "nothing can be said" in told([])
    assert "3 have no valid score" in told([trial(None, key=str(i)) for i in range(3)])


def test_improvement_above_chance_is_said_so() -> None:
    said = told(many(50, 90, 40) + many(10, None, 40) + many(60, None, 20))
    assert re.search(r"improvement is [\d.]+ points above chance \(95% interval \+", said)
    assert "compatible" not in said


def test_improvement_below_chance_is_said_so() -> None:
    said = told(many(10, 5, 40) + many(90, None, 40))
    assert "points below chance" in said
    assert "did not help" in said


def test_restart_that_is_a_fresh_draw_is_compatible_with_chance() -> None:
    rng = np.random.default_rng(1)
    draws = rng.choice([10.0, 90.0], (60, 2))
    said = told(
        [trial(a, b, cluster=f"c{i % 10}", key=str(i)) for i, (a, b) in enumerate(draws.tolist())]
    )
    assert "compatible with chance alone" in said or "equals chance" in said


def test_single_restart_and_single_cluster_are_warned_of() -> None:
    said = told([*many(10, None, 30, clusters=1), trial(10, 90, cluster="c0", key="r")])
    assert "The one restart ended better" in said
    assert "share one cluster" in said
    assert "uncertain" in said


def test_prefilled_trials_have_no_chance_level() -> None:
    given = [replace(o, prefilled=True) for o in many(10, 90, 20) + many(20, None, 20)]
    s = summarise(given, protocol="prefill", arm="steered", model="m", n_resamples=50)
    said = wording.sentence(s)
    assert "restarted 20 times and ended better in 20 of 20; no chance level applies" in said
    assert "above chance" not in said
    assert s.as_json()["chance_improvement"] == {"rate": None, "low": None, "high": None}
    own = replace(s, prefilled=False)
    titles = {n: [row[0] for row in table([s] * n + [own] * (n - 1))["rows"]] for n in (1, 2)}
    assert not any("chance" in title for title in titles[1])
    assert any("chance" in title for title in titles[2])
    assert table([s])["notes"] == [wording.PREFILLED]
    assert table([own])["notes"] == []


def test_many_missing_are_mentioned() -> None:
    lost = [trial(None, cluster="c1", key=f"m{i}") for i in range(10)]
    assert "10 of 60 trials have no valid score" in told(many(20, None, 50) + lost)
    assert "no valid score" not in told(many(20, None, 500) + lost)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 17), st.integers(1, 5), st.floats(0, 0.6))
def test_sentence_claims_an_effect_only_where_the_interval_does(
    seed: int, clusters: int, per: int, restart: float
) -> None:
    outcomes = arm(seed, clusters, per, restart=restart)
    s = summarise(outcomes, n_resamples=200)
    said = wording.sentence(s)
    above = s.improvement_above_chance
    assert ("points above chance (95%" in said) == bool(above.low > 0)
    assert ("points below chance (95%" in said) == bool(above.high < 0)
    assert "nan" not in said


def test_story_names_the_control_once() -> None:
    steered = summarise(many(20, None, 9), protocol="esr", arm="steered", model="m")
    plain = replace(steered, protocol="baseline", arm="unsteered")
    said = wording.story([steered, plain])
    assert said.count("m (esr") == 1
    assert "Without steering it did not restart in any of 9" in said


@pytest.mark.parametrize(
    ("x", "signed", "shown"),
    [
        (math.nan, False, "–"),
        (math.inf, True, "∞"),
        (-0.04, True, "0.0"),
        (0.04, True, "0.0"),
        (-12.34, False, "−12.3"),
        (12.36, True, "+12.4"),
    ],
)
def test_numbers_are_written_for_people(x: float, signed: bool, shown: str) -> None:
    assert wording.number(x, signed=signed) == shown


# --- published figures ----------------------------------------------------------------------------


def test_published_table_names_its_sources_and_models() -> None:
    table = published.published()
    models = table.models("esr")
    assert len(models) == 5
    assert all(set(m) == {"multi_attempt", "esr"} for m in models.values())
    assert models["meta-llama/Llama-3.3-70B-Instruct"]["esr"].value == 3.8
    assert table.find("baseline", "multi_attempt").n == 13118
    with pytest.raises(KeyError):
        table.find("esr", "happiness")


def test_published_intervals_are_wilson_where_rate_and_n_are_known() -> None:
    for figure in published.published().figure:
        if figure.interval:
            assert figure.n is not None
            k = figure.value / 100 * figure.n
            low, high = proportion_confint(k, figure.n, method="wilson")
            assert figure.interval == pytest.approx((100 * low, 100 * high), abs=1e-9)
        else:
            assert figure.unit != "percent" or figure.n is None or figure.bound or figure.high


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"source": "hearsay"}, "unknown source"),
        ({"value": 101.0}, "between 0 and 100"),
        ({"low": 99.0}, "should not fall"),
        ({"unit": "feet"}, "unit"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_published_table_is_checked(change: dict[str, Any], complaint: str) -> None:
    data = published.published().model_dump()
    data["figure"] = [{**data["figure"][0], **change}]
    with pytest.raises(ValidationError, match=complaint):
        published.Published.model_validate(data)


def test_a_figure_stands_once() -> None:
    data = published.published().model_dump()
    with pytest.raises(ValidationError, match="stands twice"):
        published.Published.model_validate({**data, "figure": [data["figure"][0]] * 2})


# --- calibration and strength -----------------------------------------------------------------------


def test_interval_of_a_clustered_mean_is_that_of_the_cluster_means() -> None:
    rng = np.random.default_rng(3)
    scores = rng.uniform(0, 100, 65)
    mean = strengths.clustered_mean(scores.tolist(), [str(i) for i in range(65)])
    low, high = scipy_stats.t.interval(0.95, 64, scores.mean(), scipy_stats.sem(scores))
    assert mean.value == pytest.approx(scores.mean())
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=1.5)
    # the same scores, each three times: trials are not worth more than their clusters
    again = strengths.clustered_mean(scores.repeat(3).tolist(), [str(i // 3) for i in range(195)])
    assert again.high - again.low == pytest.approx(mean.high - mean.low, rel=0.15)
    alone = strengths.clustered_mean([30.0, 40.0], ["q", "q"])
    assert (alone.low, alone.high) == (0, 100)


def test_strengths_are_read_with_what_they_achieved(run: Path) -> None:
    found = gather(run).strengths
    assert [s.calibration.reached for s in found] == [True] * 5 + [False]
    assert found[-1].reason.startswith("too far off")
    achieved = [s.achieved.value for s in found[:5] if s.achieved]
    assert achieved == sorted(achieved)
    for s in found:
        assert s.achieved is not None
        assert s.achieved.n == 14
        assert s.achieved.clusters == 7
        assert s.achieved.low <= s.achieved.value <= s.achieved.high
    close = strengths.share_close(found, 30.0)
    k = sum(abs(a - 30) <= 8 for a in achieved)
    assert (close.k, close.n) == (k, 6)
    assert (close.low, close.high) == pytest.approx(proportion_confint(k, 6, method="wilson"))


def with_strengths(n: int, directions: int) -> list[Outcome]:
    rng = np.random.default_rng(n)
    return [
        replace(
            trial(
                float(rng.uniform(0, 100)),
                float(rng.uniform(0, 100)) if rng.random() < 0.4 else None,
                cluster=f"c{i % directions}",
                key=str(i),
            ),
            strength=1 + (i % directions) / 10,
        )
        for i in range(n)
    ]


@pytest.mark.parametrize(("n", "directions"), [(1, 1), (17, 3), (65, 17), (195, 65)])
def test_points_and_steps_hold_every_trial_once(n: int, directions: int) -> None:
    outcomes = with_strengths(n, directions)
    points, steps = doses.by_direction(outcomes), doses.pooled(outcomes)
    assert sum(p.n for p in points) == n
    for p in points:
        group = [o for o in outcomes if o.cluster == p.direction]
        assert p.rates["multi_attempt"].value == pytest.approx(
            100 * sum(bool(o.multi) for o in group) / len(group)
        )
        firsts = [o.first for o in group if o.first is not None]
        assert p.rates["first_score"].value == pytest.approx(sum(firsts) / len(firsts))
    if directions < 2 * doses.CLUSTERS:
        assert not steps
        return
    assert sum(s.n for s in steps) == n
    for s, after in pairwise(steps):
        assert s.high == after.low
    last = steps[-1]
    inside = [o for o in outcomes if o.strength is not None and last.low <= o.strength]
    assert last.n == len(inside)
    assert last.rates["esr"].value == pytest.approx(100 * sum(bool(o.esr) for o in inside) / last.n)


def test_missing_and_unsteered_trials_have_no_dose() -> None:
    outcomes = [trial(None), trial(50.0), replace(trial(None), strength=1.0)]
    assert doses.by_direction(outcomes) == []
    assert doses.pooled(outcomes) == []


# --- the page -------------------------------------------------------------------------------------


def test_headline_numbers_are_those_of_the_summaries(run: Path, html: str) -> None:
    words = " ".join(Reader(html).words.split())
    for experiment in gather(run).experiments:
        for s in experiment.analysis.summaries:
            for estimate in (s.multi_attempt, s.esr, s.cond_improvement, s.chance_improvement):
                c = wording.cell(estimate)
                assert f"{c.value} {c.interval}".strip() in words


def test_figures_lie_beside_the_page_in_both_forms(run: Path, html: str) -> None:
    folder = run / "report_figures"
    drawn = {p.stem for p in folder.glob("*.svg")}
    assert drawn == {p.stem for p in folder.glob("*.png")}
    assert {"rates", "outcomes", "invented-funnel", "invented-calibration"} <= drawn
    assert all(f'id="figure-{name}"' in html for name in drawn)


def test_texts_of_figures_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No label is cut off by the figure's edge, and no line break becomes a stand-in."""
    cut, seen, kept = [], [], gallery.keep

    def keep(figure: Figure, folder: Path, name: str, alt: str) -> Any:
        made = kept(figure, folder, name, alt)
        figure.draw_without_rendering()
        for text in figure.findobj(Text):
            # ticks beyond the ends of an axis exist and are not drawn
            if text.get_visible() and re.search("[a-z]", text.get_text()):
                box, edge = text.get_window_extent(), figure.bbox
                seen.append(text.get_text())
                if box.x0 < edge.x0 - 1 or box.x1 > edge.x1 + 1:
                    cut.append((name, text.get_text()))
        return made

    monkeypatch.setattr(gallery, "keep", keep)
    config = {"name": "a-run-with-a-name-of-some-length"}
    for name in ("a", "b"):
        invented(tmp_path / name, config=config)
    write_report([tmp_path])
    assert len(seen) > 50
    assert not cut
    assert not any("\ufffd" in text for text in seen if "steered" in text)


def test_same_run_same_bytes(run: Path, html: str, tmp_path: Path) -> None:
    again = write_report([run], tmp_path / "again.html").path
    assert again.read_text("utf-8") == html
    for file in (run / "report_figures").iterdir():
        assert (tmp_path / "report_figures" / file.name).read_bytes() == file.read_bytes()


def test_several_runs_share_a_page(tmp_path: Path) -> None:
    for name in ("a", "b"):
        invented(tmp_path / "both" / name, 12)
    path = write_report([tmp_path / "both"]).path
    assert path == (tmp_path / "both").resolve() / "report.html"
    data = island(path.read_text("utf-8"))
    assert len(set(data["runs"])) == 2  # one name, told apart by their folders
    assert len(data["trials"]) == 48


def test_a_run_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    folder = invented(tmp_path / "both" / "a", 6)
    (tmp_path / "link").symlink_to(folder)
    assert run_folders([folder, tmp_path / "link", tmp_path / "both"]) == [folder]


def test_runs_are_told_apart_in_the_terminal(tmp_path: Path) -> None:
    for name in ("a", "b"):
        invented(tmp_path / name, 6)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    lines = {line.strip() for line in done.output.splitlines()}
    assert {"invented (a)", "invented (b)"} <= lines
    assert "tiny" not in lines


def test_run_that_is_going_on_is_reported(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("report*"))
    with Store.open(tmp_path / "run", {**CONFIG}) as store:
        more = make_trial(1000)
        store.add([(more, say(more, "just now"))])
        store.put_artifact("planned/esr", 99)
        notes = " ".join(gather(tmp_path / "run").notes)
    assert "has not ended" in notes
    assert "61 of 99 planned trials" in notes
    assert "1 of 61 trials are not judged" in notes


def test_run_without_verdicts_is_reported(tmp_path: Path) -> None:
    html = write_report([invented(tmp_path / "run", 5, judge=False)]).path.read_text("utf-8")
    words = Reader(html).words
    assert "5 of 5 trials are not judged" in words
    assert "no trial is scored yet" in words
    assert {t["status"] for t in island(html)["trials"]} == {"unjudged"}


def test_run_that_has_only_calibrated_is_reported(tmp_path: Path) -> None:
    words = Reader(write_report([invented(tmp_path / "run", 0)]).path.read_text("utf-8")).words
    assert "only what comes before" in words
    assert "Of 6 directions" in words


def test_protocol_of_another_version_is_named(tmp_path: Path) -> None:
    folder = invented(tmp_path / "run", 3)
    with Store.open(folder, {**CONFIG}) as store:
        strange = make_trial(1, "telepathy")
        store.add([(strange, say(strange, "x"))])
    [note] = gather(folder).notes
    assert "does not know them: telepathy" in note


def test_protocols_that_others_need_are_reported_too(tmp_path: Path) -> None:
    with Store.open(tmp_path / "run", {**CONFIG, "protocols": ["ablation", "telepathy"]}) as store:
        names = known_protocols(store)
    assert names.index("detectors") < names.index("matching") < names.index("ablation")
    assert "telepathy" not in names


def test_empty_run_is_one_clear_line(tmp_path: Path) -> None:
    Store.open(tmp_path / "run", {**CONFIG}).close()
    with pytest.raises(UserError, match=r"nothing to report yet.*steerback status"):
        write_report([tmp_path / "run"])


def test_unknown_judge_and_place_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no verdicts of judge 'exakt'; did you mean 'exact'"):
        write_report([run], judge="exakt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write here"):
        write_report([run], tmp_path / "file" / "report.html")


class Fake:
    """A protocol that the report has never heard of."""

    name = "fake"
    asks = "Is <b>this</b> shown?"

    def analyse(self, records: Any) -> Analysis:
        a, b = arm(1, 9, 5), arm(2, 9, 5)
        summary = summarise(a, protocol="fake", arm="strange", model="tiny", n_resamples=99)
        rate = Rate(1, 4, 2, 0, 0.1, 0.6, "by hand")
        sheet = Sheet(
            "A sheet",
            ("what", "rate", "p"),
            (("first", rate, 0.01234), ("second", None, math.nan)),
            ("so",),
        )
        return Analysis(
            (summary,), (("strange with odd", compare(a, b, "esr", n_resamples=99)),), (sheet,)
        )


def test_any_protocol_is_shown(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("report*"))
    with Store.open(tmp_path / "run", {**CONFIG}) as store:
        odd = make_trial(7, "fake", arm="strange")
        store.add([(odd, say(odd, "odd"))])
        store.add_verdicts([judged(odd, "odd", 50.0)])
    known = {**protocols.registry(), "fake": Fake()}
    monkeypatch.setattr(protocols, "registry", lambda: known)
    words = " ".join(Reader(write_report([tmp_path / "run"]).path.read_text()).words.split())
    assert "Is <b>this</b> shown?" in words
    assert "strange with odd" in words
    assert "A sheet" in words
    assert "0.25 0.1 to 0.6" in words
    assert "0.0123" in words


# --- the command line ---------------------------------------------------------------------------------


def test_command_prints_where_the_page_is(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "there.html"
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(target)])
    assert done.exit_code == 0
    assert "there.html" in done.output
    assert target.is_file()
