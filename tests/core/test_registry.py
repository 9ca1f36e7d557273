"""What the Comfy registry gets: checked and packed by the registry's own tool, in a copy of this repository.

The copy holds the files that git tracks and those that it would track if they were added now, so that a fault is seen
before it is committed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

# The whole of the archive: these files and, of these folders, files of these kinds.
FILES = {"__init__.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
FOLDERS = {
    "nodes": {".py"},
    "comfy_erta": {".py"},
    "erta": {".py"},
    "profiles": {".json", ".safetensors"},
    "web": {".js", ".css", ".md", ".png", ".jpg", ".svg"},
    "locales": {".json"},
    "example_workflows": {".json", ".jpg"},
}
LARGEST = 2_000_000

# What scanners of the registry trip over. As words in prose as well: they read no grammar.
SUSPICIOUS = re.compile(
    r"\b(?:subprocess|popen|child_process|pickle|marshal|ctypes|cryptography|base64|atob|socket|urllib|requests|aiohttp"
    r"|XMLHttpRequest|WebSocket|innerHTML|insertAdjacentHTML|localStorage|curl|wget|powershell)\b"
    r"|\bos\.(?:system|exec\w*|spawn\w*)\b|\b(?:eval|exec|__import__|importScripts)\s*\(|(?<![.\w])compile\s*\("
    r"|\bnew\s+Function\b|\btorch\.load\b|\bshell\s*=\s*True|/etc/passwd|\brm\s+-rf|\b[A-Za-z0-9+/]{300,}",
    re.IGNORECASE,
)
TEXT = {".py", ".js", ".css", ".md", ".json", ".toml", ".svg", ""}

# Where the owner of the repository is to be named before publishing. CONTRIBUTING.md, "Publish", is the same list.
OWNER = "OWNER"
OWNER_PLACES = {"pyproject.toml", "README.md", ".github/workflows/publish.yml"}
MENTION_OWNER = {"CONTRIBUTING.md", "tests/core/test_registry.py"}


def own_files() -> list[str]:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        result = subprocess.run(listed, cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no git here")
    if result.returncode != 0:
        pytest.skip(f"not a git checkout: {result.stderr.decode(errors='replace').strip()}")
    return sorted(name for name in result.stdout.decode().split("\0") if name and (ROOT / name).is_file())


def alone(place: Path) -> dict[str, str]:
    """An environment for the tool: settings and caches in `place`, nothing reported, no way out."""
    nowhere = "http://127.0.0.1:9"
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), nowhere)
    homes = dict.fromkeys(("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "XDG_CONFIG_HOME"), str(place))
    silence = {"DO_NOT_TRACK": "1", "COMFY_NO_TELEMETRY": "1", "POSTHOG_API_KEY": "", "NO_COLOR": "1"}
    plain = {"PYTHONUTF8": "1", "COLUMNS": "200", "GIT_CONFIG_GLOBAL": os.devnull, "XDG_CACHE_HOME": str(place)}
    return {**os.environ, **proxies, **homes, **silence, **plain}


def run(command: list[str], tree: Path) -> str:
    """What a command says, in `tree`; it must succeed, ask for nothing and report nothing."""
    home = tree.parent / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        command, cwd=tree, env=alone(home), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def comfy(tree: Path, *words: str) -> str:
    return run([sys.executable, "-P", "-m", "comfy_cli", *words], tree)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, all of it tracked, with a help page in web/docs even where there is none yet."""
    copy = tmp_path_factory.mktemp("registry") / "ComfyUI-ERTACache"
    for name in own_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    help_page = copy / "web" / "docs" / "ERTAProbe.md"
    help_page.parent.mkdir(parents=True, exist_ok=True)
    help_page.write_text("# A page of help\n", encoding="utf-8")
    run(["git", "init", "--quiet"], copy)
    run(["git", "add", "--all", "--force"], copy)
    return copy


