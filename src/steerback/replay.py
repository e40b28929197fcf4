"""One stored trial, made again and compared with what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from steerback.errors import UserError
from steerback.lab import load_engine
from steerback.presets import config_of
from steerback.store import Store
from steerback.types import Generation, Trial


@dataclass(frozen=True)
class Replay:
    """A trial, what is stored of it, and what came out this time."""

    trial: Trial
    stored: Generation
    made: Generation
    changed: tuple[str, ...]
    """What differs from the session that made it: reasons for another text."""

    @property
    def same(self) -> bool:
        """Token by token."""
        return self.stored.token_ids == self.made.token_ids and self.stored.text == self.made.text

    @property
    def agree(self) -> int:
        """How many tokens agree before the first that differs."""
        pairs = zip(self.stored.token_ids, self.made.token_ids, strict=False)
        return next(
            (n for n, (a, b) in enumerate(pairs) if a != b),
            min(len(self.stored.token_ids), len(self.made.token_ids)),
        )


def replay(folder: Path, key: str) -> Replay:
    """Generate the trial whose key starts with `key` again, with the run's model and SAE.

    Raises UserError: no such trial, several, no configuration, or the model cannot be loaded.
    """
    with Store.open(folder, mode="ro") as store:
        trial, stored = _find(store, key)
        config = config_of(store)
        engine, facts = load_engine(config, slots=1)
        norm = store.get_artifact("residual_norm")
        if norm is not None:
            engine.norms[norm["layer"]] = norm["median"]
        sessions = store.sessions()
    noted = sessions[-1].facts if sessions else {}
    (made,) = engine.generate([trial])
    return Replay(trial, stored, made, tuple(_changes(noted, facts)))


def _find(store: Store, key: str) -> tuple[Trial, Generation]:
    found = [pair for pair in store.trials() if pair[0].key.startswith(key)] if key else []
    if not found:
        raise UserError(f"{store.folder}: no trial {key!r}; `steerback report` shows the keys")
    if len(found) > 1:
        raise UserError(
            f"{store.folder}: {len(found)} trials begin with {key!r}; give more of the key"
        )
    return found[0]


def _changes(noted: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    for name, value in now.items():
        if name in noted and noted[name] != value:
            yield f"{name} was {noted[name][:16]}, is {value[:16]}"


def show(found: Replay, out: Console) -> None:
    """Say whether the text is the same and print it, or both texts."""
    for line in found.changed:
        out.print(f"changed since: {line}", markup=False, soft_wrap=True)
    if found.same:
        out.print("the same text, token by token:", markup=False)
        out.print(found.made.text, markup=False, highlight=False)
        return
    total = len(found.stored.token_ids)
    out.print(f"another text: the first {found.agree} of {total} tokens agree", markup=False)
    for name, text in (("stored", found.stored.text), ("now", found.made.text)):
        out.print(f"--- {name}\n{text}", markup=False, highlight=False)
