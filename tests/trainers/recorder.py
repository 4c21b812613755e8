"""A reward for each turn of the policy, which writes what the server was sent to a file."""

import json
from dataclasses import asdict
from pathlib import Path


def turns(sample):
    seen = {
        "completion": [asdict(one) for one in sample.completion]
        if isinstance(sample.completion, tuple)
        else sample.completion,
        "tools": list(sample.tools),
        "group": sample.group,
        "group_size": sample.group_size,
        "finish_reason": sample.finish_reason,
        "num_offsets": None if sample.token_offsets is None else len(sample.token_offsets),
    }
    with (Path(__file__).parent / "seen.jsonl").open("a") as file:
        file.write(json.dumps(seen, default=str) + "\n")
    return [(span.start, span.end, 1.0) for span in sample.turns]
