"""Sealed statements: a hash chain and a signature, so that nobody needs to trust the site.

A sealed statement is a JSON object with the statement, its link in a chain, and perhaps a
signature. Each tenant has a chain of its own at each site, and so has the site (tenant "").

    canonical(statement)  RFC 8785: keys in order of their UTF-16 code units, no spaces, UTF-8,
                          numbers as ECMAScript writes them: equal by value (1 is 1.0); refused if
                          not finite, or if an integer has more digits than a double holds
    hash                  SHA-256 of these parts, each after its length in bytes as 8 bytes,
                          big-endian: "megawatch.statement.1", previous (64 hex digits), sequence
                          (decimal), tenant, made_at, canonical(statement)
    signature             Ed25519 of two parts, framed alike: "megawatch.signature.1", hash (64 hex)
    fingerprint           "sha256:" and SHA-256 of the 32 bytes of the public key, in hex

The first link has sequence 1, and 64 zeros as its previous hash.
"""

import base64
import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from types import ModuleType
from typing import Annotated, Any, Final, Literal

import msgspec

from pipeline.errors import Refuse
from pipeline.ledger.figures import Statement

FIRST: Final = 1
"""Sequence of a chain's first link."""
NOTHING: Final = "0" * 64
"""What the first link has for the hash of the one before it."""
_LARGEST: Final = (1 << 53) - 1
"""Beyond it, integers are not the same for every reader of JSON."""
_DEEPEST: Final = 32
_OPEN: Final = '<script type="application/json" id="sealed">'
_CLOSE: Final = "</script>"
_MAKE: Final = "make one with `openssl genpkey -algorithm ed25519 -out KEY`"

Hash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A statement's place in its chain."""

    tenant: str
    sequence: Annotated[int, msgspec.Meta(ge=FIRST, le=_LARGEST)]
    previous: Hash
    made_at: str
    hash: Hash
    algorithm: Literal["sha256"]

    def __str__(self) -> str:
        of = f"the chain of {_short(self.tenant)}" if self.tenant else "the site's own chain"
        return f"link {self.sequence} of {of}"


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who says so; `public_key` and `value` in base64."""

    public_key: str
    fingerprint: str
    value: str
    algorithm: Literal["ed25519"]


class _Sealed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole document; an unknown field is refused, since no hash would cover it."""

    statement: dict[str, Any]
    chain: Link
    signature: Signature | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked: the file's place among those given, from 0, and the outcome."""

    file: int
    ok: bool
    sentence: str


def canonical(statement_json: Mapping[str, Any]) -> bytes:
    """The one way to write a JSON object, as RFC 8785 has it. Raises Refuse."""
    try:
        return _canonical(statement_json, 0).encode()
    except UnicodeEncodeError as error:
        raise Refuse("the statement has text that is no Unicode (half of a surrogate)") from error


def _canonical(value: object, depth: int) -> str:
    if depth > _DEEPEST:
        raise Refuse(f"the statement is nested more than {_DEEPEST} deep")
    match value:
        case None | bool() | str():
            return json.dumps(value, ensure_ascii=False)
        case int() | float():
            return _number(value)
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise Refuse("the statement has a key that is no string")
            keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
            pairs = (
                f"{json.dumps(key, ensure_ascii=False)}:{_canonical(value[key], depth + 1)}"
                for key in keys
            )
            return "{" + ",".join(pairs) + "}"
        case list() | tuple():
            return "[" + ",".join(_canonical(item, depth + 1) for item in value) + "]"
    raise Refuse(f"the statement has a value that JSON does not know: {type(value).__name__}")


def _number(value: float) -> str:
    """A number as ECMAScript writes it: the shortest digits that read back as the same double."""
    if isinstance(value, int):
        if abs(value) >= 10**21 or (text := _number(float(value))) != str(value):
            raise Refuse("the statement has an integer too long for a double: write it as a string")
        return text
    if not math.isfinite(value):
        raise Refuse(f"the statement has the number {value}, which JSON does not know")
    if not value:
        return "0"
    sign, figures, exponent = Decimal(repr(value)).as_tuple()
    digits = "".join(map(str, figures)).rstrip("0")
    point = len(figures) + int(exponent)  # the value is 0.digits x 10^point
    if len(digits) <= point <= 21:
        text = digits.ljust(point, "0")
    elif 0 < point <= 21:
        text = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{digits}"
    else:
        text = f"{digits[0]}{'.' * (len(digits) > 1)}{digits[1:]}e{point - 1:+d}"
    return "-" * sign + text


