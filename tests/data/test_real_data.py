"""Real sets, bad rows included: each row is accounted for."""

import gzip
import itertools
import json

import pytest

from rlhf.data.ledger import Ledger
from rlhf.data.prepare import iter_records, prepare
from rlhf.data.records import Demonstration, Encoded, Labelled, Preference

# rows, and by reason those that nothing can be learned from
HH = {
    "helpful-base": (1907, {"empty side": 3, "identical": 2}),
    "harmless-base": (1825, {"empty side": 3}),
    "helpful-online": (920, {"empty side": 2, "identical": 2, "ends without a reply": 2}),
    "helpful-rejection-sampled": (2149, {"identical": 25}),
}


@pytest.mark.parametrize("name", HH)
def test_hh(real, project, tmp_path, name):
    count, dropped = HH[name]
    path = real / f"hh/{name}.jsonl.gz"
    made = project(preferences=path, demonstrations=path)
    prepared = prepare(made, "preferences", lambda record: Encoded({"n": len(record.prompt)}), tmp_path / "out")
    ledger = prepared.ledger
    assert ledger.read == count
    assert ledger.dropped == dropped
    assert ledger.trained + ledger.evaluated == count - sum(dropped.values())
    assert len(prepared.train) + len(prepared.eval) == count - sum(dropped.values())
    lines = gzip.decompress(path.read_bytes()).splitlines()
    for row in map(json.loads, (tmp_path / "out/dropped.jsonl").read_text().splitlines()):
        assert row["row"] == json.loads(lines[int(row["origin"].rpartition(":")[2]) - 1])
    sides = {role: Ledger(role) for role in ("preferences", "demonstrations")}
    prompts = {role: {"train": set(), "eval": set()} for role in sides}
    for role, counts in sides.items():
        for record, side in iter_records(made, role, counts):
            assert record.prompt[-1]["role"] == "user"
            roles = [message["role"] for message in record.prompt]
            assert all(role != other for role, other in itertools.pairwise(roles))  # as templates demand
            reply = record.chosen if isinstance(record, Preference) else record.completion
            assert [message["role"] for message in reply] == ["assistant"]
            prompts[role][side].add(json.dumps(record.prompt))
    assert not prompts["preferences"]["eval"] & prompts["demonstrations"]["train"]
    assert not prompts["demonstrations"]["eval"] & prompts["preferences"]["train"]


# pairs with text on both sides, those whose chosen reply is longer; the share quoted of these files, in percent
LONGER = {
    "helpful-base": (1904, 1139, 59.9),
    "harmless-base": (1822, 810, 44.3),
    "helpful-online": (916, 386, 42.0),
    "helpful-rejection-sampled": (2149, 1197, 55.7),
}


@pytest.mark.parametrize("name", LONGER)
def test_length_bias_of_hh(real, project, tmp_path, name):
    """The share quoted takes what follows the last "Assistant:" for the reply.

    Four replies hold a second "Assistant:" and are read whole here, and two rows of helpful-online end without a reply:
    nothing else parts the two counts.
    """
    path = real / f"hh/{name}.jsonl.gz"
    made = project(preferences=path, holdout=0.3)
    finding = prepare(made, "preferences", lambda record: Encoded({"n": 1}), tmp_path / "out").findings.get("length")
    n, longer, quoted = LONGER[name]
    assert (finding.n, finding.count) == (n, longer)
    assert finding.said
    assert finding.ci[0] < quoted / 100 < finding.ci[1]
    assert 100 * finding.share == pytest.approx(quoted, abs=0.2)
    ends = [
        [row[side].rpartition("\n\nAssistant:")[2].strip() for side in ("chosen", "rejected")]
        for row in map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    ]
    lengths = [(len(chosen), len(rejected)) for chosen, rejected in ends if chosen and rejected]
    assert round(100 * sum(chosen > rejected for chosen, rejected in lengths) / len(lengths), 1) == quoted
    assert abs(sum(chosen > rejected for chosen, rejected in lengths) - longer) <= 2


def test_what_else_is_found_in_hh(real, project, tmp_path):
    """Entities and letters that were decoded wrongly, a turn inside a reply, prompts that are nearly others."""
    counts = {}
    for name in HH:
        made = project(preferences=real / f"hh/{name}.jsonl.gz")
        findings = prepare(made, "preferences", lambda record: Encoded({"n": 1}), tmp_path / name).findings
        counts[name] = {entry.kind: entry.count for entry in findings.entries if entry.count and entry.kind != "length"}
    assert counts == {
        "helpful-base": {"leaked": 4, "near_duplicates": 18},
        "harmless-base": {"markers": 1, "near_duplicates": 6},
        "helpful-online": {"undecodable": 2},
        "helpful-rejection-sampled": {"undecodable": 1, "near_duplicates": 20},
    }


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("gsm8k/train.jsonl.gz", Demonstration, 7473),
        ("rt_polarity/train.jsonl", Labelled, 8554),
        ({"source": "banking77/train.csv.gz", "columns": {"label": "category"}}, Labelled, 10003),
        ("llmbar/Natural.json", Preference, 100),
        ("llmbar", Preference, 192),
    ],
)
def test_other_sets(real, project, name, kind, count):
    role = "preferences" if kind is Preference else "demonstrations"
    ledger = Ledger(role)
    source = {**name, "source": str(real / name["source"])} if isinstance(name, dict) else real / name
    records = [record for record, _ in iter_records(project(**{role: source}), role, ledger)]
    assert ledger.read == count == len(records) + sum(ledger.dropped.values())
    assert {type(record) for record in records} == {kind}
    if kind is Labelled:
        assert len({record.labels for record in records}) == (77 if isinstance(name, dict) else 2)
    if name == "gsm8k/train.jsonl.gz":
        assert all(float(record.extra["answer"]) is not None for record in records)
