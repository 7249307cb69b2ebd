"""The site builds without a warning, and a browser shows each page without an error and without a network."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from docs.notebooks import TUTORIALS, as_markdown, as_notebook, cells, notebook_text
from runtime.messages import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
#: Pages above 200 lines, each with the reason.
LONG_PAGES: dict[str, str] = {}


def nav() -> list[str]:
    """Every entry of the site's navigation."""
    sections = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    return [page for section in sections for pages in section.values() for page in pages]


def test_the_navigation_names_pages_that_exist() -> None:
    generated = ("reference/", "tutorials/", "contributing.md", "security.md", "changelog.md", "cluster.md")
    named = [page for page in nav() if "*" not in page and not page.startswith(generated)]
    assert [page for page in named if not (ROOT / "docs" / page).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_is_short(page: Path) -> None:
    if page.name not in LONG_PAGES:
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 200


def test_the_picture_of_the_readme_is_small() -> None:
    """Made by python docs/screenshots.py RUN."""
    picture = ROOT / "docs" / "images" / "overview.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 200_000


def test_a_script_becomes_a_notebook_and_a_page(tmp_path: Path) -> None:
    script = tmp_path / "a.py"
    script.write_text(
        "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %% [bash]\n# ls -l\n\n# %%\nx = 1\nprint(x)\n"
    )
    content = cells(script)
    assert content == [("markdown", "# Title\n\nText."), ("bash", "ls -l"), ("python", "x = 1\nprint(x)")]
    page = "# Title\n\nText.\n\n```bash\nls -l\n```\n\n```python\nx = 1\nprint(x)\n```"
    assert as_markdown(content) == page
    notebook = as_notebook(content)
    assert [(c["cell_type"], "".join(c["source"])) for c in notebook["cells"]] == [
        ("markdown", "# Title\n\nText."),
        ("code", "%%bash\nls -l"),
        ("code", "x = 1\nprint(x)"),
    ]
    assert [c["outputs"] for c in notebook["cells"][1:]] == [[], []]


@pytest.mark.parametrize("script", sorted(TUTORIALS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_is_made_from_its_script(script: Path) -> None:
    """Run python docs/notebooks.py after a change."""
    assert script.with_suffix(".ipynb").read_text(encoding="utf-8") == notebook_text(script)


# ---- slow: the docs extra --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with --strict: a warning fails."""
    for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.mark.slow
def test_the_site_is_complete(site: Path) -> None:
    there = {path.parent.relative_to(site).as_posix() for path in site.rglob("index.html")}
    pages = [path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in PAGES]
    pages = [page.removesuffix("index").rstrip("/") or "." for page in pages]
    pages += ["contributing", "security", "changelog", "cluster", "reference/methods", "reference/data"]
    pages += [f"tutorials/{script.stem}" for script in TUTORIALS.glob("*.py")]
    assert set(pages) - there == set()
    reference = (site / "reference/methods/index.html").read_text(encoding="utf-8")
    assert 'id="sslmodules.simclr.SimCLR"' in reference and "temperature" in reference


@pytest.mark.slow
def test_formulas_are_mathml(site: Path) -> None:
    pages = [path for path in site.rglob("index.html") if path.parent.parent.name == "methods"]
    assert sum(page.read_text(encoding="utf-8").count("<math") for page in pages) > 100
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<m\w+[^>]*>(\\\w+)</m\w+>", text) == [], page  # commands that are not known
        assert "arithmatex" not in text and "$" not in re.sub(r"<code.*?</code>", "", text, flags=re.DOTALL)


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where a server on this machine shows the site."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_a_browser_shows_every_page_without_an_error(site: Path, address: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install -e '.[docs]'")
    chromium = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    pages = [path.parent.relative_to(site).as_posix() for path in sorted(site.rglob("index.html"))]
    problems = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: problems.append(f"{page.url}: {message.type} {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
        page.on("request", lambda r: None if r.url.startswith(address) else problems.append(r.url))
        page.on("response", lambda r: problems.append(r.url) if r.status >= 400 else None)
        for place in pages:
            page.goto(f"{address}/{place}/", wait_until="load")
            problems += page.evaluate(
                """() => [
                    ...[...document.images].filter(i => !i.naturalWidth).map(i => `no picture: ${i.src}`),
                    ...[...document.querySelectorAll("math")].filter(m => !m.getBoundingClientRect().width)
                        .map(m => `no formula: ${m.textContent}`),
                ]"""
            )
        browser.close()
    assert len(pages) > 40 and problems == []