def seal(statement: Statement, previous: str, sequence: int, made_at: str) -> dict[str, Any]:
    """A statement as a link of its chain: {"statement": ..., "chain": ...}, ready for JSON.

    `previous` is the hash of link `sequence` - 1, NOTHING before the first; `made_at` is ISO 8601.
    A statement about one tenant and nobody else belongs to that tenant's chain, any other to the
    site's. Raises Refuse for a link that cannot be.
    """
    content = msgspec.to_builtins(statement)
    names = {use.tenant for use in statement.tenants}
    tenant = (names.pop() or "") if len(names) == 1 and statement.unallocated is None else ""
    chain = {
        "tenant": tenant, "sequence": sequence, "previous": previous, "made_at": made_at,
        "hash": _hash(previous, sequence, tenant, made_at, content), "algorithm": "sha256",
    }  # fmt: skip
    document = {"statement": content, "chain": chain}
    _read(document)
    return document


def _hash(
    previous: str, sequence: int, tenant: str, made_at: str, statement: Mapping[str, Any]
) -> str:
    texts = ("megawatch.statement.1", previous, str(sequence), tenant, made_at)
    try:
        framed = _framed(*map(str.encode, texts), canonical(statement))
    except UnicodeEncodeError as error:
        raise Refuse("the chain has text that is no Unicode (half of a surrogate)") from error
    return hashlib.sha256(framed).hexdigest()


