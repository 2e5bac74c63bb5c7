"""The rollout drill of docs/guide/upgrade.md: its commands, over twelve nodes, each a process of its own."""

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import dwcp_fast as dwcp
from dwcp_fast.cli.program import run
from dwcp_fast.policy.stages import Baseline, Rollout, RolloutPlan, judge, measure
from dwcp_fast.rollout.history import read_outcomes

from .conftest import DWCP, WAIT_S, Machine, Recv
from .fleet_node import STALL_S

STAGES = (10, 50, 100)
REACH_S = 5.0
LOOK_S = 0.5
SLACK_S = 4.0
"""What the machine may be late by: it is shared."""
NODE = "network.fleet_node"
FIRST_HANGS_S = 6.0
"""In which three transfers of eight nodes, of which one in three hangs, have begun to."""


def commands(repository: Path, heading: str) -> list[list[str]]:
    """The commands under a heading of the guide."""
    guide = (repository / "docs" / "guide" / "upgrade.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", guide, flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(heading))
    found = re.findall(r"^\$ (dwcp .*)$", text, flags=re.MULTILINE)
    assert found, f"no commands under {heading}"
    return [shlex.split(line)[1:] for line in found]


def names(repository: Path) -> dict[str, int]:
    """Twelve names of the golden vectors and their buckets: four for each stage."""
    table = json.loads((repository / "tests/golden/v1/rollout/buckets.json").read_text(encoding="utf-8"))
    chosen: dict[str, int] = {}
    low = 0
    for stage in STAGES:
        rows = [
            row
            for row in table["rows"]
            if low <= row["bucket"] < stage and re.fullmatch(r"[a-z0-9.-]{1,20}", row["node"])
        ]
        chosen |= {row["node"]: row["bucket"] for row in rows[:4]}
        low = stage
    return chosen


