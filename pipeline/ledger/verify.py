"""`megawatch verify`: statements that somebody was given, checked without a store."""

import json
import sys
from collections.abc import Sequence

import msgspec

from pipeline.ledger import chain


def verify(files: Sequence[tuple[str, bytes]], keys: Sequence[bytes], as_json: bool) -> int:
    """Say of each statement (name and content) whether chain and signature hold; 1 if one does not.

    `keys` are PEM files of public keys that are trusted. Raises Refuse for what is no statement.
    """
    documents = [chain.read_document(content, name) for name, content in files]
    findings = chain.verify(documents, keys)
    if any(name.endswith((".html", ".htm")) for name, _ in files):
        print("the seal is of the figures inside, not of the page around them", file=sys.stderr)
    for found in findings:
        print(f"{files[found.file][0]}: {'ok' if found.ok else 'BAD'}: {found.sentence}")
    if as_json:
        print(json.dumps(msgspec.to_builtins(findings)))
    return 0 if all(found.ok for found in findings) else 1