def _framed(*parts: bytes) -> bytes:
    """The parts after one another, so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _read(document: object) -> _Sealed:
    """A sealed statement of the right shape whose hash may still be wrong. Raises Refuse."""
    try:
        sealed = msgspec.convert(document, _Sealed)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        # The message quotes what stands there, which may be anything.
        why = "".join(letter if letter.isprintable() else "?" for letter in str(error)[:200])
        raise Refuse(f"this is no sealed statement: {why}") from error
    link = sealed.chain
    if (link.sequence == FIRST) != (link.previous == NOTHING):
        raise Refuse(f"{link} is wrong: 64 zeros stand before link {FIRST}, and before no other")
    return sealed


def sign(sealed: Mapping[str, Any], key_pem: bytes) -> dict[str, Any]:
    """The sealed statement with a signature by an unencrypted Ed25519 key in PEM. Raises Refuse."""
    ed25519, serialization, exceptions = _library()
    link = _whole(_read(sealed))
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except TypeError as error:
        raise Refuse("the signing key is encrypted: give one that needs no password") from error
    except (ValueError, exceptions.UnsupportedAlgorithm) as error:
        raise Refuse(f"the signing key is no private key in PEM: {_MAKE}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise Refuse(f"the signing key is a {type(key).__name__}, not an Ed25519 key: {_MAKE}")
    public = key.public_key().public_bytes_raw()
    signature = Signature(
        algorithm="ed25519",
        public_key=base64.b64encode(public).decode(),
        fingerprint=fingerprint(public),
        value=base64.b64encode(key.sign(_signed(link))).decode(),
    )
    return {**sealed, "signature": msgspec.to_builtins(signature)}


def _library() -> tuple[ModuleType, ModuleType, ModuleType]:
    try:
        from cryptography import exceptions
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise Refuse("signatures need cryptography: pip install 'megawatch[sign]'") from error
    return ed25519, serialization, exceptions


def fingerprint(public_key: bytes) -> str:
    """What people compare: of the 32 raw bytes of an Ed25519 public key."""
    return f"sha256:{hashlib.sha256(public_key).hexdigest()}"


def _signed(link: Link) -> bytes:
    return _framed(b"megawatch.signature.1", link.hash.encode())


def _whole(sealed: _Sealed) -> Link:
    """The link, if the hash covers what stands there. Raises Refuse."""
    link = sealed.chain
    found = _hash(link.previous, link.sequence, link.tenant, link.made_at, sealed.statement)
    if found != link.hash:
        raise Refuse(f"{link} was altered: its hash is {found[:12]}..., not {link.hash[:12]}...")
    return link


def verify(
    documents: Sequence[Mapping[str, Any]], public_keys: Sequence[bytes] = ()
) -> list[Finding]:
    """Check sealed statements: every hash, every signature, and how links of one chain join.

    `public_keys` are Ed25519 keys (32 raw bytes, base64, or PEM); with any, each document must be
    signed by one of them. Links of one chain are given in their order. Nothing in a document
    raises; a bad public key raises Refuse.
    """
    trusted = {_public_key(key) for key in public_keys}
    findings: list[Finding] = []
    chains: dict[tuple[str, str], list[tuple[int, Link]]] = {}
    for file, document in enumerate(documents):
        try:
            sealed = _read(document)
        except Refuse as error:
            findings.append(Finding(file, False, str(error)))
            continue
        findings += [_check_hash(file, sealed), *_check_signature(file, sealed, trusted)]
        site = sealed.statement.get("site")
        name = (site if isinstance(site, str) else "", sealed.chain.tenant)
        chains.setdefault(name, []).append((file, sealed.chain))
    for links in chains.values():
        findings += _check_order(links)
    return findings


def _check_hash(file: int, sealed: _Sealed) -> Finding:
    try:
        link = _whole(sealed)
    except Refuse as error:
        return Finding(file, False, str(error))
    return Finding(file, True, f"{link}, made at {_short(link.made_at)}, is as it was sealed")


def _check_signature(file: int, sealed: _Sealed, trusted: set[bytes]) -> Iterator[Finding]:
    link, signature = sealed.chain, sealed.signature
    if isinstance(signature, msgspec.UnsetType):
        yield Finding(file, not trusted, f"{link} is not signed")
        return
    try:
        public = _base64(signature.public_key, 32, "the public key")
        _check_value(link, signature, public)
    except Refuse as error:
        yield Finding(file, False, f"{link}: {error}")
        return
    text, by = f"{link} is signed by", signature.fingerprint
    if public in trusted:
        yield Finding(file, True, f"{text} {by}")
    elif trusted:
        yield Finding(file, False, f"{text} an unknown key, {by}")
    else:
        advice = "which you should compare with the one you were given"
        yield Finding(file, True, f"{text} {by}, {advice}")


def _check_value(link: Link, signature: Signature, public: bytes) -> None:
    ed25519, _, exceptions = _library()
    if signature.fingerprint != fingerprint(public):
        raise Refuse("the fingerprint beside the signature is not that of its key")
    value = _base64(signature.value, 64, "the signature")
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(value, _signed(link))
    except (exceptions.InvalidSignature, ValueError) as error:
        raise Refuse("the signature is not by its key, or of another document") from error


def _public_key(text: bytes) -> bytes:
    """The 32 raw bytes of a public key, from them, from base64, or from PEM. Raises Refuse."""
    if len(text) == 32:
        return text
    if not text.lstrip().startswith(b"-----BEGIN"):
        return _base64(text.decode("latin-1").strip(), 32, "the public key")
    ed25519, serialization, exceptions = _library()
    try:
        key = serialization.load_pem_public_key(text)
    except (ValueError, exceptions.UnsupportedAlgorithm) as error:
        raise Refuse("the public key is no PEM that can be read") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise Refuse(f"the public key is a {type(key).__name__}, not an Ed25519 key")
    return bytes(key.public_bytes_raw())


def _base64(text: str, size: int, what: str) -> bytes:
    with contextlib.suppress(ValueError):
        found = base64.b64decode(text, validate=True)
        # Base64 has spare bits: another spelling of the same bytes is a changed document.
        if len(found) == size and base64.b64encode(found).decode() == text:
            return found
    raise Refuse(f"{what} is not {size} bytes in base64")


def _check_order(links: Sequence[tuple[int, Link]]) -> Iterator[Finding]:
    """How the links of one chain, in the order given, follow one another."""
    known: dict[int, tuple[int, Link]] = {}
    for file, link in links:
        if link.sequence in known:
            first, other = known[link.sequence]
            what = "the same as" if other.hash == link.hash else "the chain forks: another than"
            yield Finding(file, False, f"{link} is there twice, {what} that of file {first + 1}")
            continue
        if link.sequence < (highest := max(known, default=0)):
            yield Finding(file, False, f"{link} is out of order, after link {highest}")
        known[link.sequence] = (file, link)
    for (_, before), (file, link) in pairwise(known[number] for number in sorted(known)):
        yield _joined(file, before, link)


def _joined(file: int, before: Link, link: Link) -> Finding:
    missing = range(before.sequence + 1, link.sequence)
    if missing:
        names = " to ".join(str(number) for number in sorted({missing[0], missing[-1]}))
        return Finding(file, False, f"{link} has a gap before it: {names} not given")
    if link.previous != before.hash:
        text = f"{link} does not follow link {before.sequence}: it names another hash before it"
        return Finding(file, False, text)
    return Finding(file, True, f"{link} follows link {before.sequence}")


def embed(sealed: Mapping[str, Any]) -> str:
    """The sealed statement as an element of an HTML page, from which read_document takes it."""
    text = json.dumps(sealed, allow_nan=False).replace("<", "\\u003c")
    return f"{_OPEN}{text}{_CLOSE}"


def read_document(raw: bytes, name: str) -> dict[str, Any]:
    """The sealed statement in a file of JSON or HTML; `name` is for the sentence. Raises Refuse."""
    try:
        text = raw.decode("utf-8-sig")
        if text.lstrip().startswith("<"):
            pieces = text.split(_OPEN)
            if len(pieces) != 2:
                raise Refuse(f"{name} is a page with {len(pieces) - 1} sealed statements, not one")
            text = pieces[1].partition(_CLOSE)[0]
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise Refuse(f"{name} is nested too deep for a sealed statement") from error
    except ValueError as error:  # not UTF-8, not JSON, an integer of thousands of digits
        raise Refuse(f"{name} is not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise Refuse(f"{name} is no sealed statement: it has no JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise ValueError(f"the key {_short(twice)} is there twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
