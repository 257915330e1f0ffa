"""Tables of a corpus folder."""

import pyarrow as pa

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
