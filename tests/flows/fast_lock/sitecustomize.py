"""dvc.lock by libyaml, in every process of a light project: DVC's own parser in Python takes 0.5 s for every stage.

Imported by Python itself where this folder is on PYTHONPATH. Nothing but that differs, and that a
process parses no text twice. tests/flows/in_process.py has the same in the test's own process.

$LIGHT_PYTHON is the Python that such a process starts others with: LightProject.forks says what it does.
"""

import copy
import importlib.util
import json
import os
import re
import sys

_NAME = "dvc.utils.serialize._yaml"
# What is a number to YAML 1.2, which DVC reads, and text to 1.1, which libyaml writes.
_NUMBER = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
_KNOWN = {}  # texts that were parsed: dvc.yaml and params.yaml are read again and again
_LOCKS = {}  # each dvc.lock that was parsed or written, as JSON, which is read in a hundredth of the time


class _Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != _NAME:
            return None
        sys.meta_path.remove(_Finder)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            patch_yaml(module)

        spec.loader.exec_module = exec_module
        return spec


def patch_yaml(module):
    import yaml

    class Loader(yaml.CSafeLoader):
        pass

    class Dumper(yaml.CSafeDumper):
        def ignore_aliases(self, data):
            return True

    def text(dumper, value):
        style = '"' if _NUMBER.fullmatch(value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(rf"^(?:{_NUMBER.pattern})$"), list("-+0123456789")
    )
    Dumper.add_representer(str, text)
    Dumper.add_multi_representer(dict, lambda dumper, value: dumper.represent_dict(value.items()))
    parse, dump = module.parse_yaml, module._dump

    def parse_yaml(content, path, typ="safe"):
        if content.startswith("schema:"):
            if content not in _LOCKS:
                _LOCKS[content] = json.dumps(yaml.load(content, Loader))
            return json.loads(_LOCKS[content])
        if typ != "safe":
            return parse(content, path, typ)
        if content not in _KNOWN:
            _KNOWN[content] = parse(content, path, typ)
        return copy.deepcopy(_KNOWN[content])

    def parse_yaml_for_update(content, path):
        return parse_yaml(content, path, typ="rt")

    def _dump(data, stream):
        if "schema" not in data or "stages" not in data:
            return dump(data, stream)
        content = yaml.dump(data, None, Dumper, sort_keys=False, allow_unicode=True, width=10_000)
        _LOCKS[content] = json.dumps(data)
        return stream.write(content)

    module.parse_yaml, module.parse_yaml_for_update, module._dump = parse_yaml, parse_yaml_for_update, _dump


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Finder)
    sys.executable = os.environ.get("LIGHT_PYTHON", sys.executable)