@pytest.fixture(scope="module")
def archive(tree: Path) -> Iterator[zipfile.ZipFile]:
    said = comfy(tree, "node", "pack")
    assert "Created zip file" in said and "Warning" not in said, said
    with zipfile.ZipFile(tree / "node.zip") as packed:
        yield packed


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_registrys_own_check_is_clean(tree: Path) -> None:
    said = comfy(tree, "node", "validate")
    assert "All validation checks passed" in said, said
    for word in ("Warning", "Security warnings", "Error"):
        assert word not in said, said


def test_the_registrys_own_check_can_fail(tree: Path) -> None:
    """It warns and succeeds all the same: so what it says has to be read."""
    fault = tree / "nodes" / "fault.py"
    fault.write_text('x = 1; exec("x")\n', encoding="utf-8")
    try:
        said = comfy(tree, "node", "validate")
    finally:
        fault.unlink()
    assert "Security warnings" in said and "S102" in said and "E702" in said, said


PARSE = """
import dataclasses, json, sys
from comfy_cli.registry.config_parser import extract_node_configuration
with open(sys.argv[1], "w", encoding="utf-8") as out:
    json.dump(dataclasses.asdict(extract_node_configuration("pyproject.toml")), out, default=str)
"""


def parsed(tree: Path) -> tuple[dict[str, Any], str]:
    """pyproject.toml as the registry's parser understands it, and what it complained of."""
    found = tree.parent / "parsed.json"
    said = run([sys.executable, "-P", "-c", PARSE, str(found)], tree)
    return json.loads(found.read_text(encoding="utf-8")), said


def test_the_registrys_parser_drops_nothing_of_pyproject(tree: Path) -> None:
    found, said = parsed(tree)
    assert said.strip() == ""
    project_, comfy_ = project()["project"], project()["tool"]["comfy"]
    families = [line.partition(" :: ") for line in project_["classifiers"]]
    assert found["project"] == {
        "name": project_["name"],
        "description": project_["description"],
        "version": project_["version"],
        "requires_python": project_["requires-python"],
        "dependencies": project_["dependencies"],
        "license": {"file": project_["license"]["file"], "text": ""},
        "urls": {key: project_["urls"][key.capitalize()] for key in found["project"]["urls"]},
        "supported_os": [value for family, _, value in families if family == "Operating System"],
        "supported_accelerators": [value for family, _, value in families if family == "Environment"],
        "supported_comfyui_version": comfy_["requires-comfyui"],
        "supported_comfyui_frontend_version": "",
    }
    assert found["tool_comfy"] == {
        "publisher_id": comfy_["PublisherId"],
        "display_name": comfy_["DisplayName"],
        "icon": comfy_["Icon"],
        "banner_url": comfy_["Banner"],
        "models": [],
        "includes": [],
        "web": "",
    }
    assert set(comfy_) == {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"}, "else compare it above"
    assert found["project"]["supported_os"] and len(found["project"]["supported_accelerators"]) == 5


def test_the_registrys_parser_does_drop_what_it_does_not_know(tree: Path) -> None:
    """Otherwise the test above could not fail: one strange classifier empties its family."""
    path = tree / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(text.replace("GPU :: Intel Arc", "GPU :: Intel"), encoding="utf-8")
        found, said = parsed(tree)
    finally:
        path.write_text(text, encoding="utf-8")
    assert found["project"]["supported_accelerators"] == [] and "Warning" in said


def test_name_version_and_addresses_keep_the_registrys_rules() -> None:
    found = project()["project"]
    name = found["name"]
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", name) and len(name) < 100 and "comfyui" not in name
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["version"])
    assert f"## {found['version']} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert found["dependencies"] == []
    assert found["urls"]["Issues"] == found["urls"]["Bug Tracker"]
    assert (ROOT / found["license"]["file"]).is_file()
    assert re.fullmatch(r">=\d+\.\d+\.\d+", project()["tool"]["comfy"]["requires-comfyui"])


