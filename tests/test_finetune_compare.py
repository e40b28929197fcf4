"""A base and its tuned models measured alike: one design, paired differences, one report."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from markupsafe import Markup
from matplotlib.figure import Figure

from steerback import organism
from steerback.engine.hf import HFEngine
from steerback.errors import UserError
from steerback.finetune import (
    analysis,
    compare,
    design,
    organisms,
    page,
    perplexity,
    rows,
    settings,
    work,
)
from steerback.finetune.compare import BASE, MAIN, Wanted
from steerback.finetune.evidence import HELD_OUT, PLAIN, SEEN, UNSEEN
from steerback.presets import from_preset
from steerback.protocols.charts import Lines
from steerback.report import charts
from steerback.report.gallery import Gallery, Shown
from steerback.report.wording import entry
from steerback.sae import load_sae
from steerback.stats import summarise
from steerback.store import Store

Made = tuple[Wanted, page.Evidence, page.Analysis]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two short trainings of the naive organism, compared with it in a few trials."""
    folder = tmp_path_factory.mktemp("finetune")
    rows.write(organisms.rows(300, 0.5, seed=1), folder / "rows.jsonl")
    base = from_preset("organism-naive")
    for name, changes in (("plain", {"share": 0.3}), ("steered", {"steering": {}})):
        own = settings.load("organism", {"most": 100, "sentence_weight": 2.0, **changes})
        work.train(work.Job(base, folder / "rows.jsonl", folder / name, own))
    search = base.calibration.model_copy(update={"rounds": 3, "prompts_per_round": 4, "fresh": 6})
    short = base.sampling.model_copy(update={"max_new_tokens": 24})
    wanted = Wanted(
        base=base.model_copy(update={"calibration": search, "sampling": short}),
        tuned=(folder / "plain", folder / "steered"),
        folder=folder / "runs",
        latents=3,
        seen=2,
        per_direction=2,
        factors=(0.5, 1.0),
        layers=(2,),
        random=2,
    )
    compare.run(wanted)
    with pytest.MonkeyPatch.context() as patch:
        # the figures of whole runs take longer than the runs, and have tests of their own
        patch.setattr(Gallery, "draw", lambda _, parts, *__: Shown("-".join(parts), Markup(), ""))
        evidence, found, _ = page.write(wanted)
    return wanted, evidence, found


def test_all_models_get_the_same_directions_strengths_questions_and_seeds(made: Made) -> None:
    wanted, evidence, _ = made
    trained = set(
        json.loads((wanted.tuned[1] / "finetune.json").read_text())["steering"]["indices"]
    )
    found = []
    for model in wanted.models():
        with Store.open(wanted.place(model, MAIN), mode="ro") as store:
            found.append(
                {
                    (t.arm, t.interventions, t.question, t.seed)
                    for t, _ in store.trials(protocol=design.NAME)
                    if t.arm not in (design.HELD_OUT, design.HELD_OUT_PLAIN)
                }
            )
            chosen = [c["index"] for c in store.get_artifact("latents")]
    assert found[0] == found[1] == found[2]
    assert {arm for arm, *_ in found[0]} == {
        *(design.dose(0.5), design.dose(1.0), design.NORMS, design.WANTED)
    }
    assert [k in trained for k in chosen] == [False] * 3 + [True] * 2
    for shared in evidence.design.directions:
        assert shared.seen == (int(shared.id.split(":")[1]) in trained)


def test_doses_are_multiples_of_the_bases_threshold_in_raw_units(made: Made) -> None:
    wanted, evidence, _ = made
    base = wanted.models()[0]
    with Store.open(wanted.place(base, MAIN), mode="ro") as store:
        norm = store.get_artifact("residual_norm")["median"]
        own = {
            t.cluster: t.interventions[0].value
            for t, _ in store.trials(protocol="esr", arm="steered")
        }
        half = {
            t.cluster: t.interventions[0]
            for t, _ in store.trials(protocol=design.NAME, arm=design.dose(0.5))
        }
    # the direction's own norm converts one unit into the other
    known = load_sae(organism.sae_path("naive"), name="sae")
    for cluster, add in half.items():
        length = float(known.directions([add.index])[0].norm())
        assert add.unit == "raw"
        assert add.value == pytest.approx(0.5 * own[cluster] * norm / length, rel=1e-4)
    assert len(half) == len(evidence.design.directions)
    for shared in evidence.design.directions:
        assert shared.resid == pytest.approx(own[shared.id], rel=1e-4)
    for model in wanted.models():
        with Store.open(wanted.place(model, MAIN), mode="ro") as store:
            values = {
                (t.cluster, t.interventions[0].value, t.interventions[0].unit)
                for t, _ in store.trials(protocol=design.NAME, arm=design.NORMS)
            }
        assert values == {(d.id, d.resid, "resid") for d in evidence.design.directions}


