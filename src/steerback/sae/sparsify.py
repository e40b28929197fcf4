"""sparsify folders (EleutherAI): `cfg.json` and `sae.safetensors`, in a folder named by the site.

sparsify's own `encode` decides: b_dec is subtracted from the input of every autoencoder, whatever
`normalize_decoder` says (sae-lens goes by that setting and differs where the two disagree).
`signed` existed in early versions: the k largest by magnitude, with their signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerback.errors import UserError
from steerback.sae.readers import Select
from steerback.sae.saelens import CONFIG, layer_of, read_json, whole_number
from steerback.sae.spec import Matrix, SaeSpec
from steerback.sae.tensors import SafetensorsFile

WEIGHTS = "sae.safetensors"
RULES: dict[str, Select] = {"topk": "topk", "groupmax": "groupmax"}
UNREAD = {
    "transcode": "a transcoder reads one site and writes another",
    "gram_lookup": "its input is corrected by a table of n-grams",
}


def recognise(path: Path) -> Path | None:
    folder = path.parent if path.name in (CONFIG, WEIGHTS) else path
    return folder if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() else None


def read(folder: Path) -> SaeSpec:
    config = read_json(folder / CONFIG)
    where = str(folder)
    for setting, why in UNREAD.items():
        if config.get(setting):
            raise UserError(f"{where}: '{setting}' is set: {why}, so it cannot steer; use an SAE")
    d_model = whole_number(config, "d_in", where)
    hook = _hook(folder)
    return SaeSpec(
        file=SafetensorsFile(folder / WEIGHTS),
        where=where,
        d_model=d_model,
        n=_latents(config, d_model, where),
        architecture=_rule(config, where),
        W_enc=Matrix("encoder.weight", transposed=True),
        W_dec=Matrix("W_dec"),
        b_enc="encoder.bias",
        b_dec="b_dec",
        k=whole_number(config, "k", where),
        layer=layer_of(hook),
        hook=hook,
        files=(folder / CONFIG,),
    )


def _latents(config: Mapping[str, Any], d_model: int, where: str) -> int:
    if config.get("num_latents"):
        return whole_number(config, "num_latents", where)
    return d_model * whole_number(config, "expansion_factor", where)


def _rule(config: Mapping[str, Any], where: str) -> Select:
    name = config.get("activation", "topk")
    if name not in RULES:
        raise UserError(f"{where}: activation '{name}' is not read; known: {', '.join(RULES)}")
    return "abstopk" if config.get("signed") else RULES[name]


def _hook(folder: Path) -> str | None:
    """The site: the folder's name, or its parent's where seeds have folders of their own."""
    absolute = folder.absolute()
    names = (absolute.name, absolute.parent.name)
    return next((name for name in names if layer_of(name) is not None), None)
