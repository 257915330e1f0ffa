"""Tables of a corpus folder, and what its sources.json calls things."""

import pyarrow as pa

CHAT_TEMPLATE = "chat_template"  # in sources.json: whose chat template is in the texts
TOKENIZER = "tokenizer"  # in sources.json: what counted the tokens of rows, and how many were allowed
CONTRAST = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("task", pa.string()),
        ("question", pa.string()),
        ("positive", pa.string()),
        ("negative", pa.string()),
    ]
)
EXAMPLES = pa.schema([("task", pa.string()), ("question", pa.string()), ("response", pa.string())])
ITEMS = pa.schema(
    [("item_id", pa.int64()), ("question", pa.string()), ("choices", pa.list_(pa.string())), ("gold", pa.int64())]
)
