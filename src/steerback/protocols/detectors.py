"""Latents that fire when a response answers another prompt than the one that was asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from pydantic import Field

from steerback import detection
from steerback.detection import Choice, Ranking, Rule
from steerback.prompts import counterpart, load_prompts
from steerback.protocols.base import Analysis, Entry, Inputs, Sheet
from steerback.protocols.bench import Bench, Text
from steerback.records import Records
from steerback.stats import holm
from steerback.tomlfile import Table
from steerback.types import Generation, Message, Trial, derive_seed

Pool = Literal["max", "mean"]
POOLS: tuple[Pool, ...] = ("max", "mean")
RULES: tuple[Rule, ...] = ("strict", "separability", "cohens-d")
UNSEEN = "held out"
"""Name of the ranking on held-out questions (own pool)."""
RUNNERS_UP = 5
"""Shown where no latent passes."""
SEARCH, HELDOUT = "unsteered", "unsteered, held out"
COLUMNS = (
    "latent",
    "label",
    "AUC",
    "Cohen's d",
    "p (Holm, all latents)",
    "fires on matched",
    "on mismatched",
    "mean on matched",
    "on mismatched",
    "AUC, held out",
    "d, held out",
    "p, held out (Holm, these)",
)


class Settings(Table):
    rule: Rule = Field(
        default="separability",
        description="strict: zero on all matched pairs, not zero on 80% of mismatched ones (as "
        "published). separability: by the area under the ROC curve. cohens-d: by Cohen's d.",
    )
    k: int = Field(default=26, ge=1, description="Most detectors that are chosen.")
    auc_min: float = Field(
        default=0.9, ge=0.5, le=1, description="Least AUC under the rule separability."
    )
    d_min: float = Field(default=0.8, description="Least Cohen's d under the rule cohens-d.")
    pool: Pool = Field(
        default="max",
        description="Over response tokens. max: largest activation (as published). mean: average.",
    )
    derangements: int = Field(
        default=5, ge=1, description="Other prompts that each response is read after."
    )
    heldout: str = Field(
        default="auto",
        description="Questions that the choice does not see: a set as in `prompts`. auto: the "
        "packaged set that belongs to `prompts`; for questions of your own, a random half of them.",
    )
    neuronpedia: str = Field(
        default="",
        description="Neuronpedia's name of the SAE, for links, such as "
        "gemma-2-2b/16-gemmascope-res-16k.",
    )

    def choice(self) -> Choice:
        return Choice(self.rule, self.k, self.auc_min, self.d_min)


class Detectors:
    name = "detectors"
    asks = "Which latents tell that a response answers another prompt than the one asked?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ()

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        own = cast("Settings", settings)
        search, heldout = question_sets(inputs, own)
        texts = _responses(bench, inputs, search, SEARCH)
        unseen = _responses(bench, inputs, heldout, HELDOUT)
        rankings: dict[str, Ranking] = {}
        for pool in POOLS:
            readings = _readings(bench, texts, own.derangements, inputs.seed, pool)
            rankings[pool] = detection.rank(*readings)
            if pool == own.pool:
                chosen = own.choice().choose(rankings[pool])
                alone = [detection.rank(readings[0], one[None]) for one in readings[1]]
                overlaps = [detection.overlap(chosen, ranking, own.rule) for ranking in alone]
        rankings[UNSEEN] = detection.rank(
            *_readings(bench, unseen, own.derangements, inputs.seed, own.pool)
        )
        shown = sorted(
            {k for ranking in rankings.values() for k in _best(ranking, own)} | {*chosen}
        )
        return {
            "chosen": chosen,
            "search": list(search),
            "heldout": list(heldout),
            "overlaps": overlaps if chosen else [],
            "labels": {str(k): bench.labels[k] for k in shown if k in bench.labels},
            "rankings": {name: ranking.as_json() for name, ranking in rankings.items()},
        }

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        search, heldout = question_sets(inputs, cast("Settings", settings))
        return _trials(inputs, search, SEARCH) + _trials(inputs, heldout, HELDOUT)

    def analyse(self, records: Records) -> Analysis:
        made_with, found = records.finding(self.name)
        if made_with is None:
            return Analysis()
        settings = Settings.model_validate(made_with)
        rankings = {n: Ranking.from_json(columns) for n, columns in found["rankings"].items()}
        return Analysis(
            sheets=(_detectors(found, rankings, settings), _rules(found, rankings, settings))
        )


# --- questions and responses -----------------------------------------------------------------


def question_sets(inputs: Inputs, settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Questions that detectors are chosen on, and those they are tested on."""
    spec = counterpart(inputs.prompts) if settings.heldout == "auto" else settings.heldout
    if spec:
        heldout = tuple(q for q in load_prompts(spec).questions if q not in inputs.questions)
        return inputs.questions, heldout
    rng = np.random.default_rng(derive_seed(inputs.seed, "held-out half"))
    order = rng.permutation(len(inputs.questions)).tolist()
    half = len(order) // 2
    return tuple(inputs.questions[i] for i in order[half:]), tuple(
        inputs.questions[i] for i in order[:half]
    )


