"""Configurations: presets, files that explain themselves, and errors that point at the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from steerback import presets, tomlfile
from steerback.config import FREE_KEYS, RunConfig
from steerback.errors import UserError
from steerback.mappings import diff, merge
from steerback.store import Store
from steerback.tomlfile import Table
from steerback.types import Sampling


class EsrSettings(Table):
    prompts_per_direction: int = Field(default=5, ge=1, description="Prompts for each latent.")


class SweepSettings(Table):
    levels: list[float] = Field(default=[-1.0, 0.0, 1.0], description="In posterior sd.")
    note: str | None = Field(default=None, description="Free text.")


class NoSettings(Table):
    pass


PROTOCOLS = {"baseline": NoSettings, "esr": EsrSettings, "sweep": SweepSettings}

FULL = """\
# a run
name = "mine"
protocols = [
  "esr",
  "sweep",
]

[model]
name = "some/model"
steer_layer = 12
dtype = "bfloat16"

[sae]
spec = "saes/layer_12"
layer = 12

[calibration]
mean = 10
sd = 10.0
upper = 50.0

[settings.esr]
prompts_per_direction = 7
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def failure(folder: Path, text: str) -> str:
    """The one line with which a file is refused, without the folder."""
    with pytest.raises(UserError) as caught:
        presets.load(write(folder, text), PROTOCOLS)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix(f"{folder}/")


def test_a_file_is_resolved_with_defaults(tmp_path: Path) -> None:
    loaded = presets.load(write(tmp_path, FULL), PROTOCOLS)
    assert loaded.model.source == "some/model"
    assert loaded.model.dtype == "bfloat16"
    assert loaded.readout_layer == 12
    assert loaded.place == Path("runs/mine")
    assert loaded.sampling.record() == Sampling()
    assert loaded.calibration.settings().mean == 10.0
    assert loaded.settings == {
        "esr": {"prompts_per_direction": 7},
        "sweep": {"levels": [-1.0, 0.0, 1.0], "note": None},
    }


def test_the_resolved_configuration_survives_the_store(tmp_path: Path) -> None:
    loaded = presets.load(write(tmp_path, FULL), PROTOCOLS)
    with Store.open(tmp_path / "run", loaded.model_dump()) as store:
        assert RunConfig.model_validate(store.config) == loaded


# Presets


@pytest.mark.parametrize("name", sorted(presets.presets()))
def test_every_preset_makes_a_run(name: str, tmp_path: Path) -> None:
    made = presets.from_preset(name, PROTOCOLS)
    assert made.name == made.model.name == name
    short = f'name = "x"\n[model]\nname = "{name}"\n'
    assert presets.load(write(tmp_path, short), PROTOCOLS) == made.model_copy(update={"name": "x"})
    assert presets.presets()[name].endswith((".", ")"))


def test_organisms_are_there_with_strengths_in_residual_norms() -> None:
    names = {"naive", "imitator", "rare", "resister", "silent", "meta"}
    assert {f"organism-{n}" for n in names} <= set(presets.presets())
    made = presets.from_preset("organism-resister")
    assert made.model.path == "organism:resister"
    assert (made.model.steer_layer, made.readout_layer) == (1, 1)
    prior = made.calibration
    assert (prior.mean, prior.sd, prior.upper, prior.unit) == (0.5, 0.3, 2.0, "resid")


def test_the_file_wins_over_the_preset(tmp_path: Path) -> None:
    text = 'name = "x"\n[model]\nname = "organism-naive"\nslots = 3\n[sampling]\ntop_k = 5\n'
    loaded = presets.load(write(tmp_path, text))
    assert (loaded.model.slots, loaded.model.steer_layer) == (3, 1)
    assert (loaded.sampling.top_k, loaded.sampling.max_new_tokens) == (5, 96)
    changed = presets.from_preset("organism-naive", seed=4, sampling={"top_p": 0.5})
    assert (changed.seed, changed.sampling.top_p, changed.sampling.max_new_tokens) == (4, 0.5, 96)


