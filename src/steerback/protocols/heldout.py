"""Other protocols again, on questions that nothing was chosen or calibrated on: what replicates?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from pydantic import Field, field_validator

from steerback import replication
from steerback.errors import UserError
from steerback.prompts import counterpart, load_prompts
from steerback.protocols.base import Analysis, Continued, Entry, Inputs, Sheet, Staged
from steerback.protocols.bench import Bench
from steerback.records import Records
from steerback.shelf import Shelf, ShelfBench, shelve, unshelve
from steerback.stats import Outcome, points
from steerback.tomlfile import Table
from steerback.types import Trial

MEASURES = ("multi_attempt", "esr", "first_score")


class Settings(Table):
    protocols: list[str] = Field(
        default=["baseline", "esr"],
        min_length=1,
        description="Protocols that are run again, with the settings that they have in the run; those "
        "that they need come with them.",
    )
    questions: str = Field(
        default="auto",
        min_length=1,
        description="Held-out questions, a set as in `prompts`. auto: the packaged set that belongs "
        "to `prompts`.",
    )

    @field_validator("protocols")
    @classmethod
    def _others(cls, value: list[str]) -> list[str]:
        if "heldout" in value:
            raise ValueError("it should name other protocols than heldout")
        return value


class Heldout:
    name = "heldout"
    asks = "What replicates on questions that nothing was chosen or calibrated on?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ()

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        from steerback import protocols  # which imports this module

        own = cast("Settings", settings)
        where = question_set(inputs, own)
        questions = load_prompts(where).questions
        related = bench.relevant(questions, [(d.source, d.index) for d in inputs.directions])
        found: dict[str, Any] = {
            "prompts": where,
            "questions": list(questions),
            "skip": {
                d.id: [q for q, yes in zip(questions, column, strict=True) if yes]
                for d, column in zip(inputs.directions, related.T, strict=True)
            },
            "inner": {},
        }
        inside = cast("Bench", ShelfBench(bench, self.name))
        for name in protocols.with_needs(own.protocols):
            protocol = protocols.get(name)
            table = protocol.settings.model_validate(bench.settings(name))
            inner = _inputs(inputs, found)
            looked = protocol.before(inside, inner, table) if isinstance(protocol, Staged) else None
            found["inner"][name] = {"settings": table.model_dump(mode="json"), "found": looked}
            inside.execute(protocol.plan(_inputs(inputs, found), table), f"{name}, held out")
        return found

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        from steerback import protocols

        found = inputs.found[self.name]
        inner = _inputs(inputs, found)
        return [
            shelve(self.name, t)
            for name, own in found["inner"].items()
            for protocol in [protocols.get(name)]
            for t in protocol.plan(inner, protocol.settings.model_validate(own["settings"]))
        ]

    def continued(self, trials: Sequence[Trial]) -> list[Trial]:
        from steerback import protocols

        def wanted(trial: Trial) -> bool:
            own = unshelve(trial)
            inner = protocols.get(own.protocol)
            return isinstance(inner, Continued) and bool(inner.continued([own]))

        return [t for t in trials if wanted(t)]

    def analyse(self, records: Records) -> Analysis:
        found = records.finding(self.name)[1]
        if found is None:
            return Analysis()
        names = list(found["inner"])
        shelf = Shelf(
            records, self.name, {n: (f["settings"], f["found"]) for n, f in found["inner"].items()}
        )
        return Analysis(
            records.summaries(self.name),
            sheets=(*_differences(records, shelf, names), *_rates(records, shelf, names)),
        )


def question_set(inputs: Inputs, settings: Settings) -> str:
    """Raises UserError where no set belongs to the run's questions."""
    if settings.questions != "auto":
        return settings.questions
    if not (other := counterpart(inputs.prompts)):
        raise UserError(
            f"heldout: no packaged set belongs to the questions {inputs.prompts!r}; name one under "
            "[settings.heldout] questions"
        )
    return other


def _inputs(inputs: Inputs, found: Mapping[str, Any]) -> Inputs:
    """The same directions and strengths with other questions, and what inner protocols found so far."""
    return replace(
        inputs,
        prompts=found["prompts"],
        questions=tuple(found["questions"]),
        directions=tuple(
            replace(d, skip=frozenset(found["skip"][d.id])) for d in inputs.directions
        ),
        found={name: own["found"] for name, own in found["inner"].items()},
    )


# --- what replicates -------------------------------------------------------------------------


def _differences(records: Records, shelf: Records, names: list[str]) -> Iterator[Sheet]:
    """Each comparison of the run beside the same one on held-out questions."""
    from steerback import protocols

    rows: list[tuple[Entry, ...]] = []
    counts: Counter[str] = Counter()
    for name in names:
        first, second = (
            {(title, c.measure): c for title, c in protocols.get(name).analyse(r).comparisons}
            for r in (records, shelf)
        )
        for key in (k for k in first if k in second):
            a, b = first[key], second[key]
            said = replication.verdict(a, b)
            counts[said] += 1
            if said != replication.OPEN:
                rows.append(
                    (
                        name,
                        *key,
                        points(a.difference, a.measure),
                        points(b.difference, b.measure),
                        said,
                    )
                )
    if counts:
        yield Sheet(
            "Which differences replicate?",
            (
                "protocol",
                "comparison",
                "measure",
                "difference, points",
                "held out, points",
                "held-out questions say",
            ),
            tuple(rows),
            (
                "of all comparisons: " + "; ".join(f"{n} {s}" for s, n in counts.most_common()),
                f"not listed: those {replication.OPEN}, whose interval holds 0",
            ),
        )


def _rates(records: Records, shelf: Records, names: list[str]) -> Iterator[Sheet]:
    """Each arm's rates beside those on held-out questions."""
    rows: list[tuple[Entry, ...]] = []
    for name in names:
        for arm, _ in shelf.arms(name):
            a, b = (_outcomes(r, name, arm) for r in (records, shelf))
            if a and b:
                gaps = [points(replication.difference(a, b, m), m) for m in MEASURES]
                rows.append((name, arm, len(a), len(b), *gaps))
    if rows:
        yield Sheet(
            "Held out minus first",
            ("protocol", "arm", "trials", "held out", *(f"difference of {m}" for m in MEASURES)),
            tuple(rows),
            ("all differences in points; intervals resample directions in both samples",),
        )


def _outcomes(records: Records, protocol: str, arm: str) -> list[Outcome]:
    return [r.outcome for r in records.of(protocol, arm)]


PROTOCOL = Heldout()
