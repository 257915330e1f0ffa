"""What tells two tokenizers apart, and what does not."""

from pathlib import Path

from transformers import AutoTokenizer

from restorelcc.stages.evaluate.measured import tokenizer_digest
from restorelcc.stages.evaluate.scoring import _installed
from tests import pico
from tests.stages.evaluate.own_tasks import words


def test_a_tokenizer_that_is_loaded_and_saved_again_is_the_same(tmp_path: Path) -> None:
    tokenizer, texts = pico.word_tokenizer(), [words(5, n) for n in range(3)]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_digest(again, texts) == tokenizer_digest(tokenizer, texts)
    again.add_tokens(["w99"])
    assert tokenizer_digest(again, texts) != tokenizer_digest(tokenizer, texts)
    assert tokenizer_digest(pico.word_tokenizer(50), texts) != tokenizer_digest(tokenizer, texts)


def test_packages_of_another_environment_are_no_code_of_a_task() -> None:
    """Taken for it, all of lm-eval and what it imports was read to make the digest of a task, for minutes."""
    assert _installed(Path("/usr/lib/python3/dist-packages/lm_eval/api/task.py"))
    assert _installed(Path("/somewhere/site-packages/lm_eval/api/task.py"))
    assert not _installed(Path("/somewhere/my_tasks/task.py"))