def test_an_unknown_preset_has_neighbours() -> None:
    with pytest.raises(UserError, match="unknown model 'organism-nave'; did you mean 'organism-na"):
        presets.from_preset("organism-nave")
    with pytest.raises(UserError, match="preset organism-naive: unknown key sede; did you mean 's"):
        presets.from_preset("organism-naive", sede=1)


# Errors


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            'dtype = "bfloat16"',
            'dtype = "flaot32"',
            "run.toml:11: model.dtype is 'flaot32'; allowed: 'float32', 'bfloat16' or 'float16'",
        ),
        (
            "steer_layer = 12",
            "steer_leyer = 12\nsteer_layer = 12",
            "run.toml:10: unknown key model.steer_leyer; did you mean 'steer_layer' "
            "or 'readout_layer'?",
        ),
        (
            "steer_layer = 12\n",
            "",
            "run.toml:8: key model.steer_layer is missing: 0-based decoder layer whose output is "
            "steered.",
        ),
        (
            "steer_layer = 12",
            "steer_layer = '12'",
            "run.toml:10: model.steer_layer is '12'; it should be a valid integer",
        ),
        (
            "sd = 10.0",
            "sd = 0",
            "run.toml:19: calibration.sd is 0; it should be greater than 0",
        ),
        (
            "sd = 10.0",
            "sd = nan",
            "run.toml:19: calibration.sd is nan; it should be a finite number",
        ),
        (
            '"esr",\n',
            '"ers",\n',
            "run.toml:3: unknown protocol 'ers'; did you mean 'esr'?",
        ),
        (
            "[settings.esr]\nprompts_per_direction = 7",
            "[settings.esr]\nprompts_per_direction = 0",
            "run.toml:23: settings.esr.prompts_per_direction is 0; it should be greater than or "
            "equal to 1",
        ),
        (
            "prompts_per_direction = 7",
            "prompts_per_directon = 7",
            "run.toml:23: unknown key settings.esr.prompts_per_directon; "
            "did you mean 'prompts_per_direction'?",
        ),
        (
            "[settings.esr]",
            "[settings.baseline]",
            "run.toml:22: settings for 'baseline', which is not run; known: esr, sweep",
        ),
        (
            'name = "mine"',
            'name = "mine"\nzzz = 1\nsede = 3',
            "run.toml:3: unknown key zzz; known: calibration, directions, engine, folder, judge, "
            "judging, model, name, profile, prompts, protocols, published, sae, sampling, seed, "
            "settings, switches (and 1 more)",
        ),
        (
            "upper = 50.0",
            "upper = 50.0\n[directions]\nindices = [3, 3]",
            "run.toml:22: directions.indices is [3, 3]; it should hold different numbers from 0 on",
        ),
        (
            "upper = 50.0",
            'upper = 50.0\n[sampling]\nstop = [""]',
            "run.toml:22: sampling.stop is ['']; it should hold texts that are not empty",
        ),
        ("[sae]", "[sae", "run.toml:13: not valid TOML: "),
        ('name = "mine"', 'name = "mine', "run.toml:2: not valid TOML: "),
    ],
)
def test_mistakes_are_one_line_with_the_place(
    tmp_path: Path, old: str, new: str, line: str
) -> None:
    assert FULL.count(old) == 1
    told = failure(tmp_path, FULL.replace(old, new))
    assert told.startswith(line) if line.endswith(": ") else told == line


def test_an_unknown_model_has_neighbours(tmp_path: Path) -> None:
    told = failure(tmp_path, 'name = "x"\n\n[model]\nname = "organism-resistor"\n')
    assert told.startswith("run.toml:4: unknown model 'organism-resistor'; did you mean 'organism-")
    assert told.endswith("Or set model.path to a Hugging Face id or a folder")
    (tmp_path / "gpt2").mkdir()
    folder = FULL.replace("some/model", str(tmp_path / "gpt2"))
    assert presets.load(write(tmp_path, folder)).model.source == str(tmp_path / "gpt2")
    named = FULL.replace('"some/model"', '"mine"\npath = "gpt2"')
    assert presets.load(write(tmp_path, named)).model.source == "gpt2"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: cannot read this file .No such file"):
        presets.load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "x"\nfolder = "\xe9t\xe9"\n')
    with pytest.raises(UserError, match=r"latin\.toml:2: not UTF-8; save"):
        presets.load(tmp_path / "latin.toml")
    assert failure(tmp_path, "") == (
        "run.toml: key name is missing: Name of the run, for the report. (and 3 more)"
    )
    assert failure(tmp_path, "model = 3\nname = 'x'").startswith(
        "run.toml:1: model is 3; it should"
    )