def test_the_archive_holds_what_runs_and_nothing_else(archive: zipfile.ZipFile, tree: Path) -> None:
    inside = {name for name in archive.namelist() if not name.endswith("/")}
    wanted = {name for name in own_files() if name in FILES or name.split("/")[0] in FOLDERS}
    wanted -= {f"example_workflows/demo_tiny_wan.{kind}" for kind in ("json", "jpg")}  # its nodes stay out as well
    assert inside == wanted | {"web/docs/ERTAProbe.md"}
    assert inside >= FILES | {"nodes/__init__.py", "erta/plan.py", "comfy_erta/session.py", "web/ertacache.js"}
    for name in inside - FILES:
        assert Path(name).suffix in FOLDERS[name.split("/")[0]], f"{name}: of no kind that belongs there"
        assert re.fullmatch(r"[\w./@+-]+", name), f"{name}: a name that not every system can unpack"
    assert not [name for name in own_files() if name.endswith((".pt", ".pth", ".ckpt", ".pkl"))]
    size = (tree / "node.zip").stat().st_size
    assert size < LARGEST and sum(info.file_size for info in archive.infolist()) < 2 * LARGEST, size


def test_the_archive_holds_nothing_that_scanners_trip_over(archive: zipfile.ZipFile) -> None:
    for name in archive.namelist():
        if Path(name).suffix in TEXT:
            for number, line in enumerate(archive.read(name).decode("utf-8").splitlines(), start=1):
                found = SUSPICIOUS.search(line)
                assert found is None, f"{name}:{number}: {found.group(0)[:40]!r}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import subprocess", True),
        ("os.system('ls')", True),
        ("x = eval (y)", True),
        ("model.eval()", True),
        ("exec(code)", True),
        ("a pickle of it", True),
        ("socket.create_connection", True),
        ("el.innerHTML = text", True),
        ("torch.load(path)", True),
        ('"' + "A0" * 200 + '"', True),
        ("socketless=True", False),
        ("re.compile(x)", False),
        ("executed model calls, retrieval(x)", False),
        ("options['shell'], crequests", False),
    ],
)
def test_the_scan_sees_what_it_should(line: str, found: bool) -> None:
    assert bool(SUSPICIOUS.search(line)) == found


def test_icon_and_banner_have_the_asked_for_shape() -> None:
    place = ROOT / "docs" / "registry"
    for name, shape, largest in (("icon.svg", 1.0, 400), ("banner.svg", 21 / 9, 4000)):
        drawing = ElementTree.parse(place / name).getroot()
        width, height = int(drawing.get("width", "0")), int(drawing.get("height", "0"))
        assert drawing.get("viewBox") == f"0 0 {width} {height}"
        assert width / height == pytest.approx(shape) and max(width, height) <= largest
        assert not {"script", "image", "foreignObject"} & {node.tag.split("}")[1] for node in drawing.iter()}
    with Image.open(place / "banner.png") as banner:
        assert banner.size == (width, height)
        assert len(banner.convert("L").resize((42, 18)).getcolors()) > 20, "blank"
    for key, name in (("Icon", "icon.svg"), ("Banner", "banner.png")):
        address = project()["tool"]["comfy"][key]
        assert re.fullmatch(
            rf"https://raw\.githubusercontent\.com/[\w-]+/ComfyUI-ERTACache/main/docs/registry/{name}", address
        )


