import pytest

from rlhf.errors import Defect, UserError
from rlhf.failure import explained
from rlhf.rewards.http import key_of
from rlhf.secrets import holds_secret, masked

VALUE = "canary-8f3a91c2"


@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "aws_secret", "DB_PASSWORD"])
def test_values_of_variables_named_as_secrets_are_left_out(monkeypatch, name):
    monkeypatch.setenv(name, f" {VALUE}\n")
    assert masked(f"Bearer {VALUE}: refused, {VALUE}2") == "Bearer …: refused, …2"
    assert holds_secret(f"x{VALUE}")


@pytest.mark.parametrize(("name", "value"), [("KEY", "1"), ("SSH_KEY", "/home/ada/.ssh/id"), ("CANARY", VALUE)])
def test_other_values_stay(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    text = f"1 row of /home/ada/.ssh/id, {VALUE}"
    assert masked(text) == text
    assert not holds_secret(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ada:lovelace@example.org/v1?a=b", "https://…@example.org/v1?a=b"),
        ("http://token@proxy:3128", "http://…@proxy:3128"),
        ("https://ada:p@ss@example.org", "https://…@example.org"),
        ("no such folder: https:/ada:lovelace@example.org/v1", "no such folder: https:/…@example.org/v1"),
        ("https://example.org/@ada", "https://example.org/@ada"),
        ("mail ada@example.org", "mail ada@example.org"),
        ("hf_" + "a1" * 15 + ", sk-" + "b2" * 15, "…, …"),
    ],
)
def test_logins_in_urls_and_tokens_known_by_their_form(text, shown):
    assert masked(text) == shown


def test_one_secret_within_another_leaves_nothing_of_the_longer(monkeypatch):
    monkeypatch.setenv("A_TOKEN", VALUE)
    monkeypatch.setenv("B_TOKEN", f"{VALUE}-longer")
    assert masked(f"{VALUE}-longer {VALUE}") == "… …"


def test_the_key_of_a_judge_is_one_whatever_its_variable_is_called(monkeypatch):
    monkeypatch.setattr("rlhf.secrets._told", set())
    monkeypatch.setenv("JUDGE", VALUE)
    assert masked(VALUE) == VALUE
    assert key_of("JUDGE", "here") == VALUE
    assert masked(VALUE) == "…"


def test_errors_and_tracebacks_hold_none(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", VALUE)
    for kind in (UserError, Defect):
        assert VALUE not in str(kind(f"401 for {VALUE}"))
    with pytest.raises(UserError) as caught, explained("demo.yaml: stages.dpo", folder=tmp_path):
        exec(f"raise ValueError('Authorization: Bearer {VALUE}')", {"__name__": "library"})
    assert VALUE not in str(caught.value)
    (trace,) = tmp_path.glob("*-traceback.txt")
    assert "Authorization: Bearer …" in trace.read_text()