def _trials(inputs: Inputs, questions: Sequence[str], arm: str) -> list[Trial]:
    return [
        Trial(
            protocol="detectors",
            arm=arm,
            model=inputs.model,
            question=q,
            messages=(Message("user", q),),
            sampling=inputs.sampling,
            seed=derive_seed(inputs.seed, "detectors", q),
            variant=inputs.variant,
        )
        for q in questions
    ]


def _responses(bench: Bench, inputs: Inputs, questions: Sequence[str], arm: str) -> list[Text]:
    """Unsteered responses, each after its own prompt."""
    trials = _trials(inputs, questions, arm)
    return [text_of(g) for g in bench.execute(trials, f"detectors, {arm}")]


def text_of(generation: Generation) -> Text:
    """What was drawn, without the token that ended it."""
    ids = generation.token_ids
    return Text(generation.prompt_ids, ids[:-1] if generation.finish_reason == "eos" else ids)


def _readings(
    bench: Bench, texts: Sequence[Text], count: int, seed: int, pool: Pool
) -> tuple[detection.Readings, detection.Readings]:
    """Matched [responses, latents] and mismatched [derangements, responses, latents]."""
    spoken = [t for t in texts if t.response_ids]
    pairs = detection.derangements(len(spoken), count, seed)
    matched = bench.read(spoken, layer=bench.readout_layer, pool=pool)
    mismatched = np.empty((count, *matched.shape), np.float32)
    for row, prompts in zip(mismatched, pairs, strict=True):
        moved = [
            Text(spoken[p].prompt_ids, text.response_ids)
            for p, text in zip(prompts, spoken, strict=True)
        ]
        row[:] = bench.read(moved, layer=bench.readout_layer, pool=pool)
    return matched, mismatched


# --- tables ----------------------------------------------------------------------------------


def _best(ranking: Ranking, settings: Settings) -> list[int]:
    return [int(k) for k in detection.order(ranking, settings.rule)[: max(settings.k, RUNNERS_UP)]]


def _detectors(found: Any, rankings: dict[str, Ranking], settings: Settings) -> Sheet:
    """The chosen latents, best first; the best of those that fail if none passes."""
    ranking, unseen = rankings[settings.pool], rankings[UNSEEN]
    shown = found["chosen"] or _best(ranking, settings)[:RUNNERS_UP]
    p_unseen = holm(unseen.p[shown])
    rows = tuple(
        (*_row(k, ranking, found["labels"]), float(unseen.auc[k]), float(unseen.d[k]), float(p))
        + (
            (f"https://www.neuronpedia.org/{settings.neuronpedia}/{k}",)
            if settings.neuronpedia
            else ()
        )
        for k, p in zip(shown, p_unseen, strict=True)
    )
    n = len(found["search"])
    notes = [
        f"{n} responses, each after its own question and after {settings.derangements} others; "
        f"{settings.pool} over tokens; {len(found['heldout'])} held-out questions"
    ]
    if not found["chosen"]:
        notes.append(f"no latent passes the rule {settings.rule}: these come nearest")
    columns = (*COLUMNS, *(("Neuronpedia",) if settings.neuronpedia else ()))
    return Sheet(f"Detectors, rule {settings.rule}", columns, rows, tuple(notes))


def _row(k: int, ranking: Ranking, labels: dict[str, str]) -> tuple[Entry, ...]:
    names = ("auc", "d", "p_holm", "on_matched", "on_mismatched", "mean_matched", "mean_mismatched")
    return (k, labels.get(str(k), ""), *(ranking.row(k)[name] for name in names))


def _rules(found: Any, rankings: dict[str, Ranking], settings: Settings) -> Sheet:
    """How many latents meet each rule, and whether the choice would have been the same elsewhere."""
    own = rankings[settings.pool]
    rows = []
    for rule in RULES:
        choice = settings.model_copy(update={"rule": rule}).choice()
        counts = [int(choice.passes(rankings[name]).sum()) for name in (*POOLS, UNSEEN)]
        again = choice.passes(rankings[UNSEEN])[choice.choose(own)]
        share = float(again.mean()) if len(again) else None
        rows.append((rule, *counts, len(again), share))
    columns = (
        "rule",
        "pass, max",
        "pass, mean",
        f"pass, held out ({settings.pool})",
        "best k",
        "of these pass held out",
    )
    overlaps = found["overlaps"]
    notes = (
        (
            f"share of the chosen among the best {len(found['chosen'])} by one derangement alone: "
            f"{min(overlaps):.2f} to {max(overlaps):.2f}; by the held-out questions: "
            f"{detection.overlap(found['chosen'], rankings[UNSEEN], settings.rule):.2f}",
        )
        if overlaps
        else ()
    )
    return Sheet("Do they replicate?", columns, tuple(rows), notes)


PROTOCOL = Detectors()
