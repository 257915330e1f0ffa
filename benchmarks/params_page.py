"""Write docs/params.md and docs/params.schema.json: every key of params.yaml, told by the classes that check it.

python -m benchmarks.params_page
"""

from __future__ import annotations

from pathlib import Path

from restorelcc.pipeline.reference import page, schema_text

DOCS = Path(__file__).parents[1] / "docs"
FILES = {DOCS / "params.md": page, DOCS / "params.schema.json": schema_text}

if __name__ == "__main__":
    for file, content in FILES.items():
        file.write_text(content(), encoding="utf-8")
