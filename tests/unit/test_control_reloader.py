"""Reloads: whole or not at all, one at a time, and by themselves where a file changes and comes to rest."""

import asyncio
import io
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from balancer.control import reloader as reloader_module
from balancer.control.config_files import ConfigFiles
from balancer.control.reloader import ConfigSource, Reloaded, Reloader, config_id
from balancer.settings import Fault, Settings, SettingsError, load
from balancer.telemetry.logs import make_logger
from balancer.telemetry.metrics import Metrics
from tests.unit.unit_support import FakeClock

GOOD = "instances: [http://gpu1:11434]\nlimits: {queue_requests: 1}\n"
OTHER = "instances: [http://gpu1:11434]\nlimits: {queue_requests: 2}\n"
BAD = "instances: [http://gpu1:11434]\nlimits: {queue_requests: -1}\n"
UNREADABLE = "instances: [http://gpu1:11434"


@dataclass
class Bench:
    """A reloader over real files, with the settings that it has taken over."""

    reloader: Reloader
    metrics: Metrics
    clock: FakeClock
    applied: list[Settings]
    log_text: io.StringIO
    refuses: list[str] = field(default_factory=list)

    @property
    def queue_limits(self) -> list[int]:
        return [each.limits.queue_requests for each in self.applied]

    def events(self) -> list[tuple[str, Any]]:
        lines = [json.loads(line) for line in self.log_text.getvalue().splitlines()]
        return [(each["event"], each.get("changed")) for each in lines]

    def gauge(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)

    async def looks(self, times: int) -> None:
        for _ in range(times):
            await self.reloader.run_once()


def bench(*paths: Path, read: Callable[[], Settings] | None = None) -> Bench:
    def from_files() -> Settings:
        return load(paths, environ={})

    files = ConfigFiles(paths)
    settings = from_files()
    metrics, clock, applied, log_text = Metrics(), FakeClock(), list[Settings](), io.StringIO()
    refuses: list[str] = []

    def take(settings: Settings) -> None:
        if refuses:
            raise SettingsError(
                [Fault("configuration", each, "cannot change", "a new start") for each in refuses]
            )
        applied.append(settings)

    reloader = Reloader(
        settings=settings,
        source=ConfigSource(load=read or from_files, files=files),
        apply=take,
        metrics=metrics,
        clock=clock,
        log=make_logger(level="info", output_format="json", stream=log_text),
    )
    return Bench(reloader, metrics, clock, applied, log_text, refuses)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Written long ago: the clock of a file system is too coarse to tell two writes of one test apart."""
    path = tmp_path / "balancer.yaml"
    path.write_text(GOOD)
    os.utime(path, (1e9, 1e9))
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path, text: str) -> None:
    """As editors and deployments do it: a new file takes the old one's place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


async def test_a_reload_takes_changed_settings_over_and_tells_their_id(path: Path) -> None:
    made = bench(path)
    before = made.reloader.config
    write(path, OTHER)

    told = await made.reloader.reload()

    assert told == Reloaded(config_id(load([path], environ={})), True)
    assert (made.reloader.config, made.queue_limits) == (told.config, [2])
    assert told.config != before
    assert made.events() == [("config_reloaded", True)]


async def test_a_reload_of_the_same_settings_changes_nothing(path: Path) -> None:
    made = bench(path)
    replace(path, "# the same in other words\n" + GOOD)

    assert await made.reloader.reload() == Reloaded(made.reloader.config, False)
    assert made.applied == []
    assert made.events() == [("config_reloaded", False)]


@pytest.mark.parametrize("text", [BAD, UNREADABLE, "nonsense: 1\n", None])
async def test_a_bad_file_is_refused_whole_and_the_old_settings_stay(path: Path, text: str | None) -> None:
    made = bench(path)
    before = made.reloader.config
    remove(path)
    if text is not None:
        write(path, text)

    with pytest.raises(SettingsError) as refused:
        await made.reloader.reload()

    assert (made.applied, made.reloader.config) == ([], before)
    assert made.reloader.faults == refused.value.faults
    assert made.events() == [("config_refused", None)]
    assert str(path) in json.loads(made.log_text.getvalue())["error"]


