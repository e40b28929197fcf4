"""Where configurations come from: presets, which are data, files, runs, the command line.

A configuration that names a preset as its model starts from the preset's values; what the file
says itself wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from steerback import tomlfile
from steerback.config import RunConfig
from steerback.errors import UserError, nearest
from steerback.mappings import merge
from steerback.tomlfile import Document, Table

if TYPE_CHECKING:
    from steerback.store import Store

Registry = Mapping[str, type[Table]]
"""Protocols by name, with the table of their settings."""


@cache
def _preset_files() -> dict[str, dict[str, Any]]:
    folder = files("steerback").joinpath("data").joinpath("presets")
    return {
        entry.name.removesuffix(".toml"): tomlfile.parse(entry.read_text("utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    }


def presets() -> dict[str, str]:
    """Names of the packaged models, with a line about each."""
    return {n: d["about"] for n, d in sorted(_preset_files().items()) if not n.startswith("_")}


def preset(name: str) -> dict[str, Any]:
    """A preset's tables, those it is based on included. Raises UserError if there is none."""
    if name not in presets():
        raise UserError(f"unknown model {name!r}; {nearest(name, presets())}")
    data = {k: v for k, v in _preset_files()[name].items() if k not in ("about", "base")}
    base = _preset_files().get(_preset_files()[name].get("base", ""), {})
    return merge(merge(base, data), {"model": {"name": name}})


def find_preset(name: str) -> str | None:
    """The preset of that name, or the one that loads this Hugging Face id; None if there is none."""
    if name in presets():
        return name
    paths = {preset(known)["model"]["path"]: known for known in presets()}
    return paths.get(name)


def from_preset(name: str, protocols: Registry | None = None, /, **values: Any) -> RunConfig:
    """A preset's configuration with some values changed; the run is called as the preset is."""
    data = merge(merge({"name": name}, preset(name)), values)
    return _resolve(Document(f"preset {name}", "", data), protocols)


def from_anywhere(
    model: str,
    sae: str,
    layer: int,
    protocols: Registry | None = None,
    /,
    *,
    sae_layer: int | None = None,
    **values: Any,
) -> RunConfig:
    """A configuration for a model that is no preset: a Hugging Face id or a folder, and its SAE.

    layer: 0-based decoder layer that is steered; sae_layer: the one the SAE was trained on, the same
    if it is not given. Strengths are searched in median residual norms.
    """
    own = {
        "name": Path(model).name.lower(),
        "model": {"name": model, "steer_layer": layer},
        "sae": {"spec": sae, "layer": layer if sae_layer is None else sae_layer},
    }
    data = merge(merge(_preset_files()["_any"], own), values)
    return _resolve(Document(f"model {model}", "", data), protocols)


def start(
    model: str,
    protocols: Registry,
    *,
    sae: str = "",
    layer: int | None = None,
    sae_layer: int | None = None,
) -> RunConfig:
    """What `steerback init` writes."""
    known = find_preset(model)
    given = {"--sae": bool(sae), "--layer": layer is not None}
    given["--sae-layer"] = sae_layer is not None
    if known is not None:
        extra = [option for option, yes in given.items() if yes]
        if extra:
            raise UserError(
                f"{model!r} is a preset, which says itself what {extra[0]} would; write the file "
                "without it and change it there"
            )
        return from_preset(known, protocols)
    missing = [option for option in ("--sae", "--layer") if not given[option]]
    if missing == ["--sae", "--layer"] and not _is_elsewhere({}, model):
        raise UserError(f"unknown model {model!r}; {nearest(model, presets())}")
    if layer is None or missing:
        raise UserError(
            f"{model!r} is no preset, so {' and '.join(missing)} must be given "
            "(`steerback models` lists the presets)"
        )
    return from_anywhere(model, sae, layer, protocols, sae_layer=sae_layer)


# Files


