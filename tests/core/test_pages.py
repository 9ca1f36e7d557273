"""README and docs: short, with numbers that were measured and links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_WORDS = 1100

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```", re.DOTALL)


def text_of(page: Path) -> str:
    return CODE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for address in LINK.findall(text_of(page)):
        if address.startswith("https://"):
            continue
        path, _, anchor = address.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), address
        assert not anchor or anchor in anchors(target), address


def test_readme_is_short_and_leads_to_the_help_of_each_node():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.split()) <= MOST_WORDS
    helps = {f"web/docs/{page.name}" for page in (ROOT / "web" / "docs").glob("*.md")}
    assert helps <= set(LINK.findall(readme))


def test_what_the_readme_promises_was_measured():
    """Each of its numbers stands in docs/measured."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    promises = readme.split("## What to expect")[1].split("## ")[0]
    measured = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "measured").glob("*.md"))
    numbers = set(re.findall(r"\d+\.\d+", promises))
    assert numbers and numbers <= set(re.findall(r"\d+\.\d+", measured))


def test_the_readme_asks_for_measurements_with_a_form_that_takes_them():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (name,) = re.findall(r"issues/new\?template=([\w.]+)\)", readme)
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    needed = [field["id"] for field in fields if field["validations"]["required"]]
    assert needed == ["card", "versions", "report"]
    assert len({field["id"] for field in fields}) == len(fields)
    (workflow,) = re.findall(r"\((example_workflows/[\w.]+\.json)\)", readme)
    assert Path(workflow).stem in form["body"][0]["attributes"]["value"]