async def test_what_cannot_change_while_running_is_refused_like_a_bad_file(path: Path) -> None:
    made = bench(path)
    before = made.reloader.config
    made.refuses.append("listen")
    write(path, OTHER)

    with pytest.raises(SettingsError, match="listen"):
        await made.reloader.reload()

    assert made.reloader.config == before
    made.refuses.clear()
    assert (await made.reloader.reload()).changed


async def test_metrics_tell_whether_the_newest_reload_went_well_and_when(path: Path) -> None:
    made = bench(path)
    names = ("balancer_config_reload_success", "balancer_config_reload_timestamp_seconds")
    at_start = [made.gauge(each) for each in names]
    made.clock.advance(10)
    write(path, BAD)
    with pytest.raises(SettingsError):
        await made.reloader.reload()
    refused = [made.gauge(each) for each in names]
    write(path, GOOD)
    await made.reloader.reload()

    assert at_start == [1, 1_700_001_000.0]
    assert refused == [0, 1_700_001_000.0]
    assert [made.gauge(each) for each in names] == [1, 1_700_001_010.0]
    assert made.reloader.faults == ()


async def test_two_reloads_at_once_run_one_after_the_other(path: Path) -> None:
    inside, most, gate = [0], [0], threading.Event()

    def slow() -> Settings:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        gate.wait(10)
        inside[0] -= 1
        return load([path], environ={})

    made = bench(path, read=slow)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(made.reloader.reload())
        await asyncio.sleep(0.05)
        write(path, OTHER)
        gate.set()

    assert most == [1]
    assert made.queue_limits == [2]
    assert made.events() == [
        ("config_reloaded", True),
        ("config_reloaded", False),
        ("config_reloaded", False),
    ]


async def test_the_loop_goes_on_while_files_are_read_and_a_disk_that_hangs_holds_one_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloader_module, "_READ_SECONDS", 0.05)
    gate, calls = threading.Event(), []

    def hanging() -> Settings:
        calls.append(1)
        gate.wait(20)
        return load([path], environ={})

    made = bench(path, read=hanging)
    for _ in range(3):
        with pytest.raises(SettingsError, match="was not read in"):
            await made.reloader.reload()
    hung = len(calls)
    gate.set()
    await made.reloader.reload()

    assert (hung, len(calls)) == (1, 2)


async def test_a_reload_that_nobody_waits_for_any_more_is_no_hindrance(path: Path) -> None:
    gate = threading.Event()

    def slow() -> Settings:
        gate.wait(20)
        raise SettingsError([Fault("x", "y", "z", "w")])

    made = bench(path, read=slow)
    left = asyncio.create_task(made.reloader.reload())
    await asyncio.sleep(0.05)
    left.cancel()
    await asyncio.wait((left,))
    gate.set()

    with pytest.raises(SettingsError):
        await made.reloader.reload()


@pytest.mark.parametrize("change", [write, replace], ids=["in place", "replaced"])
async def test_a_changed_file_is_taken_over_once_it_rests(
    path: Path, change: Callable[[Path, str], None]
) -> None:
    made = bench(path)
    await made.looks(3)
    untouched = made.events()
    change(path, OTHER)
    await made.looks(1)
    at_first_sight = made.events()
    await made.looks(1)
    taken = made.queue_limits
    await made.looks(3)

    assert (untouched, at_first_sight, taken) == ([], [], [2])
    assert made.events() == [("config_reloaded", True)]


