"""What a run is made of, table by table of its TOML file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from steerback.memory import Quantize
from steerback.search import Method, SearchSettings
from steerback.switches import ANY_MODEL, IN_ENGINE, Switch, in_force
from steerback.tomlfile import Table
from steerback.types import Sampling, Unit

FREE_KEYS = (
    "name",
    "folder",
    "protocols",
    "settings.+",
    "model.device",
    "model.device_map",
    "model.slots",
    "engine",
    "judging.calls",
    "judging.connections",
)
"""Keys that may differ when a run is resumed, because they cannot change a trial. `settings.+`:
a protocol's table may be added or left out, but not changed."""


class ModelConfig(Table):
    name: str = Field(
        min_length=1,
        description="Preset (see `steerback models`), or a Hugging Face id, or a name of your own "
        "if `path` is set.",
    )
    path: str | None = Field(
        default=None, description="Hugging Face id or folder to load; `name` if it is not set."
    )
    revision: str | None = Field(
        default=None, description="Commit, tag or branch of the Hugging Face id."
    )
    steer_layer: int = Field(ge=0, description="0-based decoder layer whose output is steered.")
    readout_layer: int | None = Field(
        default=None,
        ge=0,
        description="0-based decoder layer whose output is read; the SAE's layer if it is not set.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Number format of the weights: float32, bfloat16 or float16."
    )
    quantize: Quantize = Field(
        default="none",
        description="Bits of the decoder layers' matrices: none, int8 or fp8 (torchao), int4 "
        "(bitsandbytes). Weights alone: a trial's text still depends on the trial alone.",
    )
    device_map: str | None = Field(
        default=None,
        min_length=1,
        description="Spread over several devices, as accelerate takes it (auto, balanced, "
        "sequential); none: one device.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto (a GPU if there is one), cpu, cuda, cuda:N or mps.",
    )
    slots: int = Field(default=32, ge=1, description="Trials that are generated at the same time.")

    @property
    def source(self) -> str:
        """What is loaded."""
        return self.path or self.name


class EngineConfig(Table):
    kind: str = Field(
        default="hf",
        pattern=r"^(hf|vllm|ray|https?://\S+)$",
        description="What generates: hf (in this process), vllm (docs/vllm.md), ray (copies of the "
        "model on one machine or a cluster, docs/clusters.md), or the address of a server that "
        "`steerback serve` started.",
    )
    tensor_parallel: int = Field(
        default=1, ge=1, description="vllm: devices that share every layer."
    )
    pipeline_parallel: int = Field(
        default=1, ge=1, description="vllm: groups of devices that have some of the layers each."
    )
    layers: list[int] = Field(
        default=[],
        description="vllm: layers that can be steered and read besides the run's own (steered, read "
        "out, the SAE's).",
    )
    eager: bool = Field(default=False, description="vllm: no torch.compile and no CUDA graphs.")
    memory: float = Field(
        default=0.9, gt=0, le=1, description="vllm: share of each device's memory that it takes."
    )
    actors: int = Field(default=2, ge=1, description="ray: copies of the model.")
    actor: Literal["hf", "vllm"] = Field(default="hf", description="ray: what each copy runs on.")
    gpus: float = Field(
        default=0.0, ge=0, description="ray: GPUs of each copy; 0 keeps it on processors."
    )
    cpus: float = Field(default=1.0, gt=0, description="ray: processor cores of each copy.")


class SaeConfig(Table):
    spec: str = Field(
        min_length=1, description="SAE with the directions: a folder, a file or a release name."
    )
    layer: int = Field(ge=0, description="0-based decoder layer whose output it was trained on.")
    latents: int | None = Field(
        default=None, ge=1, description="Latents that it must have, as a check; none: any number."
    )


