"""The words that artists read: help pages and locales, in English and Chinese, against what the nodes declare.

The English nodeDefs.json is written from the schemas, the notes in locales/en/main.json from erta/notes.py. After a
change of them that is meant, write both anew, and translate what is new in locales/zh/ and in web/docs/:

    ERTA_RENEW_LOCALES=1 python -P -m pytest tests/comfy/test_words.py -k english
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
LOCALES, DOCS = ROOT / "locales", ROOT / "web" / "docs"
SCHEMAS: dict[str, Any] = json.loads(Path(__file__).with_name("schemas.json").read_text(encoding="utf-8"))
LARGEST = 200_000  # bytes of a picture

CHINESE = re.compile(r"[\u4e00-\u9fff]")
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
# In a list of a help page: the name in the code font, the label on the node if it is another, the default in brackets.
ENTRY = re.compile(r"`([^`]+)`([^`,\u3001(\uff08]*)(?:[(\uff08]([^)\uff09]+)[)\uff09])?")
HEAD_ENDS = re.compile(r": |\uff1a")
# The inputs that ComfyUI's own KSampler has.
KSAMPLER = {"model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image"}
KSAMPLER |= {"denoise"}
# Of ComfyUI's message syntax. A text with one of these breaks the front end's translation, at worst the node.
SYNTAX = re.compile(r"[{}@|$%]")
BRACES = re.compile(r"\{(\w+)\}")  # a value's place in a note or in a text of the panel
# Names and units that stay as they are in Chinese.
SAME = {"PSNR", "SSIM", "Sigmas", "Latent", "CFG"}


def read(language: str, name: str) -> dict[str, Any]:
    return dict(json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8")))


def write(language: str, name: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (LOCALES / language / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def inputs_of(node: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for group in ("required", "optional"):
        for name, (_, *options) in SCHEMAS[node]["input"].get(group, {}).items():
            yield name, options[0] if options else {}


def words_of(node: str) -> dict[str, Any]:
    """What the node's schema says, in the form in which the front end reads translations of it."""
    schema = SCHEMAS[node]
    inputs: dict[str, Any] = {}
    for name, options in inputs_of(node):
        inputs[name] = {"name": options.get("display_name") or name, "tooltip": options["tooltip"]}
        choices = options.get("options")
        # Choices that are live are names: of samplers, profiles, presets.
        if isinstance(choices, list):
            inputs[name]["options"] = {choice: choice for choice in choices}
    outputs = zip(schema["output_name"], schema["output_tooltips"], strict=True)
    return {
        "display_name": schema["display_name"],
        "description": schema["description"],
        "inputs": inputs,
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
    }