@dataclass
class Fleet:
    """The nodes, the receiver and the files of a drill."""

    folder: Path
    nodes: dict[str, int]
    recv: Recv
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def build(self, what: str) -> None:
        """Have the nodes run a build of v3."""
        path = self.folder / "build.new"
        path.write_text(what)
        path.replace(self.folder / "build")

    def sent(self, node: str) -> list[dict[str, Any]]:
        """What a node says it sent."""
        path = self.folder / f"{node}.sent"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def start(self, stack: ExitStack, env: dict[str, str]) -> None:
        """Start every node."""
        for number, node in enumerate(self.nodes):
            log = stack.enter_context((self.folder / f"{node}.err").open("wb"))
            own = {
                "DWCP_NODE_NAME": node,
                "DWCP_FLAGS_FILE": str(self.folder / "flags.json"),
                "DWCP_OUTCOMES_FILE": str(self.folder / "outcomes" / f"{node}.jsonl"),
                "DWCP_STATE_DIR": str(self.folder / f"state-{node}"),
            }
            build, sent = self.folder / "build", self.folder / f"{node}.sent"
            process = subprocess.Popen(
                [sys.executable, "-m", NODE, self.recv.address, f"127.0.9.{number + 1}", build, sent],
                env={**env, **own},
                cwd=Path(__file__).parent.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            # After it is killed, so that nothing of it is left for the tests that follow.
            stack.callback(process.wait, WAIT_S)
            stack.callback(process.kill)
            self.processes[node] = process

    def check_alive(self) -> None:
        """Fail if a node ended."""
        for node, process in self.processes.items():
            if process.poll() is not None:
                pytest.fail(f"{node} ended: {(self.folder / f'{node}.err').read_text()}")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something the nodes do."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            self.check_alive()
            if time.monotonic() > deadline:
                pytest.fail(f"not within {WAIT_S} s: {what}")
            time.sleep(0.1)

    def flags(self) -> dict[str, Any]:
        """The flags file."""
        told: dict[str, Any] = json.loads((self.folder / "flags.json").read_text())
        return told

    def end(self) -> None:
        """Have every node end what it sends, and end."""
        for process in self.processes.values():
            process.terminate()
        for node, process in self.processes.items():
            assert process.wait(WAIT_S) == 0, (self.folder / f"{node}.err").read_text()


@contextmanager
def watching(fleet: Fleet, command: list[str], env: dict[str, str]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run `dwcp rollout watch`, and give its events one by one."""
    process = subprocess.Popen(
        [*DWCP, *command],
        cwd=fleet.folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = process.stdout

        def following() -> dict[str, Any]:
            line = lines.readline()
            fleet.check_alive()
            if not line:
                pytest.fail(f"watch ended: {process.stderr and process.stderr.read()}")
            told: dict[str, Any] = json.loads(line)
            return {**told, "exit": process.wait(WAIT_S) if told["status"] != "running" else None}

        yield following
    finally:
        process.kill()
        process.communicate()


def check_buckets(fleet: Fleet, percentage: int, since_s: float) -> None:
    """Only the nodes whose bucket is below the percentage used v3 since then, and all of them do."""
    below = {node for node, bucket in fleet.nodes.items() if bucket < percentage}

    def users() -> set[str]:
        outcomes = read_outcomes((fleet.folder / "outcomes",), since_s)
        return {outcome.node for outcome in outcomes if outcome.protocol == "v3"}

    fleet.until(lambda: users() >= below, f"v3 at {percentage} % by {below}, it is {users()}")
    assert users() == below


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_fleet_moves_to_v3_and_a_bad_build_takes_it_back(
    repository: Path, tmp_path: Path, machine: Machine
) -> None:
    receive, start, watch = commands(repository, "The drill")
    nodes = names(repository)
    assert len(nodes) == 12 and [sum(b < stage for b in nodes.values()) for stage in STAGES] == [4, 8, 12]
    (tmp_path / "outcomes").mkdir()
    assert receive[:5] == ["recv", "--listen", "127.0.0.1:0", "--into", "inbox"]
    assert receive[-1] == "--json-lines", "which the receiver of the tests is given anyway"
    env = machine.env("watcher")
    with machine.recv(*receive[5:-1]) as recv, ExitStack() as stack:
        fleet = Fleet(tmp_path, nodes, recv)
        fleet.build("good")
        assert machine_runs(["rollout", "set", "v3RolloutPercentage=0", "--flags", "flags.json"], fleet, env)
        fleet.start(stack, env)
        fleet.until(lambda: all(map(fleet.sent, nodes)), "every node has sent something")
        check_buckets(fleet, 0, 0.0)
        for build, reason in (
            ("errors", "error rate"),
            ("latency", "latency"),
            ("throughput", "throughput"),
            ("hangs", "error rate"),
            ("good", None),
        ):
            assert machine_runs(start, fleet, env)
            run_round(fleet, watch, env, build, reason)
        fleet.end()
        check_arrived(fleet)


def machine_runs(command: list[str], fleet: Fleet, env: dict[str, str]) -> bool:
    """Run a command where the files of the drill are."""
    done = subprocess.run([*DWCP, *command], cwd=fleet.folder, env=env, timeout=WAIT_S, check=False)
    return done.returncode == 0


def run_round(fleet: Fleet, watch: list[str], env: dict[str, str], build: str, reason: str | None) -> None:
    """Go from 10 to 50 percent, put a build in, and see how that ends."""
    watched: list[dict[str, Any]] = []
    put_in_s = 0.0
    with watching(fleet, watch, env) as following:
        seen: list[int] = []
        while True:
            event = following()
            watched.append(event)
            if not seen or event["percentage"] != seen[-1]:
                seen.append(event["percentage"])
                # A stage that a bad build gets to is taken back before it has reached all nodes.
                if event["status"] == "running" and (event["percentage"] <= 50 or reason is None):
                    check_buckets(fleet, event["percentage"], event["since_s"])
                    if event["percentage"] == 50:
                        fleet.build(build)
                        put_in_s = time.time()
            if event["exit"] is not None:
                break
    if reason is None:
        assert (event["status"], event["exit"]) == ("done", 0), event
        assert seen == list(STAGES)
        assert fleet.flags()["v3RolloutPercentage"] == 100 and not fleet.flags()["forceV1Mode"]
        return
    assert (event["status"], event["exit"]) == ("rolled-back", 1), event
    # What hangs shows when its time is over, and the stage may be over before.
    assert seen in ([10, 50, 0], [10, 50, 100, 0][: 4 if build == "hangs" else 0]), event
    assert reason in event["why"], event
    flags = fleet.flags()
    assert flags["forceV1Mode"] and flags["v3RolloutPercentage"] == 0
    assert flags["enableV3Transport"] and flags["enableV3Compression"], "the rest stays what it was"
    fleet.build("good")
    taken_back_s = event["since_s"]
    shown_s = shown_bad(fleet, watched, taken_back_s)
    assert taken_back_s - shown_s < LOOK_S + SLACK_S, f"taken back {taken_back_s - shown_s:.1f} s late"
    if build == "hangs":
        failed = {one.failure for one in read_outcomes((fleet.folder / "outcomes",), put_in_s)}
        assert failed - {None} == {"deadline"}, "what hangs is seen when its time is over"
        assert taken_back_s - put_in_s < STALL_S + FIRST_HANGS_S + LOOK_S + SLACK_S
    # Every node goes on, in v1, and none has ended a transfer in v3 later than is promised.
    fleet.until(
        lambda: all(
            any(sent["at_s"] > taken_back_s + REACH_S for sent in fleet.sent(n)) for n in fleet.nodes
        ),
        "every node goes on",
    )
    for node in fleet.nodes:
        late = [
            s for s in fleet.sent(node) if s["at_s"] > taken_back_s + REACH_S and s.get("protocol") == "v3"
        ]
        assert late == [], f"{node} still used v3"


def shown_bad(fleet: Fleet, watched: list[dict[str, Any]], taken_back_s: float) -> float:
    """The time from which on what the nodes had written was enough, at every moment, to take it back."""
    last, told = watched[-2], watched[-1]["plan"]
    plan = RolloutPlan(**{**told, "stages": tuple(told["stages"])})
    baseline = watched[-1]["measured"]["baseline"]
    rollout = Rollout(
        plan=plan,
        stage=plan.stages.index(last["percentage"]),
        since_s=last["since_s"],
        baseline=baseline and Baseline(**baseline),
    )
    outcomes = read_outcomes((fleet.folder / "outcomes",), rollout.since_s)
    shown_s = taken_back_s
    for now_s in sorted((one.at_s for one in outcomes if one.at_s <= taken_back_s), reverse=True):
        written = [outcome for outcome in outcomes if outcome.at_s <= now_s]
        if judge(rollout, measure(rollout, written, now_s), now_s).value != "rollback":
            break
        shown_s = now_s
    return shown_s


def check_arrived(fleet: Fleet) -> None:
    """Every state that was sent has arrived, bit for bit, and nothing else has."""
    sent = [told for node in fleet.nodes for told in fleet.sent(node) if "digest" in told]
    wanted = {told["digest"] for told in sent}
    assert {told["protocol"] for told in sent} == {"v1", "v3"}

    def arrived() -> set[str]:
        files = (path for path in fleet.recv.into.iterdir() if path.is_file() and path.suffix != ".part")
        return {dwcp.digest(path.read_bytes()).hex() for path in files}

    # v1 does not tell its sender when it is in place.
    fleet.processes.clear()
    fleet.until(lambda: arrived() >= wanted, "all has arrived")
    assert arrived() == wanted


def test_the_other_commands_of_the_guide_do_what_it_says(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for heading in ("3.", "5."):
        for command in commands(repository, heading):
            assert run([*command, "--quiet"]) == 0, command
    flags = json.loads((tmp_path / "flags.json").read_text())
    assert flags["forceV1Mode"] and flags["v3RolloutPercentage"] == 0
    assert flags["enableV3Transport"] and not flags["enableHybridMode"]
    (watch,) = commands(repository, "4.")
    assert run([*watch, "--quiet"]) == 1, "it was taken back"
