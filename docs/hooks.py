"""What the documentation takes from the code when it is built, so that the two cannot differ."""

from __future__ import annotations

import html
import re
from pathlib import Path

import architecture
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sgc_experiments.__main__ import ENTRY_POINTS
from sgc_experiments.choices import choices
from sgc_experiments.config import PhantomConfig, YardsticksConfig
from sgc_experiments.experiments import CONFIGS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sgc_experiments", "baselines")
_DIAGRAM = "<!-- diagram -->"
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page per module, and every page that nobody has placed, into the navigation."""
    pages = [{name: f"reference/{name}.md"} for name in modules()]
    config.nav = [
        {"Reference": pages} if entry == {"Reference": "reference/"} else entry
        for entry in config.nav
    ]
    folder = Path(config.docs_dir)
    placed = str(config.nav)
    for path in sorted(folder.rglob("*.md")):
        page = path.relative_to(folder).as_posix()
        if f"'{page}'" in placed:
            continue
        how_to = next(entry["How-to"] for entry in config.nav if "How-to" in entry)
        if page.startswith("how-to/"):
            how_to.append(page)
        else:
            config.nav.insert(config.nav.index({"Gallery": "gallery.md"}), page)
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are written by the code: the parameters and the reference."""
    pages = {"parameters.md": parameters_page()}
    pages |= {f"reference/{name}.md": text for name, text in reference_pages().items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the diagram of the imports where the page has its mark."""
    if _DIAGRAM in markdown:
        return markdown.replace(_DIAGRAM, architecture.diagram())
    return markdown


def on_page_content(content: str, **_: object) -> str:
    """Turn TeX into MathML, which browsers draw without a script."""

    def formula(match: re.Match[str]) -> str:
        display = "block" if match[2] == "[" else "inline"
        return convert(html.unescape(match[3]), display=display)

    return _FORMULA.sub(formula, content)


def modules() -> dict[str, list[str]]:
    """Every public module below the name of the page that shows it."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__main__":
                continue
            if parts[-1] == "__init__":
                parts = parts[:-1]
            # A module has a page of its own, a package one for all that is in it.
            page = "baselines" if package == "baselines" else ".".join(parts[1:2])
            if page:
                found.setdefault(page, []).append(".".join(parts))
    return found


def reference_pages() -> dict[str, str]:
    """One page per module or package, from its docstrings."""
    return {
        page: "\n\n".join([f"# {page}", *(f"::: {name}" for name in names)])
        for page, names in modules().items()
    }


def parameters_page() -> str:
    """A table of the parameters of every entry point."""
    lines = [
        "# Parameters",
        "",
        "Each is given as `-P name=value` after `mlflow run` or as `--name value`, in a YAML file "
        "with `-P config=FILE`, or as the environment variable `SGC_NAME`; an earlier one of these "
        "wins. A wrong name or value is answered with one sentence and the exit status 2.",
        "",
    ]
    commands = {config.entry_point: config for config in (PhantomConfig, YardsticksConfig)}
    for name, config in (CONFIGS | commands).items():
        lines += [f"## {name}", "", f"{ENTRY_POINTS[name].capitalize()}.", ""]
        lines += ["| parameter | default | what may be written | what it is |", "|---|---|---|---|"]
        lines += [_row(name, field) for name, field in config.model_fields.items()]
        lines += [""]
    return "\n".join(lines)


def _row(name: str, field: FieldInfo) -> str:
    text = (field.description or "").replace("|", "\\|")
    return f"| `{name}` | {_default(field.default)} | {choices(field)} | {text} |"


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "*required*"
    if value is None or value in ("", ()):
        return "none"
    return f"`{','.join(map(str, value)) if isinstance(value, tuple) else value}`"
