"""What a run works with: its model, SAE, questions and judge, and the loop that makes trials real.

`Lab.execute` is that loop: what is not stored is generated, appended, and judged while the next is
generated. Above it is planning, below it engines and judges.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from steerback import organism
from steerback.config import RunConfig
from steerback.desk import Desk, has_thirds
from steerback.engine.base import Progress, Watch
from steerback.engine.choice import open_engine
from steerback.engine.places import Place
from steerback.engine.shared import SharedEngine
from steerback.errors import UserError
from steerback.judge import rest, thirds
from steerback.judge.base import Judge
from steerback.judge.registry import check_prompt, make_judge, runs_a_model
from steerback.labels import Label, read_labels
from steerback.labels import digest as labels_digest
from steerback.latents import FEWEST
from steerback.prompts import PromptSet, load_prompts
from steerback.sae import Source, load_sae
from steerback.sae.source import hash_files
from steerback.store import Store
from steerback.types import Generation, Message, Trial, Verdict
from steerback.ui import Ui
from steerback.vectors import VectorSet

SOURCE, VECTORS = "sae", "vectors"
"""Names of the run's SAE, and of its file of vectors, in interventions."""

JUDGE_CACHE = "judge-answers.sqlite"
"""File of the run folder that keeps a provider's answers, so that none is paid for twice."""

BATCH = 32
"""Finished trials that are stored together: what a kill can lose, with those in flight."""


class Lab:
    """One run's instruments. Trials and verdicts go through `execute` and nothing else."""

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        *,
        engine: SharedEngine,
        judge: Judge,
        questions: Sequence[str],
        labels: dict[int, Label],
        ui: Ui,
        towards: dict[str, str],
    ) -> None:
        self.config, self.store, self.engine, self.judge, self.ui = config, store, engine, judge, ui
        self.questions = tuple(questions)
        self.labels = labels
        self.towards = towards
        """Label of what each trial is steered towards, by trial key: some judges ask."""
        self.verdicts = store.verdicts(judge.name)

    @classmethod
    def open(cls, config: RunConfig, store: Store, ui: Ui) -> Lab:
        """Load everything that `config` names; what it turned out to be goes to the provenance."""
        ui.stage(f"loading {config.model.source}")
        prompts = load_prompts(config.prompts)
        refuse_few(prompts)
        check_prompt(config.judging.prompt)
        towards: dict[str, str] = {}
        # one that does not run here comes first: a missing key shows before a model is loaded
        judge = None
        if not runs_a_model(config.judge):
            judge = _judge(config, store, None, towards)
        engine, hashes = load_engine(config, config.model.slots)
        refuse_impossible(config, engine, prompts.questions)
        judge = judge or _judge(config, store, engine, towards)
        facts = {
            **hashes,
            "prompts": {
                "name": prompts.name,
                "n": len(prompts.questions),
                "sha256": prompts.sha256,
            },
        }
        refuse_changed(store, facts)
        _say_moved(store, engine.kind, ui)
        labels = labels_of(config)
        if config.directions.labels:
            facts["labels_hash"] = labels_digest(config.directions.labels)
        store.note(**facts, judge=judge.name, slots=engine.slots)
        return cls(
            config,
            store,
            engine=engine,
            judge=judge,
            questions=prompts.questions,
            labels=labels,
            ui=ui,
            towards=towards,
        )

    def execute(
        self,
        trials: Iterable[Trial],
        what: str,
        *,
        watch: Watch | None = None,
        implicit: bool = False,
    ) -> None:
        """Make sure that every trial is stored and judged. What is stored already is not made again.

        implicit: judge the first and last third of answers without a restart too.
        """
        wanted = {t.key: t for t in trials}
        self.towards |= {key: self._label(t) for key, t in wanted.items()}
        todo = self.store.missing(wanted.values())
        with Desk(self.judge, self._keep, implicit=implicit) as desk:
            if len(todo) < len(wanted):
                self._catch_up(desk, wanted)
            for batch in self._generate(todo, what, watch):
                desk.submit(batch)

    def judge_rest(self, trials: Iterable[Trial]) -> None:
        """Make sure that what follows the prefill is judged by itself."""
        wanted = {t.key: t for t in trials}
        waiting = self._lacking(rest.name(self.judge), wanted)
        for start in range(0, len(waiting), BATCH):
            self._keep(rest.judge_rest(self.judge, waiting[start : start + BATCH]))

    def _label(self, trial: Trial) -> str:
        add = trial.steered_by
        if add is None:
            return ""
        if add.source == VECTORS and self.vectors is not None:
            return self.vectors.labels[add.index] if self.vectors.labels else ""
        label = self.labels.get(add.index)
        return label.text if label else ""

    @property
    def vectors(self) -> VectorSet | None:
        """What is steered with instead of latents of the SAE."""
        source = self.engine.sources.get(VECTORS)
        return source if isinstance(source, VectorSet) else None

    def _catch_up(self, desk: Desk, wanted: dict[str, Trial]) -> None:
        """Judge what an interrupted run stored and did not judge, or judged but for the thirds."""
        unjudged = self._lacking(self.judge.name, wanted)
        single = {k for k, v in self.verdicts.items() if has_thirds(v)}
        unread = self._lacking(thirds.name(self.judge), wanted) if desk.implicit else []
        desk.submit(unjudged)
        desk.submit_thirds([pair for pair in unread if pair[0].key in single])

    def _lacking(self, judge: str, wanted: dict[str, Trial]) -> list[tuple[Trial, Generation]]:
        protocols = {t.protocol for t in wanted.values()}
        return [
            pair
            for protocol in sorted(protocols)
            for pair in self.store.unjudged(judge, protocol, retry_errors=True)
            if pair[0].key in wanted
        ]

    def _generate(
        self, todo: Sequence[Trial], what: str, watch: Watch | None
    ) -> Iterator[list[tuple[Trial, Generation]]]:
        """Batches of finished trials, each stored before it is handed on."""
        by_key = {t.key: t for t in todo}
        start, batch = time.perf_counter(), list[tuple[Trial, Generation]]()

        def report(progress: Progress) -> None:
            self.ui.progress(what, progress)

        def store() -> list[tuple[Trial, Generation]]:
            nonlocal start, batch
            seconds = (time.perf_counter() - start) / len(batch)
            self.store.add(batch, engine=self.engine.kind, seconds=seconds)
            stored, batch, start = batch, [], time.perf_counter()
            return stored

        for generation in self.engine.generate(todo, watch=watch, progress=report):
            batch.append((by_key[generation.trial_key], generation))
            if len(batch) >= BATCH:
                yield store()
        if batch:
            yield store()

    def _keep(self, verdicts: Sequence[Verdict]) -> None:
        self.store.add_verdicts(verdicts)
        self.verdicts.update((v.trial_key, v) for v in verdicts if v.judge == self.judge.name)

    def first_score(self, trial: Trial) -> float | None:
        """The first attempt's score of a judged trial; None where there is no valid score."""
        verdict = self.verdicts.get(trial.key)
        if verdict is None or verdict.status != "ok" or not verdict.attempts:
            return None
        return verdict.attempts[0].score