class DirectionsConfig(Table):
    count: int = Field(default=24, ge=1, description="Latents to steer with.")
    indices: list[int] = Field(
        default=[],
        description="These latents instead of random ones; `count` and filters do not apply.",
    )
    vectors: str | None = Field(
        default=None,
        description="File of vectors (`steerback vectors make`) to steer with instead of latents of "
        "the SAE; `count` and `indices` then count vectors.",
    )
    labels: str | None = Field(
        default=None,
        description="Labels: a CSV file with the columns index_in_sae and label, a JSON or JSONL export "
        "of Neuronpedia, an address of one of these, or neuronpedia:MODEL/SAE; none: no labels.",
    )
    labels_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-fA-F]{64}$",
        description="SHA-256 that the file of labels must have; none: any.",
    )
    concreteness_min: float = Field(
        default=65.0, ge=0, le=100, description="Least concreteness of a label, 0-100; 0 keeps all."
    )
    rater: str = Field(
        default="words",
        min_length=1,
        description="What rates labels that come without a rating. words: by their words, offline; or "
        "a judge that is a language model (self, hf:MODEL, PROVIDER/MODEL).",
    )
    relevance: Literal["top-100", "zero", "none"] = Field(
        default="top-100",
        description="Latents that have to do with a prompt are left out. top-100: those among its "
        "100 most active; zero: those active at all; none: nothing is left out.",
    )
    scope: Literal["run", "pair"] = Field(
        default="run",
        description="What a relevant latent is left out of. run: of everything (as published); pair: "
        "only of the prompts that it has to do with.",
    )

    @field_validator("indices")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if any(i < 0 for i in value) or len(set(value)) < len(value):
            raise ValueError("it should hold different numbers from 0 on")
        return value


class SamplingConfig(Table):
    temperature: float = Field(default=0.6, ge=0, description="0 is greedy decoding.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Share of probability kept; 1 keeps all."
    )
    top_k: int = Field(default=0, ge=0, description="Most likely tokens kept; 0 keeps all.")
    repetition_penalty: float = Field(
        default=1.1, gt=0, description="Hugging Face repetition penalty; 1 is none."
    )
    max_new_tokens: int = Field(default=512, ge=1, description="Longest response, in tokens.")
    stop: list[str] = Field(default=[], description="Texts that end a response.")

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if not all(value):
            raise ValueError("it should hold texts that are not empty")
        return value

    def record(self) -> Sampling:
        """As trials carry it."""
        return Sampling(**{**self.model_dump(), "stop": tuple(self.stop)})


class CalibrationConfig(Table):
    mean: float = Field(description="Mean of the Gaussian prior of the strength, in `unit`.")
    sd: float = Field(gt=0, description="Standard deviation of that prior, in `unit`.")
    upper: float = Field(gt=0, description="Largest strength tried, in `unit`.")
    unit: Unit = Field(
        default="raw",
        description="raw: multiples of the direction as the SAE stores it. resid: norm of what is "
        "added, in median residual-stream norms at the steer layer.",
    )
    target: float = Field(
        default=30.0, gt=0, lt=100, description="First-attempt score (0-100) that strengths aim at."
    )
    rounds: int = Field(default=10, ge=1, description="Rounds of search per latent.")
    prompts_per_round: int = Field(default=5, ge=1, description="Responses per latent and round.")
    fresh: int = Field(
        default=20,
        ge=1,
        description="Responses on fresh prompts and seeds that measure what was achieved.",
    )
    method: Method = Field(
        default="bisection",
        description="bisection: as published. dose-response: fits a curve to all scores; closer to "
        "the target at the same cost.",
    )

    @field_validator("upper")
    @classmethod
    def _above_the_mean(cls, value: float, info: ValidationInfo) -> float:
        mean = info.data.get("mean", value)
        if value < mean:
            raise ValueError(f"it should be at least the mean of the prior, {mean:g}")
        return value

    def settings(self) -> SearchSettings:
        """As the search takes it."""
        return SearchSettings(self.mean, self.sd, self.upper, self.target, self.rounds, self.method)


class JudgingConfig(Table):
    prompt: str | None = Field(
        default=None, description="File with a judge prompt instead of the packaged one."
    )
    mode: Literal["verify", "trust"] = Field(
        default="verify",
        description="verify: a boundary counts only where the response bears it out; trust: the "
        "judge's own split.",
    )
    calls: int | None = Field(
        default=None, ge=1, description="Most calls to a provider's model; none: no cap."
    )
    base_url: str | None = Field(
        default=None, description="Address of an OpenAI-compatible server, for PROVIDER/MODEL."
    )
    connections: int = Field(default=8, ge=1, description="Calls to a provider at the same time.")


