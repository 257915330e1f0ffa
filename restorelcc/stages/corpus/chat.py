"""Conversations as the text that a model's chat template makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from restorelcc.base.errors import BadInput
from restorelcc.models.response_mask import RENDERED
from restorelcc.stages.corpus.formats import Example, Message


class Refused(BadInput):
    """A conversation that the chat template does not take. `reason`: as rows that are not used are counted."""

    def __init__(self, key: str, example: Example, error: TemplateError) -> None:
        super().__init__(f"{key}: the chat template refuses {example.question[:60]!r}: {error}")
        self.reason = f"refused by the chat template: {' '.join(str(error).split())[:80]}"


def rendered(tokenizer: PreTrainedTokenizerBase, found: Iterable[Example], key: str) -> list[Example]:
    """Examples whose question is the conversation up to where the assistant begins, and whose response is what the
    template writes for the answer, its end mark included.

    Raises BadInput when the tokenizer has no chat template, and Refused when the template refuses a conversation.
    """
    if not tokenizer.chat_template:
        raise BadInput(
            f"{key}: the model's tokenizer has no chat template, which conversations and data.chat_template need: use "
            "a chat model, or data of another format"
        )
    return [_rendered(tokenizer, example, key) for example in found]


def asked(tokenizer: PreTrainedTokenizerBase, example: Example, key: str) -> str:
    """The conversation up to where the assistant begins. Raises Refused when the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(_before(example), tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise Refused(key, example, error) from error


def _before(example: Example) -> list[Message]:
    return list(example.messages) or [{"role": "user", "content": example.question}]


def _rendered(tokenizer: PreTrainedTokenizerBase, example: Example, key: str) -> Example:
    before, question = _before(example), asked(tokenizer, example, key)
    try:
        response = _answer(tokenizer, before, question, example.response)
        wrong = tuple(_answer(tokenizer, before, question, other) for other in example.wrong)
    except TemplateError as error:
        raise Refused(key, example, error) from error
    return replace(example, question=RENDERED + question, response=response, wrong=wrong)


def _answer(tokenizer: PreTrainedTokenizerBase, before: list[Message], question: str, answer: str) -> str:
    """What the template writes after `question` for an answer. Some templates open the answer with more than the
    generation prompt holds; then the answer starts where the two texts part."""
    spoken = [*before, {"role": "assistant", "content": answer}]
    whole = str(tokenizer.apply_chat_template(spoken, tokenize=False))
    if not whole.startswith(question):
        raise BadInput(
            f"the chat template writes {whole[:80]!r} for a conversation that it begins with {question[:80]!r}: it "
            "does not keep what was said before, so that a response cannot be told from its question"
        )
    return whole[len(question) :].rstrip()
