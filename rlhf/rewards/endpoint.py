"""A language model as a judge: asks any OpenAI-compatible endpoint which of two completions is better.

Such a judge compares completions and does not score them, so it is for evaluation and cannot be a reward to train on.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import httpx2

from rlhf import progress
from rlhf.config.checks import endpoint_problem
from rlhf.config.project import RewardConfig
from rlhf.data.records import Message, Text
from rlhf.errors import UserError
from rlhf.rewards.http import client_of, complaint, final_refusal, key_of, may_recover, on_a_line
from rlhf.rewards.judge_cache import JudgeCache, request_key
from rlhf.rewards.pairwise import CRITERIA, REMINDER, Verdict, preference, question, read_verdict, writable
from rlhf.rewards.retry import retry_delay
from rlhf.rewards.text import completion_text

MAX_TOKENS = 1024  # of an answer, unless the project says otherwise; leaves room for a model that thinks first
_ASKED_AT_MOST = 2  # once, and once more with a reminder of the format
_LAST_WORDS = 80  # characters shown of an answer without a verdict


class JudgeReport(TypedDict):
    """What a judge has done so far, how far it can be trusted, and what it cost."""

    endpoint: str
    model: str
    pairs: int
    """Pairs given to `prefer`."""
    identical: int
    """Of these, pairs of equal completions, which are ties without asking."""
    unjudged: int
    """Pairs without a readable answer in at least one order."""
    both_orders: int
    """Pairs with a readable answer in both orders."""
    disagree: int
    """Of these, pairs whose two orders disagree."""
    first_shown: int
    """Of these in turn, pairs in which the completion shown first won both times."""
    position_bias: float | None
    """disagree / both_orders; null if no pair was asked."""
    questions: int
    """Distinct questions, two per pair."""
    cached: int
    """Questions answered from the file."""
    failed: int
    """Questions to which the endpoint gave no answer."""
    unreadable: int
    """Questions whose answers held no verdict."""
    requests: int
    """HTTP requests sent, retries included."""
    prompt_tokens: int
    """Tokens read, as counted by the endpoint; answers from the file cost none."""
    completion_tokens: int
    """Tokens written."""


class _Answer(NamedTuple):
    """What the model answered."""

    text: str
    cut: bool
    """Whether the token limit cut it off."""
    prompt_tokens: int
    completion_tokens: int


class _Failure(NamedTuple):
    """Why there is no answer."""

    cause: str
    again: bool
    """Whether another try may help."""
    retry_after: str | None = None


class EndpointJudge:
    """Asks a model behind an OpenAI-compatible endpoint which of two completions is better, each pair in both orders.

    The temperature is 0. Retries with growing delays on 408, 429, 5xx, a lost connection, or an answer that is not a
    chat completion. If an answer has no verdict, the question is asked once more with a reminder. Answers with a
    verdict are kept in `folder/answers.jsonl`; failed questions are not, so the next run asks them again.

    The key comes from the environment and goes into one header, nowhere else. Over plain http it is only sent to this
    machine, private addresses and names without a dot. Redirects are not followed. A proxy set in the environment is
    used for https, where it cannot see the key, and bypassed for http.

    Args:
        endpoint: Base URL, up to and without `/chat/completions`.
        model: Name of the model, as the server knows it.
        folder: Where answers are kept.
        criteria: What better means.
        api_key_env: Name of the environment variable that holds the key; None if the server wants none.
        name: Name of the judge in the project, for messages.
        max_tokens: Longest answer. An answer that is cut off has no verdict.
        timeout: Seconds without a byte from the server after which a try has failed.
        retries: Tries after the first.
        backoff: Approximate seconds before the first retry; doubles with each one.
        workers: Most requests at a time.
        max_failures: Questions in a row without an answer after which the judge gives up.

    Raises:
        UserError: The endpoint is not a base URL, or the key is missing or would be sent in the clear.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        folder: Path,
        criteria: str = CRITERIA,
        api_key_env: str | None = None,
        *,
        name: str = "judge",
        max_tokens: int = MAX_TOKENS,
        timeout: float = 120.0,
        retries: int = 4,
        backoff: float = 1.0,
        workers: int = 8,
        max_failures: int = 8,
    ) -> None:
        self.endpoint, self.model, self.criteria, self.name = endpoint.rstrip("/"), model, criteria, name
        if problem := endpoint_problem(endpoint, with_key=api_key_env is not None):
            raise UserError(f"rewards.{name}: endpoint: {problem}")
        self.max_tokens, self.timeout, self.retries, self.backoff = max_tokens, timeout, retries, backoff
        self.workers, self.max_failures = workers, max_failures
        self.cache = JudgeCache(folder)
        self._key = None if api_key_env is None else key_of(api_key_env, f"rewards.{name}.api_key_env")
        self.counts: Counter[str] = Counter()
        """What `report` says, as far as it is counted."""
        self._work: str | None = None
        self._failed_in_row, self._works = 0, False
        self._unreadable: _Answer | None = None  # the last one
        self._lock, self._stop = threading.Lock(), threading.Event()

    def prefer(
        self, prompts: Sequence[Text], first: Sequence[Text], second: Sequence[Text], *, work: str | None = None
    ) -> list[float | None]:
        """Which of two completions is better, for each pair.

        Args:
            prompts: N prompts, text or messages.
            first: N completions, text or messages.
            second: N completions to compare with the first.
            work: Names this call, so that after an interruption the same call counts what it has asked before as asked,
                and not as answered from the file.

        Returns:
            N preferences for `first`: 1, 0.5 or 0, by `preference`; None if there is no readable answer in one of the
            orders. Equal completions are 0.5 without asking.

        Raises:
            UserError: The endpoint rejects the key, the model or the address, or does not answer.
        """
        pairs = [self._both_orders(*pair) for pair in zip(prompts, first, second, strict=True)]
        asked = {request_key(self.endpoint, request): request for pair in pairs if pair is not None for request in pair}
        self._work = work
        verdicts = self._verdicts(asked)
        return [self._preference(pair, verdicts) for pair in pairs]

    def check(self) -> None:
        """Ask about one pair, to learn early that a judge gives no verdicts.

        Raises:
            UserError: It does not answer, or not with a verdict.
        """
        if self.prefer(["Say hello."], ["Hello!"], ["Goodbye."]) == [None]:
            answer = self._unreadable
            why = f"an answer ends {on_a_line(answer.text, self._key)[-_LAST_WORDS:]!r}" if answer else "none came"
            if answer and answer.cut:
                why = f"an answer was cut at max_tokens, {self.max_tokens}; raise max_tokens"
            raise self._error(f"no readable verdict: {why}")

    def report(self) -> JudgeReport:
        """What was asked so far, how often the two orders disagreed, and the tokens spent."""
        counts = dict.fromkeys(JudgeReport.__annotations__, 0) | self.counts
        bias = counts["disagree"] / counts["both_orders"] if counts["both_orders"] else None
        return cast("JudgeReport", {**counts, "endpoint": self.endpoint, "model": self.model, "position_bias": bias})

    def _preference(
        self, pair: tuple[dict[str, Any], ...] | None, verdicts: Mapping[str, Verdict | None]
    ) -> float | None:
        self._count(pairs=1, identical=pair is None)
        if pair is None:
            return 0.5
        forward, backward = (verdicts[request_key(self.endpoint, request)] for request in pair)
        result = preference(forward, backward)
        self._count(unjudged=result is None, both_orders=result is not None)
        if result is not None:
            agree = result != 0.5 or forward == backward == "TIE"
            self._count(disagree=not agree, first_shown=forward == backward == "A")
        return result

    def _request(self, prompt: Text, first: Text, second: Text) -> dict[str, Any]:
        messages = question(prompt, first, second, self.criteria)
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}

    def _both_orders(self, prompt: Text, first: Text, second: Text) -> tuple[dict[str, Any], dict[str, Any]] | None:
        if completion_text(first) == completion_text(second):
            return None
        return self._request(prompt, first, second), self._request(prompt, second, first)

    def _verdicts(self, asked: Mapping[str, dict[str, Any]]) -> dict[str, Verdict | None]:
        """Verdicts by request key, from the cache where it has them."""
        verdicts = {key: read_verdict(self.cache.get(key) or "") for key in asked}
        missing = [key for key, verdict in verdicts.items() if verdict is None]
        again = [spent for key in asked if verdicts[key] is not None and (spent := self.cache.spent(key, self._work))]
        for spent in again:
            self._count(**spent)
        self._count(questions=len(asked), cached=len(asked) - len(missing) - len(again))
        self._works |= len(missing) < len(asked)
        if not missing:
            return verdicts
        self._failed_in_row = 0
        self._stop.clear()
        patience = min(self.max_failures, len(missing))
        with (
            client_of(self.endpoint, self._key, self.timeout) as client,
            ThreadPoolExecutor(self.workers) as pool,
            progress.bar(self.name, len(missing), "questions") as bar,
        ):
            try:
                answers = pool.map(lambda key: self._ask(client, key, asked[key], patience), missing)
                for key, verdict in zip(missing, answers, strict=True):
                    verdicts[key] = verdict
                    bar.update()
            except BaseException:
                self._stop.set()  # threads that wait for a retry give up
                pool.shutdown(cancel_futures=True)
                raise
        return verdicts

    def _ask(self, client: httpx2.Client, key: str, request: dict[str, Any], patience: int) -> Verdict | None:
        """Ask until there is a verdict, at most twice, and cache the answer that has it."""
        spent: Counter[str] = Counter()
        try:
            return self._ask_twice(client, key, request, patience, spent)
        finally:
            self._count(**spent)

    def _ask_twice(
        self, client: httpx2.Client, key: str, request: dict[str, Any], patience: int, spent: Counter[str]
    ) -> Verdict | None:
        exchange: list[Message] = []
        for _ in range(_ASKED_AT_MOST):
            answer = self._complete(client, {**request, "messages": request["messages"] + exchange}, patience, spent)
            if answer is None:
                return None
            verdict = None if answer.cut else read_verdict(answer.text)
            if verdict is not None:
                self.cache.add(key, self.model, answer.text, spent, self._work)
                return verdict
            exchange = [{"role": "assistant", "content": answer.text or "-"}, {"role": "user", "content": REMINDER}]
            self._unreadable = answer
        self._count(unreadable=1)
        return None

    def _complete(
        self, client: httpx2.Client, request: dict[str, Any], patience: int, spent: Counter[str]
    ) -> _Answer | None:
        """The model's answer, after as many tries as it takes; None if there is none.

        Raises:
            UserError: The request is rejected for good, or too many questions in a row had no answer.
        """
        for attempt in itertools.count():
            if self._stop.is_set():
                break
            spent["requests"] += 1
            result = self._try(client, request)
            if isinstance(result, _Answer):
                spent.update(prompt_tokens=result.prompt_tokens, completion_tokens=result.completion_tokens)
                with self._lock:
                    self._failed_in_row, self._works = 0, True
                return result
            if not result.again or attempt == self.retries:
                self._give_up(result, patience)
                break
            self._stop.wait(retry_delay(attempt, self.backoff, result.retry_after))
        return None

    def _give_up(self, failure: _Failure, patience: int) -> None:
        """Count a question without an answer, and stop after too many in a row."""
        self._count(failed=1)
        with self._lock:
            if self._works and not failure.again:
                return  # the endpoint works, so it is this question's fault: too long, for example
            self._failed_in_row += 1
            tired = self._failed_in_row >= patience
        if tired:
            raise self._error(f"{patience} questions in a row without an answer: {failure.cause}")

    def _try(self, client: httpx2.Client, request: dict[str, Any]) -> _Answer | _Failure:
        try:
            response = client.post(f"{self.endpoint}/chat/completions", json=request)
        except httpx2.TimeoutException as error:
            return _Failure(f"no answer in time ({type(error).__name__}, {self.timeout:g} s)", again=True)
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            return _Failure(f"{type(error).__name__}: {error}", again=isinstance(error, httpx2.RequestError))
        status = response.status_code
        if (problem := final_refusal(response, self._key)) is not None:
            raise self._error(problem)
        if status != 200:
            return _Failure(
                f"{status}: {complaint(response, self._key)}", may_recover(status), response.headers.get("Retry-After")
            )
        try:
            return _answer(response.json())
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return _Failure(f"an answer that is no chat completion: {complaint(response, self._key)}", again=True)

    def _error(self, what: str) -> UserError:
        self._stop.set()
        return UserError(f"rewards.{self.name}: {self.endpoint}, model {self.model!r}: {' '.join(what.split())}")

    def _count(self, **more: int) -> None:
        with self._lock:
            self.counts.update(more)


def _answer(body: Any) -> _Answer:
    """The content of a chat completion; a missing text counts as empty, missing counts as 0."""
    choice, usage = body["choices"][0], body.get("usage") or {}
    spent = (usage.get(key) or 0 for key in ("prompt_tokens", "completion_tokens"))
    text = writable(choice["message"].get("content") or "")
    return _Answer(text, choice.get("finish_reason") == "length", *map(int, spent))


def load_judge(name: str, reward: RewardConfig, folder: Path) -> EndpointJudge:
    """The judge that a project describes under `rewards:`.

    Args:
        name: Its name there.
        reward: Its settings.
        folder: Where its answers are kept.

    Raises:
        UserError: It has no endpoint or no model, or the variable of its key is not set.
    """
    if reward.endpoint is None or reward.judge_model is None:
        raise UserError(f"rewards.{name}: a judge that compares needs endpoint and judge_model")
    criteria, key, longest = reward.criteria or CRITERIA, reward.api_key_env, reward.max_tokens or MAX_TOKENS
    return EndpointJudge(reward.endpoint, reward.judge_model, folder, criteria, key, name=name, max_tokens=longest)
