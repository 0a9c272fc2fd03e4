"""Dataclasses as options of a command: each field is one option, so that names, defaults and choices stand in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

import typer


def options_from_fields(help_texts: Mapping[str, str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command whose parameters are dataclasses.

    Every field becomes an option of that name with the field's type and default, and with what `help_texts` says of it. Those of a
    dataclass within a dataclass stand in a panel of their own, whose title is what `help_texts` says of that. A flag is only ever
    switched on; whole numbers are counts, from 1, or from 0 where that is the default. A field's metadata are settings of
    `typer.Option` that differ from these, and ``flags``, its names.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        kinds = get_type_hints(command)
        kinds.pop("return")
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)
            for dataclass in kinds.values()
            for name, kind, option in _options(dataclass, help_texts)
        ]

        def run(**values: Any) -> None:
            command(**{name: _build(kind, values) for name, kind in kinds.items()})

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _options(kind: Any, help_texts: Mapping[str, str], panel: str | None = None) -> Iterator[tuple[str, Any, Any]]:
    hints = get_type_hints(kind)
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            yield from _options(hints[item.name], help_texts, help_texts[item.name])
            continue
        default = _default(item)
        flags = [f"--{item.name.replace('_', '-')}"] if isinstance(default, bool) else []
        counts = hints[item.name] in (int, int | None)
        least = (0 if default == 0 else 1) if counts else None
        settings: dict[str, Any] = {
            "flags": flags,
            "min": least,
            "help": help_texts.get(item.name),
            "rich_help_panel": panel,
        }
        settings |= item.metadata
        option = typer.Option(default, *settings.pop("flags"), **settings)
        yield item.name, hints[item.name], option


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _build(kind: Any, values: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    return kind(
        **{
            item.name: _build(hints[item.name], values) if is_dataclass(hints[item.name]) else values[item.name]
            for item in fields(kind)
        }
    )
