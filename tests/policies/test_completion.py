from rlhf.data.records import as_completion
from rlhf.policies.completion import Completion, decode, decoded


def test_special_tokens_are_no_text(tiny_tokenizer):
    ids = tiny_tokenizer("Hello Ada")["input_ids"]
    end = tiny_tokenizer.eos_token_id
    assert decode([*ids, end], tiny_tokenizer) == "Hello Ada"
    completions = [[Completion([*ids, end], True, [0.0], [1.0])], [Completion([end], True), Completion(ids, False)]]
    texts = decoded(completions, tiny_tokenizer)
    assert [[completion.text for completion in row] for row in texts] == [["Hello Ada"], ["", "Hello Ada"]]
    assert (texts[0][0].ids, texts[0][0].log_probs, texts[0][0].entropies) == ([*ids, end], [0.0], [1.0])


def test_a_completion_has_the_form_of_its_prompt():
    assert as_completion("Once", " upon a time ") == " upon a time "
    assert as_completion([{"role": "user", "content": "Hi"}], " Hello. ") == [
        {"role": "assistant", "content": "Hello."}
    ]
