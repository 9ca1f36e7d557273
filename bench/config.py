"""What is measured on: one TOML file per model and setting, so that a comparison can be repeated on another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tomllib

CONFIGS = Path(__file__).resolve().parent / "configs"


class ConfigError(ValueError):
    """A config file that cannot be used; the message names the file, the field and what it must be."""


@dataclass(frozen=True)
class Config:
    """One model, its prompts and how it is sampled. Field names are the keys of the TOML file.

    A file may also have the key base: the name of a config beside it, whose keys hold where the file has none.

    model: a path in the repository, a name in ComfyUI's models/diffusion_models, or "rough". dtype: of the weights, as
    torch names it, or "default". shift: 0 keeps the model's own. clip, clip_type, vae: names in ComfyUI's folders; all
    "" for the tiny Wan, whose words and codec need none. frames, width, height: of the decoded clip, in frames and
    pixels (the tiny Wan has its own). boundary: the step at which the second of two experts takes over, in a run of its
    own; 0 for one model. prompts: the list, or the name of a text file beside the config, one per line; none for the
    tiny Wan, which has its own unseen ones. profile_runs: recorded for our profile, and rendered for
    calibrations. tuning_prompts: on which thresholds are chosen.
    """

    name: str
    model: str
    sampler: str
    scheduler: str
    steps: int
    guidance: float
    dtype: str = "default"
    shift: float = 0.0
    boundary: int = 0
    clip: str = ""
    clip_type: str = ""
    vae: str = ""
    frames: int = 0
    width: int = 0
    height: int = 0
    prompts: tuple[str, ...] = ()
    negative: str = ""
    profile_runs: int = 4
    tuning_prompts: int = 4
    other_samplers: tuple[str, ...] = ("uni_pc", "dpmpp_2m", "res_multistep")

    def __post_init__(self) -> None:
        if self.boundary and not 0 < self.boundary < self.steps:
            rule = f"between 0 and the number of steps, {self.steps}, or 0 for one model"
            raise ConfigError(f"{self.name}: boundary is {self.boundary}, it must be {rule}")

    @property
    def tiny(self) -> bool:
        return not self.clip

    def stages(self, steps: int = 0) -> tuple[range, ...]:
        """The steps of each stage. steps: in all, 0 for the config's; the boundary keeps its share of them."""
        total = steps or self.steps
        if not self.boundary:
            return (range(total),)
        boundary = min(max(round(total * self.boundary / self.steps), 1), total - 1)
        return range(boundary), range(boundary, total)


def read_config(name: str) -> Config:
    """A file's path, or the name of one of bench/configs without its ending. Raises ConfigError."""
    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
        raise ConfigError(f"there is no config {path}: give the path of a .toml file, or one of {known}")
    content = _with_base(path, _content(path))
    content.setdefault("name", path.stem)
    if isinstance(content.get("prompts"), str):
        content["prompts"] = prompts_in(path.parent / content["prompts"])
    return _checked(path, content)


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None


def _with_base(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content on top of its base's, if it names one. A base has no base: what a file says is found in one look."""
    if "base" not in content:
        return content
    base = content["base"]
    file = path.parent / f"{base}.toml"
    if not isinstance(base, str) or not file.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.toml") if other != path))
        raise ConfigError(f"{path}: base is {base!r}, it must be the name of a config beside it: {known or 'none'}")
    below = _content(file)
    if "base" in below:
        raise ConfigError(f"{path}: base is {base!r}, which has a base itself; name one without")
    return {key: value for key, value in {**below, "name": path.stem, **content}.items() if key != "base"}


def prompts_in(file: Path) -> list[str]:
    """The lines that are neither empty nor comments."""
    if not file.is_file():
        raise ConfigError(f"there is no prompt file {file}")
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _checked(path: Path, content: Mapping[str, Any]) -> Config:
    known = {field.name: field for field in fields(Config)}
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise ConfigError(f"{path}: unknown keys {', '.join(unknown)}; known are {', '.join(known)}")
    taken = {}
    for key, value in content.items():
        wanted = {"str": str, "int": int, "float": (int, float), "tuple[str, ...]": list}[str(known[key].type)]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ConfigError(f"{path}: {key} is {value!r}, it must be {known[key].type}")
        taken[key] = tuple(value) if isinstance(value, list) else value
    try:
        config = Config(**taken)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not config.tiny and not (config.vae and config.prompts and config.frames and config.width and config.height):
        raise ConfigError(f"{path}: a model with a clip also needs vae, prompts, frames, width and height")
    return config
