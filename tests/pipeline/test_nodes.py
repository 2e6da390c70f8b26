"""How the nodes of a run find each other, start the same stages and end together: without torch."""

import os
import threading
import time

import pytest

from rlhf.config.project import ProjectConfig
from rlhf.errors import GateClosed, UserError
from rlhf.pipeline import nodes
from rlhf.pipeline.launch_file import Launch
from tests.support.projects import make_project


@pytest.fixture
def project(tmp_path, tiny_llama) -> ProjectConfig:
    return make_project(tmp_path, tiny_llama)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Seconds that suit a test."""
    for name, value in {
        "_EVERY": 0.05,
        "_LOOK": 0.01,
        "_STALE": 1.4,
        "_REPORT_WITHIN": 0.3,
        "_LEAVE_WITHIN": 5.0,
    }.items():
        monkeypatch.setattr(nodes, name, value)


def launch(tmp_path, node, count=3):
    return Launch(tmp_path / "nodes.yaml", count, node)


class Node(threading.Thread):
    """A node that follows, and what becomes of it."""

    def __init__(self, project, which, wait=60.0, code=0):
        super().__init__(daemon=True)
        self.project, self.which, self.wait, self.code = project, which, wait, code
        self.started, self.ended = [], None
        self.start()

    def wait_for(self, stage):
        """Wait until it has started a stage."""
        while stage not in [started for started, *_ in self.started]:
            assert self.is_alive(), self.ended
            time.sleep(0.01)

    def run(self):
        try:
            with nodes.following(self.project, self.which, self.wait) as follower:
                for order in follower.orders():
                    self.started.append((order["stage"], order["run"], order["round"], order["overrides"]))
                    if self.code:
                        follower.failed(self.code)
            self.ended = follower.code
        except UserError as error:
            self.ended = str(error)


def lead(project, which, work, wait=60.0):
    """Lead the nodes of a run through what `work` does with them."""
    with nodes.leading(project, which) as leader:
        leader.gather(wait, print)
        work(leader)


def look_after(leader):
    """Look after the other nodes until something is wrong."""
    while True:
        leader.check()
        time.sleep(0.01)


def test_all_nodes_start_the_same_stages_and_end_with_the_code_of_the_first(project, tmp_path):
    others = [Node(project, launch(tmp_path, node)) for node in (1, 2)]

    def work(leader):
        for stage in ("sft", "reward"):
            leader.start(stage, "key")
            for node in others:
                node.wait_for(stage)
            leader.check()
        raise GateClosed("no")

    with pytest.raises(GateClosed):
        lead(project, launch(tmp_path, 0), work)
    for node in others:
        node.join(60)
        assert node.started == [("sft", "key", 1, []), ("reward", "key", 1, [])]
        assert node.ended == 3
    assert not nodes.exchange_folder(project).exists()


def test_what_an_earlier_run_left_behind_starts_nothing(project, tmp_path):
    """A leader that was killed leaves its file, with a node in it."""
    left = nodes.Leader(nodes.exchange_folder(project), launch(tmp_path, 0, 2), project)
    left.file.write(joined={"1": "another"}, number=1, stage="sft", run="old")
    left.file.stop()
    node = Node(project, launch(tmp_path, 1, 2))
    time.sleep(0.3)

    def work(leader):
        leader.start("dpo", "new")
        node.wait_for("dpo")

    lead(project, launch(tmp_path, 0, 2), work)
    node.join(60)
    assert node.started == [("dpo", "new", 1, [])]
    assert node.ended == 0


def test_a_node_does_not_follow_a_leader_that_was_started_again(project, tmp_path):
    """The leader was killed, and its run started again before anybody missed it: the old node starts nothing of it."""
    killed = nodes.Leader(nodes.exchange_folder(project), launch(tmp_path, 0, 2), project)
    old = Node(project, launch(tmp_path, 1, 2))
    killed.gather(60.0, print)
    killed.start("sft", "old")
    old.wait_for("sft")
    killed.file.stop()
    again = nodes.Leader(nodes.exchange_folder(project), launch(tmp_path, 0, 2), project)
    again.start("dpo", "new")
    old.join(60)
    again.file.stop()
    assert "node 0 (" in old.ended
    assert "was started again" in old.ended
    assert [stage for stage, *_ in old.started] == ["sft"]


def test_a_folder_that_is_not_shared_is_said_on_both_sides(project, tmp_path, tiny_llama):
    (tmp_path / "other").mkdir()
    node = Node(make_project(tmp_path / "other", tiny_llama), launch(tmp_path, 1, 2), wait=0.5)
    with pytest.raises(UserError, match=r"node 1 not heard of for 0 s; .* share output_dir"):
        lead(project, launch(tmp_path, 0, 2), print, wait=0.4)
    node.join(60)
    assert "node 0 not heard of for 0 s" in node.ended
    assert not nodes.exchange_folder(project).exists()


def test_two_nodes_of_one_number_are_refused(project, tmp_path):
    first, others = Node(project, launch(tmp_path, 1, 2)), []

    def work(leader):
        others.append(Node(project, launch(tmp_path, 1, 2)))
        others[0].join(60)

    lead(project, launch(tmp_path, 0, 2), work)
    first.join(60)
    assert first.ended == 0
    assert others[0].ended == "--node 1: this run has such a node already"


def test_a_node_that_is_gone_is_named(project, tmp_path, monkeypatch):
    node = Node(project, launch(tmp_path, 1, 2))

    def work(leader):
        leader.start("sft", "key")
        monkeypatch.setattr(nodes.StatusFile, "write", lambda *_, **__: None)
        monkeypatch.setattr(nodes, "_LEAVE_WITHIN", 0.5)
        look_after(leader)

    with pytest.raises(UserError, match=r"node 1 \(.*\): not heard of for 1 s"):
        lead(project, launch(tmp_path, 0, 2), work)
    node.join(60)


def test_processes_that_end_early_on_one_node_end_the_run(project, tmp_path):
    node = Node(project, launch(tmp_path, 1, 2), code=7)

    def work(leader):
        leader.start("sft", "key")
        look_after(leader)

    with pytest.raises(UserError, match=r"node 1 \(.*\): its processes ended with exit code 7"):
        lead(project, launch(tmp_path, 0, 2), work)
    node.join(60)
    assert node.ended == 2


def test_a_node_that_leaves_between_two_stages_ends_the_run(project, tmp_path, monkeypatch):
    """It was asked to stop: the stage after that is one that it never hears of."""
    node = Node(project, launch(tmp_path, 1, 2))

    def left(follower):
        raise UserError("asked to stop")
        yield

    monkeypatch.setattr(nodes.Follower, "orders", left)
    with pytest.raises(UserError, match=r"node 1 \(.*\): its processes ended with exit code 2"):
        lead(project, launch(tmp_path, 0, 2), look_after)
    node.join(60)
    assert node.ended == "asked to stop"


def test_nodes_talk_where_nobody_else_writes(project, tmp_path):
    leader = nodes.Leader(nodes.exchange_folder(project), launch(tmp_path, 0), project)
    try:
        assert nodes.exchange_folder(project).stat().st_mode & 0o777 == 0o700
    finally:
        leader.end(0)


def test_a_node_takes_nothing_from_another_user(project, tmp_path, monkeypatch):
    leader = nodes.Leader(nodes.exchange_folder(project), launch(tmp_path, 0), project)
    monkeypatch.setattr(os, "getuid", lambda: -1)
    with pytest.raises(UserError, match=r"node-0.json: belongs to somebody else"):
        nodes.Follower(nodes.exchange_folder(project), launch(tmp_path, 1)).join(1.0)
    monkeypatch.undo()
    leader.end(0)
