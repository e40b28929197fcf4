"""`load_sae`: recognises a published SAE by what lies at the path.

To add a format, write one file with `recognise` and `read`, and enter it in FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steerback.errors import UserError
from steerback.sae import gemma_scope, goodfire, hub, llama_scope, saelens, sparsify
from steerback.sae.core import Sae
from steerback.sae.spec import SaeSpec


@dataclass(frozen=True)
class Format:
    name: str
    looks: str
    """What a user would see on disk."""
    recognise: Callable[[Path], Path | None]
    """The file or folder to read, when the path is of this format."""
    read: Callable[[Path], SaeSpec]


FORMATS = (
    Format("SAELens", "cfg.json + sae_weights.safetensors", saelens.recognise, saelens.read),
    Format("sparsify", "cfg.json + sae.safetensors", sparsify.recognise, sparsify.read),
    Format("Gemma Scope", "params.npz", gemma_scope.recognise, gemma_scope.read),
    Format(
        "Llama Scope",
        "hyperparams.json + checkpoints/final.safetensors",
        llama_scope.recognise,
        llama_scope.read,
    ),
    Format("Goodfire", "a .pth or .pt state dict", goodfire.recognise, goodfire.read),
)


def load_sae(spec: str | Path, name: str | None = None) -> Sae:
    """Opens an SAE; no matrix is read yet.

    spec: a file or folder in one of FORMATS, here or in a repository of the Hugging Face hub
    (`hf:OWNER/REPOSITORY/PATH`), or `saelens:RELEASE/SAE_ID`.
    name: what interventions call it; the file's, folder's or release's name when not given.
    Raises UserError, one line, on anything that cannot be read.
    """
    if str(spec).startswith(hub.PREFIX):
        return Sae(hub.read(str(spec)), name or str(spec).removeprefix(hub.PREFIX))
    remote = str(spec).startswith(hub.REPOSITORY)
    path = hub.fetch(str(spec)) if remote else Path(spec).expanduser()
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give the path of a downloaded SAE")
    for known in FORMATS:
        found = known.recognise(path)
        if found is not None:
            return Sae(known.read(found), name or _name(path))
    raise UserError(f"{path}: no SAE format recognised: {_found(path)}; known formats: {_known()}")


def _name(path: Path) -> str:
    """The file's name, or the folder's where the file is called the same in every SAE."""
    path = path.absolute()
    if path.is_dir():
        return path.name
    return path.stem if path.suffix in goodfire.SUFFIXES else path.parent.name


def _found(path: Path) -> str:
    if path.is_file():
        return f"found a file of {path.stat().st_size} bytes"
    names = sorted(entry.name for entry in path.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"found {', '.join(names[:8]) or 'an empty folder'}{more}"


def _known() -> str:
    return "; ".join(f"{known.name} ({known.looks})" for known in FORMATS)