def test_windows_files_load_and_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert presets.load(path).name == "mine"
    path.write_bytes(FULL.replace("sd = 10.0", "sd = -1.0").replace("\n", "\r\n").encode())
    with pytest.raises(UserError, match=r"run\.toml:19: calibration\.sd is -1\.0"):
        presets.load(path)


@pytest.mark.parametrize(
    ("text", "loc", "line"),
    [
        ('a = """\nb = 1\n"""\nb = 2', ("b",), 4),
        ("a = [\n 1,\n 2,\n]\n\n# c = 3\nc = 3", ("c",), 7),
        ("a = [\n 1,\n 2,\n]", ("a", 1), 1),
        ('["x y".z]\nq = 1', ("x y", "z", "q"), 2),
        ("x.y.z = 1", ("x", "y", "z"), 1),
        ("a = 1\n[[t]]\nb = 1\n[[t]]\nb = 2", ("t", 1, "b"), 5),
        ("a = 1\n[t]\nb = 1", ("t", "missing"), 2),
        ("a = 1", ("missing",), None),
        ("t = { b = 1 }", ("t", "b"), 1),
    ],
)
def test_lines_are_found_in_any_toml(text: str, loc: tuple[Any, ...], line: int | None) -> None:
    assert tomlfile.Document("f", text, tomlfile.parse(text)).line(loc) == line


# Writing


@pytest.mark.parametrize("name", ["organism-resister", "organism-naive"])
def test_a_commented_file_loads_back_equal(name: str, tmp_path: Path) -> None:
    made = presets.from_preset(name, PROTOCOLS, protocols=["baseline", "sweep"], seed=7)
    text = presets.dump_commented(made, PROTOCOLS)
    assert presets.load(write(tmp_path, text), PROTOCOLS) == made
    assert "\n# 0-based decoder layer whose output is steered.\nsteer_layer = 1\n" in text
    assert "\n# Free text.\n# note =\n" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "\n\n\n" not in text


def described(model: type[BaseModel]) -> list[str]:
    missing = [name for name, field in model.model_fields.items() if not field.description]
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            missing += described(field.annotation)
    return missing


def test_every_key_is_described() -> None:
    assert described(RunConfig) == []


JSON = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(value=JSON)
def test_any_value_survives_toml(value: Any) -> None:
    assert tomlfile.parse(f"x = {tomlfile.literal(value)}") == {"x": value}


def test_toml_has_no_null() -> None:
    with pytest.raises(TypeError, match="cannot hold None"):
        tomlfile.literal([None])


# Differences

TREES = st.recursive(
    st.integers(0, 3) | st.text("ab", max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@settings(deadline=None)
@given(a=MAPPINGS, b=MAPPINGS)
def test_diff_is_empty_only_for_equals_and_merge_keeps_what_is_over(a: Any, b: Any) -> None:
    assert (diff(a, b) == []) == (json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True))
    assert len(diff(a, b)) == len(diff(b, a))
    merged = merge(a, b)
    assert merge(merged, b) == merged
    assert diff(merge(b, b), b) == []


def test_free_keys_may_change() -> None:
    old = presets.from_preset("organism-naive", PROTOCOLS).model_dump()
    new = presets.from_preset(
        "organism-naive",
        PROTOCOLS,
        name="other",
        folder="elsewhere",
        protocols=["esr", "sweep"],
        model={"slots": 1, "device": "cpu"},
    ).model_dump()
    assert diff(old, new, FREE_KEYS) == []
    new["settings"]["esr"]["prompts_per_direction"] = 6
    new["seed"] = 1
    assert diff(old, new, FREE_KEYS) == [
        "seed: 0 -> 1",
        "settings.esr.prompts_per_direction: 5 -> 6",
    ]
    assert diff({"a": "x" * 99}, {"a": 1}) == ["a: '" + "x" * 56 + "... -> 1"]
