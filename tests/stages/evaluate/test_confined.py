"""Task folders of a stranger: data run, code does not, unless it is said to be trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.task_code import code_in
from restorelcc.stages.evaluate.confined import sandboxed, without_code
from restorelcc.stages.evaluate.tasks import Asked, load_tasks
from restorelcc.stages.inputs import Named
from restorelcc.stages.inputs.stage import lay_out
from tests.stages.evaluate.own_tasks import write_task

REACHES = (
    "{{ cycler.__init__.__globals__.os.system('touch RAN') }}",
    "{{ self.__init__.__globals__.__builtins__.open('RAN', 'w') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ question.__class__ }}",
    "{{ choices.append('x') }}",
    "{{ lipsum.__globals__['os'].popen('touch RAN').read() }}",
    "{{ '{0.__class__}'.format(question) }}",
)


@pytest.mark.parametrize("template", REACHES)
@pytest.mark.parametrize("trusted", [False, True])
def test_a_template_reaches_nothing(
    template: str, trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path / "tasks", "choice", doc_to_text=template)
    with pytest.raises(BadInput, match="cannot be set up"):
        load_tasks([Asked(str(tmp_path / "tasks"), trusted=trusted)])
    assert not (tmp_path / "RAN").exists()


def test_the_sandbox_ends_with_the_evaluation() -> None:
    from lm_eval import utils

    before = utils.env
    with sandboxed():
        assert utils.env is not before and utils.apply_template("{{ a | regex_replace('b', 'c') }}", {"a": "b"}) == "c"
        with sandboxed():
            assert utils.apply_template("{{ a }}\n", {"a": 1}) == "1\n"
    assert utils.env is before


CALLS = {
    "function": "doc_to_text: !function evil.f\n",
    "function, verbatim": "doc_to_text: !<!function> evil.f\n",
    "function, spelled otherwise": "doc_to_text: !%66unction evil.f\n",
    "function by a handle": "%TAG !e! !fun\n---\ndoc_to_text: !e!ction evil.f\n",
    "python": "doc_to_text: !!python/object/apply:os.system ['touch RAN']\n",
    "class": "class: !function evil.C\n",
    "class by name": "class: evil.C\n",
    "metric of the hub": "metric_list: [{metric: exact_match, hf_evaluate: true}]\n",
    "metric by its path": "metric_list: [{metric: ./evil}]\n",
    "prompt": "use_prompt: 'promptsource:*'\n",
    "data set with code": "dataset_kwargs: {trust_remote_code: true}\n",
    "included": "include: ../more.yaml\n",
}


@pytest.mark.parametrize("what", CALLS)
def test_task_files_that_run_code_are_refused_before_they_are_read_by_lm_eval(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tasks"
    path = write_task(folder, "choice")
    own = yaml.safe_load(path.read_text())
    rest = yaml.safe_dump({key: value for key, value in own.items() if f"{key}:" not in CALLS[what]})
    head, dashes, body = CALLS[what].partition("---\n") if "---" in CALLS[what] else ("", "", CALLS[what])
    path.write_text(head + dashes + body + rest)
    (tmp_path / "more.yaml").write_text("process_docs: !function evil.f\n")
    found = code_in(folder)
    assert found and ("choice.yaml" in found or "more.yaml" in found)
    for given in (str(folder), str(path)):
        with pytest.raises(BadInput, match=r"runs as you .* trusted: true"):
            load_tasks([given])
    named = Named(entry=ModelEntry(source="microworld", tasks=(str(folder),)))
    with pytest.raises(BadInput, match=r"models\.mine\.tasks: .* trusted: true"):
        lay_out("mine", named, tmp_path)
    assert not (tmp_path / "RAN").exists()


def test_a_program_in_the_folder_needs_trust(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    path = write_task(folder, "choice")
    (folder / "sub").mkdir()
    (folder / "sub" / "asked.py").write_text("def text(doc):\n    return doc['question']\n")
    with pytest.raises(BadInput, match=r"asked\.py is a program"):
        load_tasks([str(folder)])
    path.write_text(path.read_text().replace("doc_to_text: question", "doc_to_text: !function sub.asked.text"))
    assert set(load_tasks([Asked(str(folder), trusted=True)])["tasks"]) == {"choice"}
    entry = ModelEntry(source="microworld", tasks=({"name": str(folder), "trusted": True},))  # type: ignore[arg-type]
    assert entry.tasks_document == [{"name": str(folder), "trusted": True}]
    lay_out("mine", Named(entry=entry), tmp_path)


def test_a_task_of_the_corpus_is_data(tmp_path: Path) -> None:
    """It comes with data/corpus, which may have come from a team's remote."""
    task = {"task": "x", "metric_list": [{"metric": "acc", "hf_evaluate": True}]}
    with pytest.raises(BadInput, match=r"of the corpus has hf_evaluate: True, which is never run"):
        load_tasks([task])


def test_what_the_look_at_the_text_would_miss_is_refused_where_it_would_run(tmp_path: Path) -> None:
    from lm_eval.tasks import _yaml_loader

    (tmp_path / "a.yaml").write_text("task: a\ndoc_to_text: !function os.getcwd\n")
    with without_code("a", trusted=False), pytest.raises(BadInput, match=r"calls 'os\.getcwd'"):
        _yaml_loader.load_yaml(tmp_path / "a.yaml")
    with without_code("a", trusted=False):
        write_task(tmp_path / "tasks", "choice", metric_list=[{"metric": "no_such"}])
        with pytest.raises(BadInput, match="lm-eval has no metric 'no_such'"):
            load_tasks([str(tmp_path / "tasks")])
    with without_code("a", trusted=True):
        assert callable(_yaml_loader.load_yaml(tmp_path / "a.yaml")["doc_to_text"])


def test_a_folder_that_leads_back_into_itself_ends(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "choice")
    (tmp_path / "tasks" / "again").symlink_to(tmp_path / "tasks")
    with pytest.raises(BadInput, match="nested without end"):
        code_in(tmp_path / "tasks")