def _judge(
    config: RunConfig, store: Store, engine: SharedEngine | None, towards: dict[str, str]
) -> Judge:
    store.spare |= {JUDGE_CACHE, f"{JUDGE_CACHE}-wal", f"{JUDGE_CACHE}-shm"}
    return make_judge(
        config.judge,
        engine=engine,
        labels=towards,
        prompt=config.judging.prompt,
        mode=config.judging.mode,
        cap=config.judging.calls,
        base_url=config.judging.base_url,
        connections=config.judging.connections,
        cache=store.folder / JUDGE_CACHE,
    )


def _say_moved(store: Store, now: str, ui: Ui) -> None:
    """A run may go on with another engine; it is said, since logits differ in their last bits."""
    before = {str(s.facts["engine"]) for s in store.sessions() if s.facts.get("engine")}
    if before and before != {now}:
        ui.say(f"made with {', '.join(sorted(before))} so far; it goes on with {now}")


CONTENTS = {
    "model_hash": "model",
    "sae_hash": "SAE",
    "prompts": "set of questions",
    "vectors_hash": "file of vectors",
}
"""Facts that must stay as they were for a run to go on, and what they are of."""


def refuse_changed(store: Store, facts: dict[str, Any]) -> None:
    """Raises UserError if a name stands for other contents than when the run began: trials of two
    models would pass as those of one."""
    for session in store.sessions():
        for fact, what in CONTENTS.items():
            before = session.facts.get(fact)
            if before and before != facts.get(fact):
                day = time.strftime("%Y-%m-%d", time.localtime(session.started))
                raise UserError(
                    f"{store.folder}: the contents of the {what} are not those that this run was "
                    f"made with on {day}; put them back or choose another folder"
                )


