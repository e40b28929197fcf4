"""The experiments, found by name: every module here with a `PROTOCOL`."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib import import_module

from steerback.errors import UserError, nearest
from steerback.protocols.base import Protocol, Recording, Staged
from steerback.tomlfile import Table


@cache
def registry() -> dict[str, Protocol]:
    modules = (import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = [module.PROTOCOL for module in modules if hasattr(module, "PROTOCOL")]
    return {protocol.name: protocol for protocol in sorted(found, key=lambda p: p.name)}


def get(name: str) -> Protocol:
    """Raises UserError with the nearest names."""
    if name not in registry():
        raise UserError(f"unknown protocol {name!r}; {nearest(name, registry())}")
    return registry()[name]


def with_needs(names: Iterable[str]) -> list[str]:
    """These protocols and those they rest on, each once and after what it needs.

    Those that record others come first, so that what they need is there when the others run.
    """
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            protocol = get(name)
            for need in protocol.needs if isinstance(protocol, Staged) else ():
                visit(need)
            order.append(name)

    for name in sorted(names, key=lambda name: not isinstance(get(name), Recording)):
        visit(name)
    return order


def settings() -> dict[str, type[Table]]:
    """The table of settings of each protocol, for the configuration."""
    return {name: protocol.settings for name, protocol in registry().items()}
