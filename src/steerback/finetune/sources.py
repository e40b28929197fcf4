"""Where rows come from: a file, the organisms' world, a model that writes, a model's own text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from steerback.errors import UserError
from steerback.finetune import gather, organisms, overlap, pushes, rows, writer
from steerback.finetune.gather import Gathered
from steerback.finetune.rows import Row
from steerback.finetune.settings import SteeringSettings
from steerback.finetune.work import base_of
from steerback.prompts import load_prompts

TRAINING = "organism:train"
"""Questions of the organisms' training tasks."""


@dataclass(frozen=True)
class Wanted:
    """One source is set: file, organism, writer or own."""

    file: Path | None = None
    organism: bool = False
    writer: str = ""
    """Name of the model that writes."""
    own: str = ""
    """The model, as a preset or configuration, that corrects its own steered text."""
    questions: str = ""
    subjects: Path | None = None
    count: int = 2000
    corrections: float = 0.5
    strength: tuple[float, float] = (0.5, 1.5)
    against: tuple[str, ...] = ()
    seed: int = 0
    cache: Path = Path("finetune.answers.sqlite")
    """What a provider answered."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of the writer: cap, base_url."""


def gathered(wanted: Wanted) -> Gathered:
    """Rows that are fit to train on. UserError unless one source is set."""
    chosen = [wanted.file is not None, wanted.organism, bool(wanted.writer), bool(wanted.own)]
    if sum(chosen) != 1:
        raise UserError(
            "say where rows come from: --from FILE, --organism, --writer MODEL or --self MODEL"
        )
    made: Iterable[Row]
    failed: Counter[str] = Counter()
    where = "row"
    if wanted.file is not None:
        made, where = rows.read(wanted.file), f"{wanted.file}: row"
    elif wanted.organism:
        made = organisms.rows(wanted.count, wanted.corrections, wanted.seed)
    else:
        asked = questions(wanted)
        made, failed = _written(wanted, asked) if wanted.writer else _own(wanted, asked)
    found = gather.fit(made, wanted.against, where)
    found.left_out += failed
    return found


def questions(wanted: Wanted) -> tuple[str, ...]:
    """To train on. UserError, before anything is written, if an evaluation asks one of them."""
    if not wanted.questions:
        raise UserError("--writer and --self need questions to train on: --questions FILE")
    if wanted.questions == TRAINING:
        from steerback import organism

        return tuple(q.text for q in organism.questions("train"))
    found = load_prompts(wanted.questions).questions
    evaluation = overlap.evaluation_questions(wanted.against)
    overlap.refuse_shared(found, evaluation, f"{wanted.questions}: question")
    return found


def _written(wanted: Wanted, asked: tuple[str, ...]) -> tuple[list[Row], Counter[str]]:
    about = writer.subjects(wanted.subjects)
    model = writer.asker(wanted.writer, wanted.cache, **wanted.settings)
    return writer.write(model, asked, wanted.count, wanted.corrections, about, wanted.seed)


def _own(wanted: Wanted, asked: tuple[str, ...]) -> tuple[list[Row], Counter[str]]:
    from steerback.engine.choice import in_process
    from steerback.finetune import own
    from steerback.judge.registry import make_judge
    from steerback.lab import SOURCE, labels_of, load_engine

    config = base_of(wanted.own)
    engine, _ = load_engine(config, config.model.slots)
    latents = pushes.latents(
        engine.sources[SOURCE], labels_of(config), config.directions.concreteness_min
    )
    trained, _ = pushes.kept(latents, SteeringSettings().held_out, wanted.seed)
    engine.measure_norm(config.model.steer_layer, asked[:32])
    speech = own.Speech(
        in_process(engine),
        make_judge(config.judge, engine=engine, cache=wanted.cache),
        config.drawing(),
        tuple(trained),
        config.model.steer_layer,
        wanted.strength,
    )
    return own.write(speech, asked, wanted.count, wanted.corrections, wanted.seed)
