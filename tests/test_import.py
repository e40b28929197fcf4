"""Results of the published code as runs: counts and rates equal a straightforward computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published_results import FIRST, LAST, PROMPTS, reference, result, trials_of, write, write_lines

from steerback.cli import main
from steerback.errors import UserError
from steerback.imports import import_results
from steerback.replay import replay
from steerback.report.numbers import summaries
from steerback.report.page import write_report
from steerback.run import analyse
from steerback.stats import Summary
from steerback.store import Store

JUDGE = "claude-haiku-4-5-20251001"
VARIANT = {
    "prompt_variant_id": "self_monitor",
    "prompt_variant_template": "{prompt} Mind {latent_label}.",
}


def agree(found: Summary, wanted: dict[str, float]) -> None:
    assert (found.n, found.missing) == (wanted["n"], wanted["missing"])
    assert found.multi_attempt.k == wanted["restarted"]
    assert found.esr.k == wanted["improved"]
    for name in ("multi_attempt", "esr", "cond_improvement"):
        assert getattr(found, name).rate == pytest.approx(wanted[name])
    assert found.first_score.value == pytest.approx(wanted["first_score"])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_esr_results_have_the_rates_of_the_file(tmp_path: Path, seed: int, form: str) -> None:
    data = result(seed)
    file = tmp_path / f"experiment_results_x.{form}"
    (write if form == "json" else write_lines)(file, data)
    tally = import_results([file], tmp_path / "run")
    assert tally.trials == tally.new == len(trials_of(data))
    assert tally.failed_latents == (form == "json")
    wanted = reference(trials_of(data))
    assert wanted["missing"] > 5
    assert wanted["restarted"] > 10
    [found] = summaries([tmp_path / "run"])
    assert (found.protocol, found.arm, found.clusters) == ("esr", "steered", 20)
    agree(found, wanted)
    counted = {"ok": 0, "unscored": 0, "error": 0}
    for t in trials_of(data):
        attempts = (t["score"] or {}).get("attempts")
        counted["error" if t["error"] else "ok" if attempts else "unscored"] += 1
    assert tally.statuses == counted


def test_attempts_stand_where_their_text_stands(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", result(0))
    import_results([file], tmp_path / "run")
    restarted = 0
    with Store.open(tmp_path / "run", mode="ro") as store:
        verdicts = store.verdicts(JUDGE)
        for trial, made in store.trials():
            assert trial.steered_by.layer == 33
            assert made.finish_reason == "unknown"
            said = [made.text[a.start : a.end] for a in verdicts[trial.key].attempts]
            assert said in ([], [FIRST], [FIRST, LAST.strip()])
            restarted += len(said) == 2
    assert restarted > 10


def test_several_strengths_are_arms(tmp_path: Path) -> None:
    levels = (0.0, 3.25, 7.5)
    data = result(4, strengths=levels, n_boost_levels=3, boost_levels=list(levels))
    import_results([write(tmp_path / "experiment_multi_boost_x.json", data)], tmp_path / "run")
    found = {s.arm: s for s in summaries([tmp_path / "run"])}
    assert list(found) == ["strength 0", "strength 3.25", "strength 7.5"]
    for level in levels:
        own = [t for t in trials_of(data) if t["threshold"] == level]
        agree(found[f"strength {level:g}"], reference(own))


def test_ablation_is_paired_with_what_it_replays(tmp_path: Path) -> None:
    plain = result(5)
    files = [write(tmp_path / "experiment_results_x.json", plain)]
    names = ["x_with_ablation", "x_random_ablation_set0", "x_random_ablation_set1"]
    for n, name in enumerate(names):
        clamped = json.loads(json.dumps(plain)) | {"ablated_latents": [100 + n, 200]}
        for k, trial in enumerate(trials_of(clamped)):
            if k % 7 == n:
                trial["score"] = {"attempts": [{"attempt_text": FIRST, "score": 40}]}
                trial["error"] = None
        files.append(write(tmp_path / f"{name}.json", clamped))
    import_results(files, tmp_path / "run")
    with Store.open(tmp_path / "run", mode="ro") as store:
        found = analyse(store, ["esr", "ablation"])
    arms = {s.arm: s for s in found["ablation"].summaries}
    assert set(arms) == {"detectors", "random set 1", "random set 2"}
    for file, arm in zip(files[1:], ("detectors", "random set 1", "random set 2"), strict=True):
        agree(arms[arm], reference(trials_of(json.loads(file.read_text()))))
    compared = {
        what: c for what, c in found["ablation"].comparisons if c.measure == "multi_attempt"
    }
    against = compared["detectors, against steered"]
    assert against.pairs + against.missing == len(trials_of(plain))
    assert against.unpaired == (0, 0)


def test_baselines_and_metaprompts(tmp_path: Path) -> None:
    unsteered = result(6, experiment_config={"disable_steering": True})
    asked = result(7, experiment_config=VARIANT, experiment_metadata={"prompt_variant_id": "x"})
    files = [write(tmp_path / f"{n}.json", d) for n, d in enumerate((unsteered, asked))]
    import_results(files, tmp_path / "run")
    found = {(s.protocol, s.arm): s for s in summaries([tmp_path / "run"])}
    assert set(found) == {("baseline", "unsteered"), ("metaprompt", "self_monitor")}
    agree(found["baseline", "unsteered"], reference(trials_of(unsteered)))
    agree(found["metaprompt", "self_monitor"], reference(trials_of(asked)))
    with Store.open(tmp_path / "run", mode="ro") as store:
        for trial, _ in store.trials(protocol="metaprompt"):
            assert trial.question in PROMPTS
            assert trial.messages[0].content.endswith(f"Mind boats {trial.steered_by.index}.")
        assert not any(t.interventions for t, _ in store.trials(protocol="baseline"))


def test_what_is_not_known_is_kept(tmp_path: Path) -> None:
    data = result(1, provenance={"commit": "abc"}, experiment_config={"odd": float("nan")})
    import_results([write(tmp_path / "a.json", data)], tmp_path / "run")
    with Store.open(tmp_path / "run", mode="ro") as store:
        [name] = [a for a in store.artifacts() if a.startswith("imported/")]
        kept = store.get_artifact(name)
        verdicts = store.verdicts(JUDGE)
        keys = {t.key for t, _ in store.trials()}
        latents = store.get_artifact("latents")
    assert kept["fields"]["provenance"] == {"commit": "abc"}
    assert kept["fields"]["experiment_config"]["odd"] == "NaN"
    assert kept["latents"][-1]["error"] == "RuntimeError: out of memory"
    assert kept["trials"] == {k: {"own_field": {"of": "the user"}} for k in keys}
    moods = [json.loads(v.raw)["mood"] for v in verdicts.values() if v.status == "ok"]
    assert moods
    assert set(moods) == {"calm"}
    assert {"index": 3, "label": "boats 3", "skip": []} in latents


def test_again_changes_nothing_and_equal_trials_each_count(tmp_path: Path) -> None:
    data = result(2, latents=3)
    trials = data["results_by_feature"][0]["trials"]
    trials[1] = {**trials[0], "response": "Another answer.", "score": {"attempts": []}}
    trials[2] = dict(trials[0])
    file = write(tmp_path / "a.json", data)
    first = import_results([file], tmp_path / "run")
    [before] = summaries([tmp_path / "run"])
    assert (first.new, first.repeated) == (18, 0)
    agree(before, reference(trials_of(data)))
    again = import_results([file], tmp_path / "run")
    assert (again.new, again.repeated, again.conflicts) == (0, 18, 0)
    assert summaries([tmp_path / "run"]) == [before]
    trials[0]["response"] = "A third answer."
    other = import_results([write(tmp_path / "b.json", data)], tmp_path / "run")
    assert (other.new, other.conflicts) == (0, 1)
    assert summaries([tmp_path / "run"]) == [before]


def test_an_imported_run_has_its_report_and_no_replay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.json", result(3, latents=4))
    main(["import", str(file), "--to", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "24 trials:" in said
    assert "1 latents without trials" in said
    page = write_report([tmp_path / "run"]).path.read_text("utf-8")
    assert "Meta-Llama-3.3-70B-Instruct" in page
    with Store.open(tmp_path / "run", mode="ro") as store:
        key = next(t.key for t, _ in store.trials())
    with pytest.raises(UserError, match="no configuration is stored"):
        replay(tmp_path / "run", key)
    main(["export", str(tmp_path / "run"), "--to", "csv"])
    main(["status", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", "{", "a.json: not JSON"),
        ("a.json", "[]", "it needs a list `results_by_feature`"),
        ("a.json", '{"results_by_feature": [3]}', r"results_by_feature\[0\]: is not an object"),
        (
            "a.json",
            '{"results_by_feature": [{"feature_index_in_sae": 1, "trials": [{}]}]}',
            r"results_by_feature\[0\].trials\[0\]: has no field 'prompt'",
        ),
        ("a.jsonl", '{"prompt": "x"}\n', "a.jsonl:1: has no field 'feature_index_in_sae'"),
        ("a.jsonl", '\n{"prompt": "x", "feature_index_in_sae": "y"}\n', "a.jsonl:2: invalid"),
    ],
)
def test_what_is_no_result_file_is_one_line(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        import_results([tmp_path / name], tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_of_ones_own_is_not_mixed_with_others(tmp_path: Path) -> None:
    config: dict[str, Any] = {"name": "mine"}
    with Store.open(tmp_path / "run", config):
        pass
    with pytest.raises(UserError, match="holds a run of its own"):
        import_results([write(tmp_path / "a.json", result(0, latents=1))], tmp_path / "run")