def refuse_few(prompts: PromptSet) -> None:
    """Raises UserError where there are no other questions to verify a strength on."""
    if len(prompts.questions) < FEWEST:
        raise UserError(
            f"prompts: {prompts.name} holds one question, and strengths are verified on others; "
            f"use {FEWEST} or more"
        )


def refuse_impossible(config: RunConfig, engine: SharedEngine, questions: Sequence[str]) -> None:
    """Raises UserError, before anything is made, for layers, latents and lengths that the model or
    its SAE does not have."""
    engine.check_layer(config.model.steer_layer, "model.steer_layer")
    read_at = "sae.layer" if config.model.readout_layer is None else "model.readout_layer"
    engine.check_layer(config.readout_layer, read_at)
    steered = VECTORS if config.directions.vectors else SOURCE
    source = engine.sources[steered]
    source.directions(config.directions.indices)
    if isinstance(source, VectorSet):
        source.check_lengths(config.directions.indices or range(source.n))
    for question in questions:
        engine.check(
            Trial(
                protocol="",
                arm="",
                model=config.model.name,
                question=question,
                messages=(Message("user", question),),
                sampling=config.drawing(),
                seed=0,
                variant=config.variant,
            )
        )


def load_engine(config: RunConfig, slots: int) -> tuple[SharedEngine, dict[str, str]]:
    """The run's model and SAE, and what they turned out to be: content hashes and decoder."""
    model = model_path(config.model.source)
    sae = load_sae(sae_path(config.sae.spec), name=SOURCE)
    if config.sae.latents not in (None, sae.n):
        raise UserError(
            f"{config.sae.spec} has {sae.n} latents, but sae.latents is {config.sae.latents}; it is "
            "another SAE than the one meant"
        )
    sources: dict[str, Source] = {SOURCE: sae}
    places = _places(config)
    facts = {"sae_hash": sae.content_hash()}
    if config.directions.vectors:
        vectors = VectorSet.load(config.directions.vectors, VECTORS)
        sources[VECTORS] = vectors
        facts["vectors_hash"] = vectors.content_hash()
    engine = open_engine(config, model, slots, sources, places)
    facts |= {"model_hash": fingerprint(model, engine.config), "engine": engine.kind}
    return engine, facts


def serving(config: RunConfig) -> list[str]:
    """The command line that serves the run's model, with the directions it has now."""
    from steerback.engine import choice

    return choice.serving(config, model_path(config.model.source), _places(config))


def _places(config: RunConfig) -> dict[str, Place]:
    places = {SOURCE: Place("sae", _absolute(sae_path(config.sae.spec)))}
    if config.directions.vectors:
        places[VECTORS] = Place("vectors", _absolute(config.directions.vectors))
    return places


def _absolute(spec: str | Path) -> str:
    """For processes that stand elsewhere: a path from the root, a release name as it is."""
    return str(Path(spec).resolve()) if Path(spec).exists() else str(spec)


def model_path(source: str) -> str | Path:
    """What to load: `organism:NAME` is the folder of a packaged organism."""
    kind, _, name = source.partition(":")
    return organism.path(name) if kind == "organism" else source


def sae_path(spec: str) -> str | Path:
    kind, _, name = spec.partition(":")
    return organism.sae_path(name) if kind == "organism" else spec


def labels_of(config: RunConfig) -> dict[int, Label]:
    """Labels of the latents: the file that is named, or the organism's own."""
    if config.directions.labels:
        return read_labels(config.directions.labels, config.directions.labels_sha256)
    return own_labels(config.sae.spec)


def own_labels(sae: str) -> dict[int, Label]:
    """Labels that come with a packaged organism's SAE; none for any other."""
    kind, _, name = sae.partition(":")
    return read_labels(organism.sae_path(name) / "labels.csv") if kind == "organism" else {}


def fingerprint(path: str | Path, config: Any) -> str:
    """The hub commit of a downloaded model, or the SHA-256 of a folder's weights."""
    folder = Path(path)
    if folder.is_dir():
        weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
        return hash_files(weights) if weights else ""
    return str(getattr(config, "_commit_hash", "") or "")
