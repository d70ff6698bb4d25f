"""Command-line options made from the fields of a settings class, so that the two cannot drift."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import typer

from napari_kdunet.core.parsing import parse_class_weights, parse_slices, parse_volume_weights

__all__ = ["with_selection", "with_selections", "with_settings"]

_PARSERS: dict[str, Callable[[str], Any]] = {
    "slices": parse_slices,
    "class_weights": parse_class_weights,
    "volume_weights": parse_volume_weights,
}
_SELECTION: list[tuple[str, Any, int | None, str]] = [
    (
        "axes",
        str,
        None,
        "Axes of the image as stored, slowest first, e.g. XYZ or CZYX, instead of those that it states.",
    ),
    ("channel", int, 0, "Channel of the image, from 0."),
    ("time", int, 0, "Time point of the image, from 0."),
    ("series", int, 0, "Which image of a file with several, from 0; the largest if not given."),
    ("fill", float, None, "Grey value around the sample, e.g. 0 or nan, if it is not found automatically."),
    ("sample", str, None, "Mask volume that is non-zero in the sample, instead of --fill."),
    (
        "invert",
        bool,
        None,
        "Exchange bright and dark in the image, or never do; if not given, a search for the pixel size tries both.",
    ),
]
_SAMPLES = (
    "Mask volume that is non-zero in the sample, instead of --fill: once for all images, or once for each, "
    "in the order RAW, images without labels, images to validate on."
)
_EXAMPLES = {"slices": "e.g. 3,8,20:30", "class_weights": "e.g. 1,4", "volume_weights": "even | area | e.g. 1,4"}


def with_settings(
    kind: type[Any],
    *,
    without: tuple[str, ...] = (),
    defaults: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command with an option for each field of `kind` except `without`; it gets them as `config`.

    Only options that are given are passed on to `kind`, or to `defaults`, a function that makes settings with other
    defaults. Without `defaults` there is an option ``--paper``, which makes the paper's settings the defaults. With a
    command's ``--start``, form and pixel size are by default those of that model.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "config"]
        usual = (defaults or kind)()
        options = [_option(spec, getattr(usual, spec.name)) for spec in fields(kind) if spec.name not in without]
        names = {option.name for option in options}

        @functools.wraps(command)
        def run(**given: Any) -> None:
            make = kind.paper if given.pop("paper", False) else defaults or kind
            typed = {name: given.pop(name) for name in names}
            typed = {name: _PARSERS.get(name, _same)(v) for name, v in typed.items() if v is not None}
            if given.get("start"):
                from napari_kdunet.core import load_model

                typed = load_model(given["start"]).form_and_pixel_size | typed
            command(config=make(**typed), **given)

        shared = [] if defaults else [_paper_option()]
        signature = inspect.Signature([*own, *shared, *options])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return run

    return decorate


def with_selection(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command options that select what is read of its images; it gets them as its argument `selection`.

    They are keywords of `core.open_volume` and apply to RAW and other images, not to labels.
    """
    return _with_selection(command, _SELECTION)


def with_selections(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command with several images the options of `with_selection`; `sample` is then a list of masks."""
    return _with_selection(
        command, [("sample", list[str], None, _SAMPLES) if each[0] == "sample" else each for each in _SELECTION]
    )


def _with_selection(
    command: Callable[..., None], choices: list[tuple[str, Any, int | None, str]]
) -> Callable[..., None]:
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "selection"]
    options = [
        _parameter(name, typing.Annotated[kind | None, typer.Option(help=text, min=low)], None)
        for name, kind, low, text in choices
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        selection = {name: given.pop(name) for name, *_ in _SELECTION}
        command(selection=selection, **given)

    signature = inspect.Signature([*own, *options])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return run


def _same(value: Any) -> Any:
    return value


def _option(spec: Any, default: Any) -> inspect.Parameter:
    """Return the option of a field, read as a number, a switch or text; its help states `default`."""
    hint = spec.metadata["types"][0]
    flag = "--" + spec.name.replace("_", "-")
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if hint is bool else flag,
        help=_help(spec, default),
        rich_help_panel="Advanced settings" if spec.metadata["advanced"] else "Settings",
    )
    return _parameter(spec.name, typing.Annotated[hint | None, option], None)


def _help(spec: Any, default: Any) -> str:
    """Return the help of a field with unit, bounds and default, without square brackets, which would be markup."""
    meta = spec.metadata
    facts = [_EXAMPLES[spec.name]] if spec.name in _EXAMPLES else [" | ".join(map(str, meta["choices"]))]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    facts += [f"{sign} {_number(meta[name])}" for name, sign in signs.items() if name in meta]
    if default is not None:
        facts.append(f"default {_number(default)}")
    details = ", ".join(fact for fact in [meta["unit"], *facts] if fact)
    return f"{meta['help'].rstrip('.')} ({details})." if details else meta["help"]


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _paper_option() -> inspect.Parameter:
    option = typer.Option("--paper", help="Start from the paper's settings instead of the defaults.")
    return _parameter("paper", typing.Annotated[bool, option], False)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
