"""Which makers make the references of a clip: those of an adapter file, of a task, or one that is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_prep.makers import Maker, build_maker
from data_prep.makers.union import check_controls
from data_prep.signal.settings import SignalSettings
from iclora_train.adapters.metadata import metadata_findings, reference_layouts
from iclora_train.adapters.official import completed, recognise
from iclora_train.adapters.reference_makers import MakerOfReference, makers_or_task
from iclora_train.adapters.references import ReferenceLayout
from iclora_train.config import ConfigError, Task, require
from iclora_train.config.no_reference import NO_REFERENCE
from iclora_train.config.paths import user_path
from iclora_train.config.places import frame_in_file, is_drawn
from iclora_train.config.references import FIRST, family_of
from iclora_train.data.controls import UNION, configured_controls
from iclora_train.ltx2.weights.safetensors_header import read_header

Echo = Callable[[str], None]  # prints a line
NETWORK = "model"  # argument of makers that use a network: its file or folder, which no adapter file holds


@dataclass(frozen=True)
class Recipe:
    """How one reference of a clip is made. number: of the reference, from 0. origin: where the maker is from."""

    number: int
    layout: ReferenceLayout
    maker: str
    args: Mapping[str, Any]
    family: str
    origin: str

    @property
    def is_picture(self) -> bool:
        """Whether the reference of a clip is one picture of it."""
        return self.maker == "edit.frame" or is_drawn(self.layout.frame)

    def build(self) -> Maker:
        """The maker. ConfigError names the wrong argument."""
        try:
            return build_maker(self.maker, dict(self.args))
        except ConfigError as error:
            message = str(error).replace("task.maker", "maker")
            raise ConfigError(message if self.origin == "maker" else f"{self.origin}: {message}") from error

    def task(self, place: int | None) -> Task:
        """The task as if this were its only reference, for checks. place: the frame at which it begins."""
        return Task(
            name=self.layout.name,
            family=self.family,
            maker=self.maker,
            maker_args=dict(self.args),
            reference_downscale=self.layout.downscale,
            reference_temporal_scale=self.layout.temporal_scale,
            reference_frame=place,
        )


def recipes_of(settings: SignalSettings, echo: Echo) -> tuple[list[Recipe], list[ReferenceLayout], dict[str, str]]:
    """The recipes of the references to make, the layouts of all references of a video, and the adapter's metadata.

    ConfigError names the setting with which a missing maker, control or network is given.
    """
    metadata: dict[str, str] = {}
    if settings.adapter is not None:
        metadata, recipes = _of_adapter(settings, echo)
    elif settings.task is not None:
        recipes = _of_task(settings.task)
    else:
        recipes = [Recipe(0, ReferenceLayout(FIRST), str(settings.maker), {}, family_of(str(settings.maker)), "maker")]
    layouts = [recipe.layout for recipe in recipes]
    chosen = _with_controls(_chosen(recipes, settings), settings.control)
    finished = [_with_settings(recipe, settings, recipe is chosen[0]) for recipe in chosen]
    return finished, layouts, metadata


def _of_task(task: Task) -> list[Recipe]:
    require(task.maker != NO_REFERENCE, f"conf={task.name} has no reference (docs/signals.md names what it takes)")
    origin = f"conf={task.name}"
    return [
        Recipe(i, _layout_of(name, part), part.maker, part.maker_args, part.family, origin)
        for i, (name, part) in enumerate(zip(task.reference_names, task.for_references(), strict=True))
    ]


def _layout_of(name: str, part: Task) -> ReferenceLayout:
    frame = frame_in_file(part.reference_frame)
    return ReferenceLayout(name, part.reference_downscale, part.reference_temporal_scale, frame)


def _of_adapter(settings: SignalSettings, echo: Echo) -> tuple[dict[str, str], list[Recipe]]:
    """The metadata of the adapter file and its recipes, before `maker_args` and `control`."""
    path = user_path(str(settings.adapter))
    require(path.is_file(), f"adapter={path} is not a file: give the adapter's safetensors file")
    stored = read_header(path).metadata
    match = recognise(path, stored)
    metadata = completed(stored, match)
    findings = metadata_findings(metadata)
    require(not findings, f"adapter={path}: {findings[0] if findings else ''}")
    layouts = reference_layouts(metadata)
    require(
        bool(layouts),
        f"adapter={path} is a plain LoRA, which takes no reference: `iclora_train.generate` uses it without a signal",
    )
    origin = f"adapter={path}"
    if settings.maker is not None:
        makers = [MakerOfReference(settings.maker, {})]
        layouts, origin = layouts[:1], "maker"
    else:
        known = makers_or_task(metadata, match)
        if known is None:
            raise ConfigError(
                f"adapter={path} does not say how its references were made, and names no task of this project: "
                "set maker=..., e.g. maker=control.canny, and maker_args as in its training"
            )
        makers, words = known
        if words is not None:
            echo(f"{path} does not say how its references were made: they are made as {words} makes them")
            origin = words
    require(
        len(makers) == len(layouts),
        f"adapter={path} names {len(makers)} makers for {len(layouts)} references: set maker=... for the first",
    )
    return metadata, [
        Recipe(i, layout, maker.maker, maker.args, family_of(maker.maker), origin)
        for i, (layout, maker) in enumerate(zip(layouts, makers, strict=True))
    ]


def _chosen(recipes: Sequence[Recipe], settings: SignalSettings) -> list[Recipe]:
    """The recipes that `only` names; all without it."""
    names = [recipe.layout.name for recipe in recipes]
    for name in settings.only or []:
        require(name in names, f"only={name} is not a reference; they are {', '.join(names)}")
    return [recipe for recipe in recipes if settings.only is None or recipe.layout.name in settings.only]


def _with_settings(recipe: Recipe, settings: SignalSettings, is_first: bool) -> Recipe:
    """The recipe with `maker_args` (of the first one), and with files in place of what training drew or estimated."""
    require(recipe.maker != NO_REFERENCE, f"{recipe.origin}: the maker {NO_REFERENCE} makes no reference")
    require(
        recipe.maker != "given",
        f"{recipe.origin}: reference {recipe.layout.name} is a video that you supply (the scene before the change): "
        "give that clip to `iclora_train.generate` as the reference",
    )
    args = dict(recipe.args) | (settings.maker_args if is_first else {})
    if recipe.maker == "edit.hole" and settings.mask is not None:
        args |= {"mask": "column", "dilate": settings.maker_args.get("dilate", [0, 0])}
    if recipe.maker == "control.depth" and settings.depth is not None:
        recipe = replace(recipe, maker="control.depth_given")
        args = {key: value for key, value in args.items() if key in ("range", "values")}
    if recipe.maker == "edit.loop" and settings.sheet is not None:
        args |= {"still": "sheet"}
    network = recipe.args.get(NETWORK)
    require(
        network is None or NETWORK not in args or NETWORK in settings.maker_args,
        f"{recipe.origin}: reference {recipe.layout.name} was made with the network {network}: set "
        f"maker_args.{NETWORK}=PATH to its file or folder",
    )
    return replace(recipe, args=args)


def _with_controls(recipes: Sequence[Recipe], controls: Sequence[str] | None) -> list[Recipe]:
    """The recipes with one for each chosen control in place of a union. Of several controls, each gives its name."""
    unions = [recipe for recipe in recipes if recipe.maker == UNION]
    require(
        controls is None or bool(unions),
        f"control={', '.join(controls or [])} chooses a control of a union, and the maker is "
        f"{', '.join(recipe.maker for recipe in recipes)}: leave it out",
    )
    result: list[Recipe] = []
    for recipe in recipes:
        if recipe.maker != UNION:
            result.append(recipe)
            continue
        _check_union(recipe)
        known = configured_controls(recipe.task(None))
        names = {control.name: control for control in known} | {control.maker: control for control in known}
        choices = ", ".join(control.name for control in known)
        require(
            controls is not None,
            f"{recipe.origin} was trained with several controls: say which, control=..., one of {choices}",
        )
        for name in controls or []:
            require(name in names, f"control={name} is not one of the controls of {recipe.origin}: {choices}")
            control = names[name]
            layout = recipe.layout if len(controls or []) == 1 else replace(recipe.layout, name=control.name)
            result.append(replace(recipe, layout=layout, maker=control.maker, args=control.args))
    return result


def _check_union(recipe: Recipe) -> None:
    """ConfigError, with where the union is from, unless its controls have the form that the maker takes."""
    try:
        check_controls(recipe.args.get("controls", {}))
    except ConfigError as error:
        raise ConfigError(f"{recipe.origin}: {str(error).replace('task.', '')}") from error
