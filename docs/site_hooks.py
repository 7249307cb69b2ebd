"""Hooks of the site (mkdocs.yml): pages that lie elsewhere, the reference, links and formulas.

Pages are written for GitHub; here their links and formulas become the site's, without a network.
"""

from __future__ import annotations

import html
import posixpath
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from docs.notebooks import as_markdown, cells  # noqa: E402
from runtime.discovery import below, classes  # noqa: E402

#: Pages of the site that lie elsewhere in the repository.
ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "cluster/README.md": "cluster.md",
}
#: Pages of the reference: title, and the classes that they describe, with all those derived from them.
REFERENCE = {
    "methods": ("Methods", ["SSLModule"]),
    "data": ("Data", ["SSLDataModule"]),
    "encoders": ("Encoders and decoders", ["Encoder", "Decoder"]),
    "views": ("Views, masks and noise", ["BatchTransform"]),
    "evaluation": ("Probes, measures and commands", ["Probe", "Measure", "Command"]),
    "callbacks": ("Callbacks", ["Callback"]),
}
#: Functions of the reference, below the classes of a page.
FUNCTIONS = {
    "methods": ["runtime.checkpoints.load_module"],
    "evaluation": ["evaluation.features.extract_features"],
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace each pattern in ``nav`` by the pages that it stands for."""
    there = {path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md")}
    there |= {page for page, _ in generated_pages()}
    sections = {title: pages for entry in config.nav or [] for title, pages in entry.items()}
    named = {page for pages in sections.values() for page in pages if "*" not in page}
    config.nav = [
        {title: [found for entry in entries for found in expand(entry, there - named)]}
        for title, entries in sections.items()
    ]
    return config


def expand(entry: str, pages: set[str]) -> list[str]:
    """The pages that an entry stands for: itself, or those that fit its ``*``; a ``*`` enters no folder."""
    if "*" not in entry:
        return [entry]
    return sorted(page for page in pages if fnmatch(page, entry) and page.count("/") == entry.count("/"))


def generated_pages() -> list[tuple[str, str]]:
    """(place on the site, markdown) of every page that is no file in docs/."""
    pages = [(place, (ROOT / source).read_text(encoding="utf-8")) for source, place in ELSEWHERE.items()]
    for name, (title, roots) in REFERENCE.items():
        pages.append((f"reference/{name}.md", reference(title, roots, FUNCTIONS.get(name, []))))
    for script in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
        link = repository_link(f"docs/tutorials/{script.stem}.ipynb")
        page = f"{as_markdown(cells(script))}\n\n[This page as a notebook]({link})\n"
        pages.append((f"tutorials/{script.stem}.md", page))
    return pages


def reference(title: str, roots: list[str], functions: list[str]) -> str:
    """A page for mkdocstrings: base classes, what is derived from them by name, then functions."""
    found = classes()
    paths = [f"{found[name].module}.{name}" for name in (*roots, *below(roots)) if name in found]
    entries = [f"::: {path}" for path in dict.fromkeys([*paths, *functions])]
    return "\n\n".join([f"# {title}", *entries]) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for place, content in generated_pages():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that work in the repository into links of the site."""
    place = page.file.src_uri
    origin = {on_site: source for source, on_site in ELSEWHERE.items()}.get(place, f"docs/{place}")
    parts = re.split(r"(^```.*?^```[ ]*$|`[^`\n]+`)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [
        re.sub(r"(\]\()(?!\w+:)([^)\s#]+)", lambda m: m[1] + site_link(m[2], origin, place, files), part)
        for part in parts[::2]
    ]
    return "".join(parts)


def site_link(link: str, origin: str, place: str, files: Files) -> str:
    """Where ``link``, in the file ``origin`` of the repository, leads from the page at ``place``.

    Raises:
        PluginError: there is no such file.
    """
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    on_site = ELSEWHERE.get(target, target.removeprefix("docs/").replace(".ipynb", ".md"))
    for candidate in (on_site, f"{on_site}/index.md"):
        if (target in ELSEWHERE or target.startswith("docs/")) and files.get_file_from_path(candidate):
            return posixpath.relpath(candidate, posixpath.dirname(place) or ".")
    if not (ROOT / target).exists():
        raise PluginError(f"{origin}: the link {link} leads to {target}, which does not exist")
    return repository_link(target)


def repository_link(path: str) -> str:
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"https://github.com/lightning-ssl/lightning-ssl/{kind}/main/{path}"


def on_page_content(html_text: str, page: Page, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw themselves."""

    def formula(match: re.Match[str]) -> str:
        display = match[1] == "div"
        return convert(html.unescape(match[2].strip()[2:-2]), display="block" if display else "inline")

    return re.sub(r'<(div|span) class="arithmatex">(.*?)</\1>', formula, html_text, flags=re.DOTALL)