class PublishedConfig(Table):
    switches: list[Switch] = Field(
        default=list(ANY_MODEL),
        description="The ways in which the published code runs this model otherwise than the paper "
        "says; profile = published-code puts them in force, and the protocol fidelity tries them.",
    )
    repetition_penalty: float = Field(
        default=1.1, gt=0, description="Repetition penalty that the published code sets."
    )


class RunConfig(Table):
    """One run, resolved: every value that was not given has its default."""

    name: str = Field(min_length=1, description="Name of the run, for the report.")
    folder: str = Field(
        default="", description="Folder of the results; runs/ and the run's name if it is empty."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="All randomness follows from it.")
    profile: Literal["clean", "published-code"] = Field(
        default="clean",
        description="clean: as the paper says. published-code: with every way in which the published "
        "code differs for this model (docs/protocols/fidelity.md).",
    )
    switches: list[Switch] = Field(
        default=[], description="Single ways of the published code that are put in force."
    )
    protocols: list[str] = Field(
        default=["baseline", "esr"], min_length=1, description="What to run."
    )
    prompts: str = Field(
        default="eval",
        min_length=1,
        description="Questions: eval, heldout, a file (txt, jsonl, csv, toml) or a URL.",
    )
    judge: str = Field(
        default="exact",
        min_length=1,
        description="What scores the responses: exact (organisms), self, hf:MODEL, embed or "
        "PROVIDER/MODEL.",
    )
    judging: JudgingConfig = Field(
        default=JudgingConfig(), description="How a judge that is a language model works."
    )
    model: ModelConfig = Field(description="The model and how it is run.")
    engine: EngineConfig = Field(
        default=EngineConfig(), description="What the model runs on; no trial depends on it."
    )
    sae: SaeConfig = Field(description="The sparse autoencoder whose latents are steered with.")
    directions: DirectionsConfig = Field(
        default=DirectionsConfig(), description="Which latents are steered with."
    )
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="How tokens are drawn.")
    calibration: CalibrationConfig = Field(description="How strengths are found.")
    published: PublishedConfig = Field(
        default=PublishedConfig(), description="What the published code does otherwise."
    )
    settings: dict[str, dict[str, Any]] = Field(
        default={}, description="One table per protocol, with its own settings."
    )

    @field_validator("protocols")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        twice = [name for name in dict.fromkeys(value) if value.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is there more than once; name each once")
        return value

    @property
    def place(self) -> Path:
        """The run folder."""
        return Path(self.folder or f"runs/{self.name}")

    @property
    def readout_layer(self) -> int:
        """0-based layer whose output is read."""
        return self.sae.layer if self.model.readout_layer is None else self.model.readout_layer

    @property
    def in_force(self) -> tuple[Switch, ...]:
        """The ways of the published code that this run is made in."""
        return in_force(self.model_dump(include={"profile", "switches", "published"}))

    @property
    def variant(self) -> tuple[str, ...]:
        """Those that the engine carries out: the variant of every trial."""
        return tuple(s for s in self.in_force if s in IN_ENGINE)

    @property
    def positions(self) -> str:
        """Tokens that are steered."""
        return "all" if "steered-prompt" in self.in_force else "generated"

    @property
    def relevance(self) -> Literal["top-100", "zero", "none"]:
        """The rule by which latents are left out."""
        return "zero" if "zero-relevance" in self.in_force else self.directions.relevance

    def drawing(self, calibrating: bool = False) -> Sampling:
        """How the tokens of a trial are drawn; `calibrating`: of one that finds a strength."""
        drawn = self.sampling.record()
        if "code-penalty" in self.in_force:
            drawn = replace(drawn, repetition_penalty=self.published.repetition_penalty)
        return halved(drawn) if calibrating and "half-calibration" in self.in_force else drawn


def halved(sampling: Sampling) -> Sampling:
    """The same for responses of half the length, as the published code calibrates."""
    return replace(sampling, max_new_tokens=max(1, sampling.max_new_tokens // 2))