async def test_a_link_pointed_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As a mounted ConfigMap is renewed: the file's own link stays, one on the way is swapped."""
    for name, text in (("one", GOOD), ("two", OTHER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "balancer.yaml").write_text(text)
    (tmp_path / "data").symlink_to("one")
    link = tmp_path / "balancer.yaml"
    link.symlink_to("data/balancer.yaml")
    made = bench(link)
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(tmp_path / "data")

    await made.looks(2)

    assert made.queue_limits == [2]


async def test_a_file_still_being_written_is_not_read(path: Path) -> None:
    made = bench(path)
    text = GOOD + "#"
    for _ in range(5):
        text += "#"
        write(path, text)
        await made.looks(1)
    being_written = made.events()
    await made.looks(1)

    assert being_written == []
    assert made.events() == [("config_reloaded", False)]


async def test_a_write_that_keeps_size_and_time_is_seen(path: Path) -> None:
    made = bench(path)
    before = os.stat(path)
    while os.stat(path).st_ctime_ns == before.st_ctime_ns:
        write(path, OTHER)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    await made.looks(2)

    assert os.stat(path).st_size == before.st_size
    assert made.queue_limits == [2]


async def test_a_refused_file_is_read_again_only_when_it_changes_again(path: Path) -> None:
    made = bench(path)
    write(path, BAD)
    await made.looks(6)
    refused = made.events()
    write(path, OTHER)
    await made.looks(2)

    assert refused == [("config_refused", None)]
    assert made.queue_limits == [2]


async def test_a_reload_on_request_is_not_done_again_by_the_watch(path: Path) -> None:
    made = bench(path)
    write(path, OTHER)
    await made.reloader.reload()
    await made.looks(3)

    assert made.events() == [("config_reloaded", True)]


async def test_a_file_that_goes_away_and_comes_back_is_tolerated(path: Path) -> None:
    made = bench(path)
    remove(path)
    await made.looks(1)
    write(path, OTHER)
    await made.looks(2)
    short = made.events()
    remove(path)
    await made.looks(3)
    write(path, GOOD)
    await made.looks(2)

    assert short == [("config_reloaded", True)]
    assert made.events()[1:] == [("config_refused", None), ("config_reloaded", True)]


async def test_an_optional_file_that_appears_is_a_change(tmp_path: Path, path: Path) -> None:
    dotenv = tmp_path / ".env"
    files = ConfigFiles([path, dotenv])
    before = [files.settled() for _ in range(2)]
    dotenv.write_text("BALANCER_STRATEGY=random\n")

    assert (before, [files.settled() for _ in range(2)]) == ([False, False], [False, True])


async def test_what_was_asked_for_is_done_at_the_next_look_and_told_in_the_log_alone(path: Path) -> None:
    made = bench(path)
    write(path, BAD)
    made.reloader.ask()
    made.reloader.ask()
    await made.looks(2)

    assert made.events() == [("config_refused", None)]


async def test_a_defect_met_in_a_file_ends_nothing(path: Path) -> None:
    def broken() -> Settings:
        raise ZeroDivisionError

    made = bench(path, read=broken)
    made.reloader.ask()
    await made.looks(1)

    assert made.gauge("balancer_config_reload_success") == 0
    assert made.events() == [("reload_failed", None)]


async def test_the_watch_sees_a_change_without_being_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloader_module, "_LOOK_SECONDS", 0.01)
    made = bench(path)
    async with asyncio.timeout(20):
        watch = asyncio.create_task(made.reloader.run())
        replace(path, OTHER)
        while not made.applied:  # noqa: ASYNC110 - a change on a disk has no event
            await asyncio.sleep(0.005)
        watch.cancel()
        await asyncio.wait((watch,))

    assert made.queue_limits == [2]


async def test_what_came_through_a_pipe_is_not_read_again(path: Path) -> None:
    made = bench(path)
    remove(path)
    os.mkfifo(path)

    with pytest.raises(SettingsError, match="pipe"):
        await made.reloader.reload()


def test_the_id_is_the_same_for_the_same_settings_however_they_were_written(tmp_path: Path) -> None:
    yaml, ini = tmp_path / "a.yaml", tmp_path / "a.ini"
    yaml.write_text("strategy: LeastConnections\nlimits: {body_bytes: 1 MiB}\n")
    ini.write_text("[balancer]\nstrategy = least_connections\n[limits]\nbody_bytes = 1048576\n")

    ids = {config_id(load([each], environ={})) for each in (yaml, ini)}

    assert len(ids) == 1
    assert ids != {config_id(Settings())}
    assert len(config_id(Settings())) == 12
