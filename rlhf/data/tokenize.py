"""Records to token ids: one definition of template, masks, EOS and limits for every stage and for generation.

Prompt and completion are tokenised together, as the model will see them, and the completion starts where the sequence
departs from that of the prompt alone (as in TRL). The EOS is appended to token ids, not to text, and only once. An
encoder reads plain prompt and completion as the two segments of a pair, as it was pretrained to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rlhf.data.prefix import common_prefix_length
from rlhf.data.records import (
    Demonstration,
    Encoded,
    Image,
    Labelled,
    Message,
    Preference,
    Record,
    Spanned,
    Text,
    Unusable,
)
from rlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token without loss (PyTorch's `ignore_index`)."""

PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '\\n\\nHuman: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '\\n\\nAssistant:' }}{% generation %}{{ ' ' + message['content'] + (eos_token or '') }}{% endgeneration %}"
    "{% else %}{{ raise_exception('its roles are system, user and assistant, not ' + message['role']) }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
"""Chat template for a tokenizer that has none: the transcript layout of HH, EOS after each reply."""


class Codec:
    """Turns records into the columns a trainer reads.

    Args:
        tokenizer: With a chat template, an EOS token (unless `encoder`) and a pad token that is not EOS.
        max_length: Most tokens in a sequence; None for no limit.
        keep: Which end of an over-long sequence is kept, `keep_start` or `keep_end` (TRL's names).
        encoder: Whether this is a BERT-type tokenizer, which frames a text with special tokens and needs no EOS.
        eos: Whether to append EOS to a conversation whose template ends turns with something else (`<end_of_turn>`).
            Not for a reward model from elsewhere, which learned to score what its template gives.
        segments: Whether an encoder reads plain prompt and completion as two segments, `[CLS] prompt [SEP] completion
            [SEP]`, where its tokenizer has such a frame. Not for a classifier, which learned from single texts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        keep: str = "keep_start",
        encoder: bool = False,
        eos: bool = True,
        segments: bool = True,
    ) -> None:
        if not encoder and tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no EOS token, so no reply could end: name one with model.eos_token")
        if keep not in ("keep_start", "keep_end"):
            raise UserError(f"truncation_mode: expected keep_start or keep_end, not {keep!r}")
        self.tokenizer, self.max_length, self.keep, self.encoder = tokenizer, max_length, keep, encoder
        self._template_ends = not eos and self._ends_by_template()
        self._segments = encoder and segments and _frames_pairs(tokenizer)
        self._last_prompt: tuple[Text, list[int]] = ("", [])
        self._ready: dict[str, list[int]] = {}

    def prompt(self, prompt: Text) -> list[int]:
        """Token ids of a prompt, up to where the completion is to start."""
        return self._ids(prompt, generation_prompt=True)

    def ending(self, prompt: Text) -> list[int]:
        """The token ids that follow the text of a final completion to a prompt of this kind, EOS included.

        A template may end a turn with a token of its own, a line break, or both; it is what two different completions
        have in common at their end.
        """
        eos = [int(self.tokenizer.eos_token_id)]
        if isinstance(prompt, str):
            return eos
        question = [{"role": "user", "content": "x"}]
        yes, no = (self.sequence(question, [{"role": "assistant", "content": text}])[0] for text in ("yes", "no"))
        shared = common_prefix_length(yes[::-1], no[::-1])
        return yes[len(yes) - shared :] if shared < len(yes) else eos

    def sequence(self, prompt: Text, completion: Text) -> tuple[list[int], int]:
        """Token ids of prompt and completion, and the index at which the completion starts."""
        full = self._whole(prompt, completion)
        if self.encoder or not prompt:
            return full, 0
        if self._last_prompt[0] is not prompt:  # both sides of a pair share it
            self._last_prompt = (prompt, self.prompt(prompt))
        return full, common_prefix_length(self._last_prompt[1], full)

    def ahead(self, records: Iterable[Record], prompts: bool = True) -> None:
        """Tokenise in one call most of what encoding these records will need; it does not change any result.

        A second thread can do this while the first reads on, since the tokenizer releases the interpreter lock.
        Whatever an earlier call tokenised is forgotten.

        Args:
            records: Conversational preferences and demonstrations; for other records nothing is done ahead.
            prompts: Whether prompts will be needed on their own; `scored_pair` does not need them.
        """
        texts = {} if self.encoder else {text: None for record in records for text in self._needed(record, prompts)}
        if texts:
            ids = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
            self._ready = dict(zip(texts, ids, strict=True))

    def demonstration(self, record: Demonstration | Labelled | Spanned) -> Encoded:
        """`input_ids` and `labels`, with loss on the assistant's turns only, each including its end token.

        Raises:
            Unusable: There is no token to learn from, or none is left within the limit.
            UserError: It is a labelled text or a question about a text, which are for encoders.
        """
        if isinstance(record, Labelled):
            raise UserError(f"{record.origin}: `text` and `label` train an encoder; to imitate the text: format: text")
        if isinstance(record, Spanned):
            raise UserError(f"{record.origin}: a question about a text and the place of its answer train an encoder")
        ids, start = self.sequence(record.prompt, record.completion)
        labels = [IGNORED] * start + ids[start:]
        if isinstance(record.completion, list):
            self._mask_other_turns(record, ids, labels)
        if all(label == IGNORED for label in labels):
            raise Unusable("no token to learn from")
        kept, length = self._window(len(ids), start)
        labels = labels[kept]
        if all(label == IGNORED for label in labels):
            raise Unusable("nothing left to learn within max_length")
        return Encoded(
            {"input_ids": ids[kept], "labels": labels},
            truncated=length > len(labels),
            eos_lost=kept.stop < length,
            prompt_trimmed=kept.start > 0,
        )

    def pair(self, record: Preference) -> Encoded:
        """`prompt_ids`, `chosen_ids` and `rejected_ids` for DPO; the prompt ends where either side departs from it.

        With `keep_end` both sides lose the same tokens of their prompt. (TRL cuts each side separately, so that the two
        can follow different prompts.)

        Raises:
            Unusable: No room is left for the completions, or they are identical.
        """
        chosen, first = self.sequence(record.prompt, record.chosen)
        rejected, second = self.sequence(record.prompt, record.rejected)
        start = min(first, second)
        longest = max(len(chosen), len(rejected))
        limit = self.max_length if self.max_length is not None else longest
        over = max(0, longest - limit)
        cut, stop = (0, limit) if self.keep == "keep_start" else (over, longest)
        if start >= stop:
            raise Unusable("prompt longer than max_length")
        if start < cut:
            raise Unusable("reply longer than max_length")
        columns = {
            "prompt_ids": chosen[cut:start],
            "chosen_ids": chosen[start:stop],
            "rejected_ids": rejected[start:stop],
        }
        if columns["chosen_ids"] == columns["rejected_ids"]:
            raise Unusable("identical within max_length")
        return Encoded(columns, truncated=over > 0, eos_lost=stop < longest, prompt_trimmed=cut > 0)

    def scored_pair(self, record: Preference) -> Encoded:
        """`chosen_ids` and `rejected_ids`: whole sequences, as a reward model reads them.

        Raises:
            Unusable: A side exceeds the limit. Truncated, it would be scored at a token that does not end it.
        """
        sides = [self._whole(record.prompt, side) for side in (record.chosen, record.rejected)]
        if self.max_length is not None and max(map(len, sides)) > self.max_length:
            raise Unusable("longer than max_length")
        if sides[0] == sides[1]:
            raise Unusable("identical as tokens")
        return Encoded({"chosen_ids": sides[0], "rejected_ids": sides[1]})

    def labelled(self, record: Labelled | Demonstration | Spanned) -> Encoded:
        """`input_ids` of a text and the names of its classes in `classes`, for a sequence classifier.

        Raises:
            UserError: It is another kind of record, or an image.
        """
        if not isinstance(record, Labelled):
            if "label" in record.extra:
                label = f"here it is {str(record.extra['label'])[:40]!r}"
                raise UserError(
                    f"{record.origin}: a classifier takes the name or number of a class in `label`; {label}"
                )
            what = "a question about a text" if isinstance(record, Spanned) else "a reply"
            other = next(iter(record.extra), None)
            hint = "" if other is None else f" (if {other!r} is the class: columns: {{label: {other}}})"
            raise UserError(
                f"{record.origin}: a classifier of texts learns from `text` and `label`, not from {what}{hint}"
            )
        if isinstance(record.text, Image):
            raise UserError(f"{record.origin}: this is an image, and the model reads text")
        ids = self._ids(record.text)
        kept, length = self._window(len(ids), 0)
        return Encoded({"input_ids": ids[kept], "classes": list(record.labels)}, truncated=len(ids[kept]) < length)

    def _whole(self, prompt: Text, completion: Text) -> list[int]:
        """Token ids of prompt and completion, with the EOS if there is to be one."""
        if self._segments and prompt and isinstance(prompt, str):
            return list(self.tokenizer(prompt, completion)["input_ids"])
        text = prompt + completion  # type: ignore[operator]  # both text or both messages
        full = self._ids(text)
        if not self.encoder and (isinstance(text, str) or not self._template_ends):
            self._end(full)
        return full

    def _ends_by_template(self) -> bool:
        """Whether the template writes something after a completion."""
        answer = "answer"
        try:
            rendered = self._rendered([{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}])
        except Unusable:
            return False
        return bool(rendered.rpartition(answer)[2].strip())

    def _ids(self, text: Text, generation_prompt: bool = False) -> list[int]:
        if isinstance(text, str):
            return list(self.tokenizer(text)["input_ids"])
        rendered = self._rendered(text, generation_prompt)
        if self.encoder:
            return list(self.tokenizer(rendered.strip())["input_ids"])
        ready = self._ready.pop(rendered, None)
        return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"]) if ready is None else ready

    def _rendered(self, messages: list[Message], generation_prompt: bool = False) -> str:
        """A conversation as the chat template writes it; what its code raises is its way to refuse one."""
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
            )
        except (TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise Unusable(f"the chat template refuses it: {error}") from None

    def _needed(self, record: Record, prompts: bool) -> list[str]:
        """The rendered texts that encoding a record will need; none if the template refuses them."""
        match record:
            case Preference(prompt=[*prompt], chosen=[*chosen], rejected=[*rejected]):
                completions = [chosen, rejected]
            case Demonstration(prompt=[*prompt], completion=[*completion]):
                completions = [completion]
            case _:
                return []
        try:
            alone = [self._rendered(prompt, generation_prompt=True)] if prompts else []
            return alone + [self._rendered(prompt + completion) for completion in completions]
        except Unusable:
            return []

    def _end(self, ids: list[int]) -> None:
        """End a sequence with exactly one EOS; a template may have written one, and white space after it."""
        eos = self.tokenizer.eos_token_id
        while len(ids) > 1 and ids[-1] == ids[-2] == eos:
            ids.pop()
        if eos not in ids[-3:] or str(self.tokenizer.decode(ids[_last(ids, eos) + 1 :])).strip():
            ids.append(eos)

    def _window(self, length: int, start: int) -> tuple[slice, int]:
        """The part of a sequence that is kept within the limit, and the sequence's full length."""
        limit = self.max_length
        if limit is None or length <= limit:
            return slice(0, length), length
        if self.keep == "keep_end":
            return slice(length - limit, length), length
        if start >= limit:
            raise Unusable("prompt longer than max_length")
        return slice(0, limit), length

    def _mask_other_turns(self, record: Demonstration, ids: list[int], labels: list[int]) -> None:
        """In a completion of several turns, mask those that are not the assistant's, in place.

        A turn is what rendering the conversation through it adds to rendering the conversation up to it. Some templates
        render earlier turns differently once later ones follow (they drop reasoning), so that a turn has no such place;
        then only the last turn keeps its loss.
        """
        messages = [*record.prompt, *record.completion]
        first = len(record.prompt)
        if all(message["role"] == "assistant" for message in messages[first:]):
            return
        last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
        spans = []
        for index in range(first, last + 1):
            if messages[index]["role"] != "assistant":
                continue
            before = self._ids(messages[:index], generation_prompt=True)
            through = self._ids(messages[: index + 1])
            # the end of the whole conversation may carry an EOS that no template wrote
            stop = len(ids) if index == len(messages) - 1 else len(through)
            if common_prefix_length(before, ids) == len(before) and (
                index == last or common_prefix_length(through, ids) == len(through)
            ):
                spans.append((len(before), stop))
            elif index == last:
                raise Unusable("the chat template hides where the last reply starts")
        trained = {position for begin, end in spans for position in range(begin, end)}
        for position in range(len(labels)):
            if position not in trained:
                labels[position] = IGNORED


def _frames_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether special tokens stand around and between the two texts of a pair."""
    return tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)


def _last(ids: list[int], token: int) -> int:
    return len(ids) - 1 - ids[::-1].index(token)