def owners() -> set[str]:
    """Every owner that an address of the repository names, in the three places."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in OWNER_PLACES)
    pattern = r"(?:github\.com|githubusercontent\.com)/([\w-]+)/ComfyUI-ERTACache|repository_owner == '([\w-]+)'"
    return {first or second for first, second in re.findall(pattern, text)}


def test_the_owner_is_named_everywhere_or_nowhere() -> None:
    """Until the owner is known OWNER stands in its place, only where CONTRIBUTING.md says so; then nowhere any more."""
    named = owners()
    assert len(named) == 1, f"several owners: {named}"
    texts = {name: (ROOT / name).read_bytes() for name in own_files()}
    left = {name for name, text in texts.items() if re.search(rb"\bOWNER\b", text)} - MENTION_OWNER
    publisher = project()["tool"]["comfy"]["PublisherId"]
    if named == {OWNER}:
        assert left == OWNER_PLACES
        assert publisher == "", "a publisher, but no owner of the repository"
    else:
        assert not left and publisher, f"still to fill in: {left or 'PublisherId'}"
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for place in (*OWNER_PLACES, "PublisherId", "REGISTRY_ACCESS_TOKEN"):
        assert f"`{place}`" in guide, f"CONTRIBUTING.md does not name {place}"


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_well_formed_and_ask_for_little(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(content) == {"name", True, "permissions", "concurrency", "jobs"}, "`on` is read as true"
    assert content["permissions"] == {"contents": "read"}
    assert content[True]["push"]["branches"] == ["main"]
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 90 and "permissions" not in job
    for step in steps(path):
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|main)", step["uses"])
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
    secrets = set(re.findall(r"secrets\.(\w+)", path.read_text(encoding="utf-8")))
    assert secrets == ({"REGISTRY_ACCESS_TOKEN"} if path.stem == "publish" else set())


def test_there_is_a_workflow_to_test_and_one_to_publish() -> None:
    assert [path.stem for path in WORKFLOWS] == ["publish", "test"]
    publish = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text(encoding="utf-8"))
    assert publish[True]["push"]["paths"] == ["pyproject.toml"] and "pull_request" not in publish[True]
    last = steps(ROOT / ".github/workflows/publish.yml")[-1]
    assert last["uses"] == "Comfy-Org/publish-node-action@main"


def test_workflows_run_what_exists_in_the_versions_that_are_pinned() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pins = makefile + "".join(path.read_text(encoding="utf-8") for path in (ROOT / "demo").glob("requirements*.txt"))
    for step in (step for path in WORKFLOWS for step in steps(path) if "run" in step):
        for pin in re.findall(r"[\w-]+==[\d.]+", step["run"]):
            assert pin in pins, f"{pin} is not what the project pins"
        for name in re.findall(r"(?:-r|--ignore|pytest) ([\w./-]+/[\w./-]+)", step["run"]):
            assert (ROOT / name).exists(), name
        for target in re.findall(r"^make (\w+)", step["run"], re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.skipif(os.name != "posix", reason="a step for bash")
def test_publishing_hands_on_the_changelog_of_the_version_and_waits_for_its_date(tree: Path, tmp_path: Path) -> None:
    script = next(
        step["run"] for step in steps(ROOT / ".github/workflows/publish.yml") if "GITHUB_ENV" in step.get("run", "")
    )
    folder = Path(sys.executable).parent
    variables = {**os.environ, "GITHUB_ENV": str(tmp_path / "env"), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

    def release(heading: str) -> tuple[int, str]:
        (tmp_path / "CHANGELOG.md").write_text(
            f"# Changelog\n\n## {heading}\n\n- New.\n\n## 0.0.9 (2026-01-01)\n\n- Old.\n"
        )
        (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\n')
        (tmp_path / "env").write_text("")
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, env=variables, capture_output=True
        )
        return done.returncode, (tmp_path / "env").read_text()

    status, handed = release("0.1.0 (2026-12-01)")
    assert status == 0
    assert re.sub(r"\n+", "\n", handed) == "COMFY_NODE_CHANGELOG<<END_OF_THE_CHANGELOG\n- New.\nEND_OF_THE_CHANGELOG\n"
    for heading in ("0.1.0 (unreleased)", "0.2.0 (2026-12-01)"):
        assert release(heading) == (1, ""), heading