def load(path: str | Path, protocols: Registry | None = None) -> RunConfig:
    """Reads a configuration, with the settings of each protocol resolved if they are given.

    Raises UserError with file, line, key and what is allowed.
    """
    document = tomlfile.read(path)
    return _resolve(replace(document, data=_on_preset(document)), protocols)


def load_or_preset(spec: str, protocols: Registry) -> RunConfig:
    """The file of that name, or the preset as it is."""
    known = None if Path(spec).exists() else find_preset(spec)
    return load(spec, protocols) if known is None else from_preset(known, protocols)


def config_of(store: Store) -> RunConfig:
    """The run's configuration. UserError where it has none (imported results), or one that this
    version cannot read."""
    try:
        return RunConfig.model_validate(store.config)
    except ValueError:
        raise UserError(
            f"{store.folder}: no configuration is stored that can be read; name a folder "
            "that `steerback run` made"
        ) from None


def placed(
    config: RunConfig, quantize: str | None, device_map: str | None, engine: str | None = None
) -> RunConfig:
    """The configuration with what was given of the three. Raises UserError for another word."""
    given = {"quantize": quantize, "device_map": device_map}
    own = {key: value for key, value in given.items() if value is not None}
    kind = {} if engine is None else {"kind": engine}
    data = merge(config.model_dump(), {"model": own, "engine": kind})
    return _resolve(Document("command line", "", data), None)


def _on_preset(document: Document) -> dict[str, Any]:
    model = document.data.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    known = find_preset(name) if isinstance(name, str) else None
    if known is not None:
        return merge(preset(known), document.data)
    if isinstance(name, str) and name and not _is_elsewhere(model, name):
        raise document.error(
            ("model", "name"),
            f"unknown model {name!r}; {nearest(name, presets())} "
            "Or set model.path to a Hugging Face id or a folder",
        )
    return document.data


def _is_elsewhere(model: Any, name: str) -> bool:
    """Whether the file itself says what to load: a path, a Hugging Face id, a folder."""
    return bool(model.get("path")) or "/" in name or Path(name).exists()


def _resolve(document: Document, protocols: Registry | None) -> RunConfig:
    try:
        config = RunConfig.model_validate(document.data)
    except ValidationError as error:
        raise tomlfile.explain(error, RunConfig, document) from None
    if not config.folder and not _plain(config.name):
        raise document.error(
            ("name",),
            f"name is {config.name!r}, which is no plain file name, and the folder is called after "
            "it; choose another or set `folder`",
        )
    if protocols is None:
        return config
    _check_names(config, protocols, document)
    settings = {
        name: _settings(name, config.settings.get(name, {}), protocols[name], document)
        for name in config.protocols
    }
    return config.model_copy(update={"settings": settings})


def _plain(name: str) -> bool:
    """Whether a folder below runs/ may be called so."""
    strange = set("/\\") | {chr(c) for c in range(32)}
    return name not in (".", "..") and not strange & set(name)


def _check_names(config: RunConfig, known: Registry, document: Document) -> None:
    for i, name in enumerate(config.protocols):
        if name not in known:
            where = ("protocols", i)
            raise document.error(where, f"unknown protocol {name!r}; {nearest(name, known)}")
    for name in config.settings:
        if name not in config.protocols:
            raise document.error(
                ("settings", name),
                f"settings for {name!r}, which is not run; {nearest(name, config.protocols)}",
            )


def _settings(
    name: str, given: dict[str, Any], model: type[Table], document: Document
) -> dict[str, Any]:
    try:
        return model.model_validate(given).model_dump()
    except ValidationError as error:
        raise tomlfile.explain(error, model, document, ("settings", name)) from None


def dump_commented(config: RunConfig, protocols: Registry) -> str:
    """A configuration file that loads back equal and explains every key."""
    parts = [tomlfile.commented(config, skip=("settings",))]
    for name in config.protocols:
        table = protocols[name].model_validate(config.settings.get(name, {}))
        parts.append(tomlfile.commented(table, ("settings", name)))
    return "\n".join(parts)