def texts(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text with the way to it."""
    if isinstance(content, str):
        yield path, content
    else:
        for key, value in content.items():
            yield from texts(value, f"{path}/{key}")


def settings_of_the_pack() -> dict[str, dict[str, Any]]:
    """Id -> name and category, as web/ertacache.js declares them."""
    code = (ROOT / "web" / "ertacache.js").read_text(encoding="utf-8")
    ids = dict(re.findall(r'^const (\w+) = "(ERTACache\.\w+)";$', code, re.MULTILINE))
    declared = re.findall(r'\bid: (\w+),\s+name: "([^"]+)",.*?\bcategory: (\[[^\]]+\])', code, re.DOTALL)
    assert len(declared) == code.count("defaultValue:") and declared, "a setting is declared in another form"
    return {ids[name]: {"name": text, "category": json.loads(category)} for name, text, category in declared}


def test_the_english_words_are_those_of_the_schemas():
    found = {node: words_of(node) for node in SCHEMAS}
    if os.environ.get("ERTA_RENEW_LOCALES"):
        write("en", "nodeDefs", found)
    assert read("en", "nodeDefs") == found, __doc__


@pytest.mark.parametrize("name", ["main", "nodeDefs", "settings", "commands"])
def test_chinese_has_exactly_what_english_has(name: str):
    english, chinese = dict(texts(read("en", name))), dict(texts(read("zh", name)))
    assert list(chinese) == list(english), "the same keys in the same order"
    for path, text in chinese.items():
        assert CHINESE.search(text) or text in SAME or text == "ERTACache", f"{path}: {text!r} is not translated"


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["main", "nodeDefs", "settings", "commands"])
def test_no_text_is_taken_for_message_syntax(language: str, name: str):
    for path, text in texts(read(language, name)):
        assert text.strip() == text and text, path
        plain = BRACES.sub("", text) if path.startswith("/ertacache/") else text
        assert not SYNTAX.search(plain), f"{path}: {text!r}"


def test_the_english_texts_of_the_panel_are_those_of_the_code():
    """They are their own keys: `translate("...")` with the English text, written out where it is shown."""
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "web").glob("*.js")))
    written = re.findall(r'\btranslate\("([^"]+)"', code)
    assert len(written) == len(re.findall(r"(?<!function )\btranslate\(", code)), "a text that is not written out"
    found = read("en", "main")["ertacache"]["panel"]
    assert set(found) == set(written)
    assert all(key == text for key, text in found.items())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_command_is_called_the_same_by_its_button_and_its_menu(language: str):
    """ComfyUI reads the words of a button from commands.json, ids with _ for the dot; the others are the panel's."""
    code = (ROOT / "web" / "speedup_menu.js").read_text(encoding="utf-8")
    ids = re.findall(r'"(ERTACache\.\w+)"', code)
    labels = read(language, "commands")
    assert set(labels) == {name.replace(".", "_") for name in ids} and len(ids) == 4
    panel = read(language, "main")["ertacache"]["panel"]
    assert all(one["label"] in panel.values() for one in labels.values())


@pytest.mark.parametrize("group", ["notes", "panel"])
def test_a_translation_has_the_values_of_the_english_text(group: str):
    english, chinese = (read(language, "main")["ertacache"][group] for language in ("en", "zh"))
    for key, text in english.items():
        assert sorted(BRACES.findall(chinese[key])) == sorted(BRACES.findall(text)), key


def test_no_locale_file_is_one_that_comfyui_does_not_read():
    known = {"main.json", "nodeDefs.json", "settings.json", "commands.json"}
    assert {path.name for path in LOCALES.iterdir()} == {"en", "zh"}
    for language in ("en", "zh"):
        assert {path.name for path in (LOCALES / language).iterdir()} == known


def test_every_setting_has_its_words():
    declared = settings_of_the_pack()
    assert read("en", "settings") == {key.replace(".", "_"): {"name": one["name"]} for key, one in declared.items()}
    shown = {label for one in declared.values() for label in one["category"][:2]}
    assert read("en", "main")["settingsCategories"] == {label: label for label in sorted(shown)}


def test_every_category_has_its_words():
    parts = {part for schema in SCHEMAS.values() for part in schema["category"].split("/")}
    assert read("en", "main")["nodeCategories"] == {part: part for part in sorted(parts)}


def help_of(node: str, language: str) -> str:
    path = DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"
    return path.read_text(encoding="utf-8")


class Entry(NamedTuple):
    """What a line of a help page's list is about: "- `name` label (default): text", or several of them, one text."""

    label: str
    default: str
    line: str


def entries(page: str) -> dict[str, Entry]:
    """By the name in the code font. Where several share a line, all of them are there."""
    found: dict[str, Entry] = {}
    for line in page.splitlines():
        if line.startswith("- `"):
            head = HEAD_ENDS.split(line, maxsplit=1)[0]
            for name, label, default in ENTRY.findall(head):
                assert name not in found, f"{name}: described twice"
                found[name] = Entry(label.strip() or name, default, line)
    return found


def is_ksamplers(node: str, name: str) -> bool:
    """Whether it is an input of KSampler, on a node that has all of them: one line names them together."""
    return name in KSAMPLER and {own for own, _ in inputs_of(node)} >= KSAMPLER


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("node", SCHEMAS)
def test_help_describes_everything_on_the_node(node: str, language: str):
    page, words = help_of(node, language), read(language, "nodeDefs")[node]
    assert page.splitlines()[0] == f"# {words['display_name']}"
    assert len(PICTURE.findall(page)) == 1, "one picture of the node"
    described = entries(page)
    for name, text in words["inputs"].items():
        if is_ksamplers(node, name):
            sampler = {"en": "as in KSampler", "zh": "与 K采样器相同"}[language]
            assert sampler in described[text["name"]].line, name
            continue
        assert described[name].label == text["name"], f"{name}: with the name that is on the node"
        for choice, label in text.get("options", {}).items():
            assert f"*{choice}*" in described[name].line and label in described[name].line, f"{name}: {choice}"
    outputs = {text["name"] for text in words["outputs"].values()}
    inputs = {text["name"] if is_ksamplers(node, name) else name for name, text in words["inputs"].items()}
    assert set(described) == inputs | outputs, "everything on the node, and nothing that is not"


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("node", SCHEMAS)
def test_help_is_a_recipe_lists_and_what_to_do_when_it_looks_wrong(node: str, language: str):
    lines = help_of(node, language).splitlines()
    wanted = {
        "en": ["Recipe", "Inputs", "Outputs", "When it looks wrong", "For experts"],
        "zh": ["用法", "输入", "输出", "结果不对时", "供专家参考"],
    }[language]
    more = {"en": "What the node shows", "zh": "节点显示的内容"}[language]
    headings = [line.removeprefix("## ") for line in lines if line.startswith("#")][1:]
    headings = [heading for heading in headings if heading != more]
    assert headings in (wanted, wanted[:-1])
    assert not [line for line in lines if line.startswith("|")], "a table is wider than the panel of the help"


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("node", SCHEMAS)
def test_help_states_the_defaults_of_the_schema(node: str, language: str):
    described = entries(help_of(node, language))
    for name, options in inputs_of(node):
        if not is_ksamplers(node, name):
            default = in_words(options["default"], language) if "default" in options else ""
            assert described[name].default == default, name


def in_words(default: Any, language: str) -> str:
    on, off, empty = {"en": ("on", "off", "empty"), "zh": ("开", "关", "空")}[language]
    if isinstance(default, bool):
        return on if default else off
    return f"{default:g}" if isinstance(default, float) else str(default) or empty


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def test_there_is_no_help_for_anything_else():
    wanted = {DOCS / f"{node}.md" for node in SCHEMAS} | {DOCS / node / "zh.md" for node in SCHEMAS}
    assert set(pages()) == wanted


def test_pictures_are_there_small_and_used():
    """The front end takes a page's addresses from web/docs, also those of a translated page."""
    used = {DOCS / address for page in pages() for _, address in PICTURE.findall(page.read_text(encoding="utf-8"))}
    assert used == set((DOCS / "images").iterdir())
    for picture in used:
        assert picture.stat().st_size < LARGEST, picture
        with Image.open(picture) as opened:
            assert opened.width >= 600, "sharp on a screen of two pixels to a point"


def test_pictures_are_described_and_links_lead_somewhere():
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert all(len(words) > 8 for words, _ in PICTURE.findall(text)), f"{page}: a picture without words"
        for address in LINK.findall(text):
            assert address.startswith("https://"), f"{page}: {address}: relative links lead nowhere in the help panel"
