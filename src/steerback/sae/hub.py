"""SAEs by name: `saelens:RELEASE/SAE_ID` and `hf:OWNER/REPOSITORY[@REVISION]/PATH`.

sae-lens says which repository and file a release name means. Where that file is in a format read
here, it is downloaded to the Hugging Face cache and read in parts; otherwise sae-lens loads the
SAE, whole, into memory. `hf:` names a file or folder of a repository, and needs no sae-lens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steerback.errors import UserError, nearest
from steerback.sae import gemma_scope, goodfire, llama_scope, saelens
from steerback.sae.spec import SaeSpec
from steerback.sae.tensors import MemoryTensors

PREFIX = "saelens:"
REPOSITORY = "hf:"


@dataclass(frozen=True)
class Remote:
    """How one of sae-lens's conversions lies in a repository."""

    files: tuple[str, ...]
    """Relative to the SAE's path; the empty string is that path itself."""
    read: Callable[[Path], SaeSpec]


REMOTES: dict[str | None, Remote] = {
    None: Remote((saelens.CONFIG, saelens.WEIGHTS), saelens.read),
    "gemma_2": Remote((gemma_scope.PARAMS,), lambda at: gemma_scope.read(at / gemma_scope.PARAMS)),
    "goodfire": Remote(("",), goodfire.read),
    "llama_scope": Remote((llama_scope.SETTINGS, llama_scope.WEIGHTS.as_posix()), llama_scope.read),
}


def fetch(spec: str) -> Path:
    """Where the file or folder that `hf:OWNER/REPOSITORY[@REVISION]/PATH` names now lies.

    A path with a suffix is a file. Raises UserError, one line.
    """
    owner, _, rest = spec.removeprefix(REPOSITORY).partition("/")
    name, _, at = rest.partition("/")
    if not owner or not name or not at:
        raise UserError(f"{spec}: expected hf:OWNER/REPOSITORY/PATH of a file or folder")
    name, _, revision = name.partition("@")
    try:
        return _fetched(f"{owner}/{name}", at, revision or None)
    except (OSError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{spec}: could not be downloaded: {line}") from error


def _fetched(repo: str, at: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    if Path(at).suffix:
        return Path(hf_hub_download(repo, at, revision=revision))
    folder = Path(snapshot_download(repo, revision=revision, allow_patterns=f"{at}/*")) / at
    if not folder.is_dir():
        raise UserError(f"hf:{repo}/{at}: no such folder in the repository")
    return folder


def read(spec: str) -> SaeSpec:
    """The SAE that `saelens:RELEASE/SAE_ID` names. Raises UserError, one line."""
    release, _, sae_id = spec.removeprefix(PREFIX).partition("/")
    if not release or not sae_id:
        raise UserError(f"{spec}: expected saelens:RELEASE/SAE_ID")
    known = _directory(spec)
    if release not in known:
        raise UserError(f"{spec}: sae-lens knows no release '{release}'; {nearest(release, known)}")
    entry = known[release]
    if sae_id not in entry.saes_map:
        hint = nearest(sae_id, entry.saes_map)
        raise UserError(f"{spec}: release '{release}' has no SAE '{sae_id}'; {hint}")
    try:
        return _fetch(entry, sae_id, spec)
    except (OSError, ValueError, KeyError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{spec}: could not be downloaded or read: {line}") from error


def _directory(spec: str) -> Mapping[str, Any]:
    try:
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
    except ImportError as error:
        raise UserError(
            f"{spec}: the sae-lens package is not installed; pip install 'steerback[saelens]'"
        ) from error
    known: Mapping[str, Any] = get_pretrained_saes_directory()
    return known


def _fetch(entry: Any, sae_id: str, spec: str) -> SaeSpec:
    remote = REMOTES.get(entry.conversion_func)
    if remote is None or entry.config_overrides:
        return _whole(entry.release, sae_id, spec)
    local = _download(entry.repo_id, entry.saes_map[sae_id], remote.files)
    found = replace(remote.read(local), where=spec)
    factor = entry.norm_scaling_factor.get(sae_id)
    if factor and remote.read is saelens.read and _expects_factor(local):
        return replace(found, input_scale=float(factor))
    return found


def _download(repo: str, at: str, files: tuple[str, ...]) -> Path:
    """Where the SAE's path in the repository now lies on this machine."""
    from huggingface_hub import hf_hub_download

    local = Path()
    for file in files:
        local = Path(hf_hub_download(repo, f"{at}/{file}" if file else at))
        local = local.parents[len(Path(file).parts) - 1] if file else local
    return local


def _expects_factor(folder: Path) -> bool:
    """Whether the input's scale is still to be folded in, by the factor in the directory."""
    setting = saelens.read_json(folder / saelens.CONFIG).get("normalize_activations")
    return setting in ("expected_average_only_in", True)


def _whole(release: str, sae_id: str, spec: str) -> SaeSpec:
    from sae_lens import SAE

    sae = SAE.from_pretrained(release, sae_id, device="cpu")
    return saelens.spec_from(sae.cfg.to_dict(), MemoryTensors(sae.state_dict()), spec)
