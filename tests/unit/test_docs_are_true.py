"""What the docs list is what the code has: routes, metrics, settings, commands."""

import re
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric

from balancer.admin.openapi import DOCUMENT
from balancer.cli import main
from balancer.protocol.routes import ROUTES
from balancer.settings import PENDING, Settings
from balancer.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def table_rows(page: str) -> list[list[str]]:
    rows = (line for line in (DOCS / page).read_text().splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


def test_the_routes_page_lists_every_route_with_its_treatment() -> None:
    listed = [
        (cells[0].strip("`"), cells[1].strip("`"))
        for cells in table_rows("routes.md")
        if re.fullmatch(r"`[A-Z ]+ /.*`", cells[0])
    ]

    assert [(f"{' '.join(each.methods)} {each.path}", each.treatment.value) for each in ROUTES] == listed


def test_the_operations_page_lists_every_metric_with_its_labels() -> None:
    listed = {
        cells[0].strip("`"): (tuple(filter(None, re.split(r",\s*", cells[1]))), cells[2])
        for cells in table_rows("operations.md")
        if cells[0].startswith("`balancer_")
    }

    assert {exposed_name(each): facts(each) for each in declared()} == listed


def test_the_operations_page_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    offered = set(re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE))
    listed = {cells[0].strip("`").split()[0] for cells in table_rows("operations.md") if cells[0].strip("`")}

    assert "serve" in offered
    assert offered - listed == set()


def test_the_operations_page_names_every_path_of_the_admin_listener() -> None:
    page = (DOCS / "operations.md").read_text()
    paths = DOCUMENT["paths"]

    assert isinstance(paths, dict)
    assert [path for path in paths if f"`{path}`" not in page] == []


def test_the_configuration_page_names_every_top_level_setting() -> None:
    page = (DOCS / "configuration.md").read_text()

    assert [name for name in Settings.model_fields if f"`{name}`" not in page] == []


def test_the_configuration_page_names_what_has_no_effect_yet() -> None:
    page = (DOCS / "configuration.md").read_text()

    assert [name for name in PENDING if f"`{name}`" not in page] == []


def test_every_linked_file_is_there() -> None:
    pages = [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]

    assert broken == []


def declared() -> list[Metric]:
    return list(Metrics().registry.collect())


def exposed_name(metric: Metric) -> str:
    return metric.name + "_total" if metric.type == "counter" else metric.name


def facts(metric: Metric) -> tuple[tuple[str, ...], str]:
    collectors = Metrics().registry._collector_to_names
    labels = next(
        tuple(getattr(each, "_labelnames", ())) for each, names in collectors.items() if metric.name in names
    )
    return labels, metric.type