def test_held_out_questions_and_wanted_pushes_are_what_they_say(made: Made) -> None:
    wanted, evidence, _ = made
    held_out = {q.text for q in organism.questions("heldout")}
    skip = {d.id: d.skip for d in evidence.design.directions}
    for model in wanted.models():
        with Store.open(wanted.place(model, MAIN), mode="ro") as store:
            for trial, _ in store.trials(protocol=design.NAME):
                if trial.arm == design.WANTED:
                    assert trial.question in skip[trial.cluster]
                elif trial.arm in (design.HELD_OUT, design.HELD_OUT_PLAIN):
                    assert trial.question in held_out
                else:
                    assert trial.question not in skip[trial.cluster]


def test_differences_are_paired_and_every_table_is_there(made: Made) -> None:
    wanted, evidence, found = made
    assert evidence.names == [BASE, "plain", "steered"]
    assert evidence.contrasts() == [(BASE, "plain"), (BASE, "steered"), ("plain", "steered")]
    arms = set(evidence.arms())
    assert {UNSEEN, SEEN, HELD_OUT, PLAIN, "random directions", "layer 2"} <= arms
    for arm in (design.dose(1.0), PLAIN):
        gap = evidence.difference(BASE, "steered", arm, "first_score")
        assert gap is not None
        assert gap.unpaired == (0, 0) or arm == PLAIN
    titles = [s.title for s in found.sheets]
    assert len(titles) == len(set(titles)) == 5
    for sheet in found.sheets:
        assert sheet.rows, sheet.title
        for row in sheet.rows:
            assert len(row) == len(sheet.columns), sheet.title
            assert all(entry(x).value for x in row)
    assert {c.title for c in found.charts} >= {"Loss of plain", "Loss of steered"}
    for chart in found.charts:
        charts.draw(Figure(), chart)
    html = (wanted.folder / "report.html").read_text("utf-8")
    assert "What did training change" in html
    assert "Does it generalise?" in html
    assert "Not analysed" not in html


def test_models_that_differ_in_their_share_make_a_mix_curve(made: Made) -> None:
    _, evidence, _ = made

    def shared(model: compare.Model, share: float) -> compare.Model:
        assert model.record is not None
        data = {**model.record["data"], "share": share}
        return replace(model, record={**model.record, "data": data, "steering": None})

    base, plain, steered = evidence.models
    mixed = replace(evidence, models=(base, shared(plain, 0.6), shared(steered, 0.2)))
    [chart] = [c for c in analysis.analyse(mixed).charts if "Share" in c.title]
    assert isinstance(chart, Lines)
    assert chart.x == (0.0, 0.2, 0.6)
    rates = [
        summarise(evidence.by[name][UNSEEN]).multi_attempt for name in (BASE, "steered", "plain")
    ]
    title, [series] = chart.panels[0]
    assert title == "Multi-attempt rate"
    assert list(series.values) == rates
    assert not [c for c in analysis.analyse(evidence).charts if "Share" in c.title]


def test_a_comparison_is_resumed_and_another_design_is_refused(made: Made) -> None:
    wanted, _, _ = made
    before = sizes(wanted)
    compare.run(wanted)
    assert sizes(wanted) == before
    with pytest.raises(UserError, match="other doses"):
        compare.run(replace(wanted, factors=(0.25,)))
    with pytest.raises(UserError, match="no finished training"):
        compare.run(replace(wanted, tuned=(wanted.folder,)))
    with pytest.raises(UserError, match="its own base"):
        compare.run(replace(wanted, base=from_preset("organism-resister")))


def sizes(wanted: Wanted) -> list[int]:
    out = []
    for model in wanted.models():
        with Store.open(wanted.place(model, MAIN), mode="ro") as store:
            out.append(sum(c.trials for c in store.counts()))
    return out


def test_perplexity_is_that_of_transformers() -> None:
    engine = HFEngine.load(organism.path("naive"), name="naive")
    answers = [
        (q.text, f"Use the pan to bake the loaf. {q.text}") for q in organism.questions()[:20]
    ]
    told = perplexity.score(engine, [*answers, ("Why?", " ")])
    assert len(told) == 20
    tokens = engine.tokenizer
    nats, n = 0.0, 0
    for question, answer in answers:
        prompt = f"<bos><|user|>{question}<|end|><|assistant|>"
        first = len(tokens(prompt, add_special_tokens=False)["input_ids"])
        ids = tokens(f"{prompt}{answer}<eos>", add_special_tokens=False, return_tensors="pt")
        logits = engine.model(ids["input_ids"]).logits[0].log_softmax(-1)
        for at in range(first, ids["input_ids"].shape[1]):
            nats -= float(logits[at - 1, ids["input_ids"][0, at]])
            n += 1
    assert sum(t.tokens for t in told) == n
    found = perplexity.perplexity(told)
    assert found.value == pytest.approx(math.exp(nats / n), rel=1e-5)
    assert found.low < found.value < found.high
    assert perplexity.increase(told, told).value == 1
    twice = [perplexity.Told(t.question, t.nats + t.tokens * math.log(2), t.tokens) for t in told]
    assert perplexity.increase(told, twice).value == pytest.approx(2)
    assert torch.is_grad_enabled()
