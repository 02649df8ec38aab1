"""Seals: what two parties who do not trust each other, nor the site, can check by themselves."""

import builtins
import contextlib
import copy
import hashlib
import json
import math
import random
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Refuse
from pipeline.ledger.chain import (
    FIRST,
    NOTHING,
    canonical,
    embed,
    fingerprint,
    read_document,
    seal,
    sign,
    verify,
)
from pipeline.ledger.figures import Point, Statement, Terms, Use

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")

NAME = "Acme <AI> & Söhne"
OF = f"of the chain of {NAME!r}"
MADE_AT = "2026-02-01T00:10:00Z"


def statement(tenant=NAME, **changed):
    use = Use(
        tenant=tenant, gpu_hours_allocated=744.0 * 8, gpu_energy_kwh=4093.137, cost=1e-7,
        currency="EUR", energy_mj="14735293200000000", histogram_hours=[0.5] * 10,
        throttled_hours={"power_cap": 0.25}, corrections=["re-closed </script><script>"],
        curve=[Point(ts_ms=1_767_225_600_000, gpu_kw=5.5, node_kw=None, gpu_hours=2.0,
                     coverage=1.0)],
        terms=Terms(contracted_gpus=8, contracted_kw=10.4, price_per_gpu_hour="1.99",
                    price_per_kwh="0.21", currency="EUR", availability_promised_pct=99.5,
                    timezone="Europe/Berlin"),
    )  # fmt: skip
    given = {
        "since": "2026-01-01", "until": "2026-02-01", "site": "north", "timezone": "UTC",
        "tenants": [use], "unallocated": None, "total": None, "notes": ["provisional: none"],
    }  # fmt: skip
    return Statement(**(given | changed))


def chain_of(count, tenant=NAME, site="north"):
    documents, previous = [], NOTHING
    for number in range(FIRST, FIRST + count):
        month = statement(tenant, site=site, notes=[f"month {number}"])
        documents.append(seal(month, previous, number, MADE_AT))
        previous = documents[-1]["chain"]["hash"]
    return documents


def pem(key, password=None):
    lock = serialization.BestAvailableEncryption(password) if password else None
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        lock or serialization.NoEncryption(),
    )


def bad(documents, keys=()):
    """What is wrong, as (file, sentence)."""
    return [(one.file, one.sentence) for one in verify(documents, keys) if not one.ok]


KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER = ed25519.Ed25519PrivateKey.from_private_bytes(b"x" * 32)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        # From RFC 8785, appendix B, and ECMAScript's own borders.
        (0x0000000000000000, "0"),
        (0x8000000000000000, "0"),
        (0x0000000000000001, "5e-324"),
        (0x8000000000000001, "-5e-324"),
        (0x7FEFFFFFFFFFFFFF, "1.7976931348623157e+308"),
        (0x4340000000000000, "9007199254740992"),
        (0x4430000000000000, "295147905179352830000"),
        (0x44B52D02C7E14AF5, "9.999999999999997e+22"),
        (0x44B52D02C7E14AF6, "1e+23"),
        (0x444B1AE4D6E2EF4E, "999999999999999700000"),
        (0x444B1AE4D6E2EF4F, "999999999999999900000"),
        (0x444B1AE4D6E2EF50, "1e+21"),
        (0x3EB0C6F7A0B5ED8C, "9.999999999999997e-7"),
        (0x3EB0C6F7A0B5ED8D, "0.000001"),
        (0x41B3DE4355555553, "333333333.3333332"),
        (0xBECBF647612F3696, "-0.0000033333333333333333"),
        (0x43143FF3C1CB0959, "1424953923781206.2"),
    ],
)
def test_numbers_are_written_as_the_rfc_has_them(number, text):
    """So that anybody's RFC 8785 library finds the same bytes."""
    value = struct.unpack(">d", number.to_bytes(8, "big"))[0]
    assert canonical({"n": value}) == b'{"n":%s}' % text.encode()


def test_keys_and_text_are_written_as_the_rfc_has_them():
    """Its example of sorting, by UTF-16 code units, and its example of escaping."""
    keys = {"\u20ac": 5, "\r": 1, "\ufb33": 7, "1": 2, "\U0001f600": 6, "\x80": 3, "\u00f6": 4}
    values = list(json.loads(canonical(keys)).values())
    assert values == [1, 2, 3, 4, 5, 6, 7]
    assert canonical({"s": '\u20ac$\u000f\nA\'B"\\\\"/'}) == (
        '{"s":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'.encode()
    )


@given(st.dictionaries(st.text(), json_values))
def test_canonical_json_reads_back_as_what_it_was(value):
    """Or is refused, never written as something else."""
    try:
        text = canonical(value)
    except Refuse:
        return
    assert json.loads(text, parse_int=float) == as_doubles(value)
    assert canonical(json.loads(text)) == text


def as_doubles(value):
    """Every number as what most readers of JSON make of it."""
    if isinstance(value, dict):
        return {key: as_doubles(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_doubles(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_reads_back(number):
    """To the last bit, but for the sign of zero."""
    text = canonical({"n": number})
    assert float(json.loads(text)["n"]) == number
    assert canonical(json.loads(text)) == text


@pytest.mark.parametrize(
    "value",
    [
        math.nan, math.inf, -math.inf, (1 << 53) + 1, -(1 << 53) - 1, 10**21, b"bytes", {1: 2}, "\ud800",
        {"\ud800": 1}, object(), {1, 2}, [10**5000],
    ],
)  # fmt: skip
def test_what_json_does_not_know_is_refused(value):
    """In one sentence."""
    with pytest.raises(Refuse, match=r"^the statement"):
        canonical({"x": value})


def nested(depth):
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


def test_depth_is_bounded():
    """A document cannot exhaust the stack of whoever checks it."""
    canonical({"x": nested(20)})
    with pytest.raises(Refuse, match="deep"):
        canonical({"x": nested(100_000)})


def test_the_hash_is_what_the_documentation_says():
    """Computed here from nothing but hashlib and json."""
    sealed = seal(statement(), "ab" * 32, 7, MADE_AT)
    content = json.dumps(
        json.loads(canonical(sealed["statement"])), sort_keys=True, separators=(",", ":"),
        ensure_ascii=False,
    ).replace("1e-07", "1e-7")  # fmt: skip
    parts = ["megawatch.statement.1", "ab" * 32, "7", NAME, MADE_AT, content]
    framed = b"".join(len(p.encode()).to_bytes(8, "big") + p.encode() for p in parts)
    assert sealed["chain"] == {
        "tenant": NAME, "sequence": 7, "previous": "ab" * 32, "made_at": MADE_AT,
        "hash": hashlib.sha256(framed).hexdigest(), "algorithm": "sha256",
    }  # fmt: skip


def test_the_format_does_not_drift():
    """A statement sealed today must be verifiable in ten years."""
    sealed = sign(seal(statement(), NOTHING, 1, MADE_AT), pem(KEY))
    assert (
        sealed["chain"]["hash"]
        == "5a5aee16122a69ec6de618704475851fb1db637d4f5aac06707aacdcee238859"
    )
    assert sealed["signature"]["value"].startswith("4royIKZ+/lIxKY9dTqnW")


@pytest.mark.parametrize(
    ("changed", "tenant"),
    [
        ({}, NAME),
        ({"tenants": [Use(tenant="a", workload="1"), Use(tenant="a", workload="2")]}, "a"),
        ({"tenants": [Use(tenant="a"), Use(tenant="b")]}, ""),
        ({"unallocated": Use()}, ""),
        ({"tenants": []}, ""),
    ],
)
def test_a_statement_belongs_to_its_tenant_or_else_to_the_site(changed, tenant):
    """A site with a single tenant says of itself also what nobody held."""
    assert seal(statement(**changed), NOTHING, 1, MADE_AT)["chain"]["tenant"] == tenant


@pytest.mark.parametrize(
    ("previous", "sequence"),
    [(NOTHING, 0), (NOTHING, 2), ("ab" * 32, 1), ("AB" * 32, 2), ("ab" * 32 + "\n", 2),
     ("", 2), ("ab" * 32, 1 << 53), ("ab" * 32, -1)],
)  # fmt: skip
def test_a_link_that_cannot_be_is_not_made(previous, sequence):
    """Only the first has zeros before it."""
    with pytest.raises(Refuse):
        seal(statement(), previous, sequence, MADE_AT)


def test_a_chain_holds():
    """Each hash, and each link to the one before."""
    findings = verify(chain_of(3))
    assert all(one.ok for one in findings)
    sentences = [one.sentence for one in findings]
    assert f"link 2 {OF}, made at {MADE_AT!r}, is as it was sealed" in sentences
    assert f"link 3 {OF} follows link 2" in sentences


def test_chains_of_others_do_not_mix():
    """Two tenants, the site itself, and another site of the same name's tenant, interleaved."""
    groups = [chain_of(2), chain_of(2, "b"), chain_of(2, None), chain_of(2, site="south")]
    assert not bad([group[i] for i in range(2) for group in groups])
    assert verify(groups[2][:1])[0].sentence.startswith("link 1 of the site's own chain")


def without(number, of=4):
    return [one for one in chain_of(of) if one["chain"]["sequence"] != number]


def test_a_gap_is_named():
    """One missing link, and several."""
    one, several = without(2), [chain_of(5)[0], chain_of(5)[4]]
    assert bad(one) == [(1, f"link 3 {OF} has a gap before it: 2 not given")]
    assert "2 to 4 not given" in bad(several)[0][1]


def test_a_fork_a_double_and_a_false_order_are_named():
    """Each as what it is, once."""
    first, second, third = chain_of(3)
    another = seal(statement(notes=["other"]), second["chain"]["previous"], 2, MADE_AT)
    assert bad([first, second, another, third]) == [
        (2, f"link 2 {OF} is there twice, the chain forks: another than that of file 2")
    ]
    assert bad([first, second, second]) == [
        (2, f"link 2 {OF} is there twice, the same as that of file 2")
    ]
    assert bad([first, third, second]) == [(2, f"link 2 {OF} is out of order, after link 3")]
    assert bad([first, another, third]) == [
        (2, f"link 3 {OF} does not follow link 2: it names another hash before it")
    ]


@given(st.permutations(range(4)))
@settings(max_examples=24, deadline=None)
def test_any_other_order_is_found(order):
    """Of whole links."""
    documents = chain_of(4)
    assert bool(bad([documents[i] for i in order])) == (list(order) != sorted(order))


@given(st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=16, deadline=None)
def test_numbers_that_were_swapped_are_found(a, b):
    """Exchanging two statements of a chain leaves hashes that do not hold."""
    documents = chain_of(4)
    left, right = documents[a], documents[b]
    left["statement"], right["statement"] = right["statement"], left["statement"]
    assert {file for file, _ in bad(documents)} == ({a, b} if a != b else set())


def places(value, path=()):
    """Every leaf and every inner node of a JSON value, by its path."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


SIGNED = json.loads(json.dumps(sign(chain_of(2)[1], pem(KEY))))
PLACES = [path for path in places(SIGNED) if path]


@given(st.sampled_from(PLACES), st.data())
@settings(max_examples=400, deadline=None)
def test_any_single_change_is_found(path, data):
    """A leaf with another value, a key gone, renamed or added, anywhere in the document."""
    changed = copy.deepcopy(SIGNED)
    holder, key = at(changed, path[:-1]), path[-1]
    old = holder[key]
    what = data.draw(st.sampled_from(["value", "gone", "renamed", "added", "text"]))
    if what == "gone" and path != ("signature",):
        del holder[key]
    elif what == "renamed" and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    elif what == "added" and isinstance(holder, dict):
        holder[f"{key}_"] = data.draw(json_values)
    elif what == "text" and isinstance(old, str) and old:
        spot = data.draw(st.integers(0, len(old) - 1))
        letter = data.draw(st.characters().filter(lambda one: one != old[spot]))
        holder[key] = f"{old[:spot]}{letter}{old[spot + 1 :]}"
    else:
        holder[key] = data.draw(json_values.filter(lambda new: differs(new, old)))
    assert bad([changed]), (path, what)
    assert bad([changed], [PUBLIC])


def differs(new, old):
    """As JSON: true is not 1, but 1.0 is."""
    return isinstance(new, bool) != isinstance(old, bool) or new != old


def test_a_signature_that_was_taken_off_is_missed_where_one_is_due():
    """Without keys nobody can know that there was one."""
    bare = {name: SIGNED[name] for name in ("statement", "chain")}
    assert not bad([bare])
    assert bad([bare], [PUBLIC]) == [(0, f"link 2 {OF} is not signed")]


def test_signing_and_verifying():
    """With the right key, without keys, with another's."""
    print_ = fingerprint(PUBLIC)
    other = OTHER.public_key().public_bytes_raw()
    assert [one.sentence for one in verify([SIGNED])][1] == (
        f"link 2 {OF} is signed by {print_}, which you should compare with the one you were given"
    )
    for spelling in (PUBLIC, SIGNED["signature"]["public_key"].encode(), public_pem(KEY)):
        assert [one.sentence for one in verify([SIGNED], [other, spelling])][1] == (
            f"link 2 {OF} is signed by {print_}"
        )
    assert bad([SIGNED], [other]) == [(0, f"link 2 {OF} is signed by an unknown key, {print_}")]


def public_pem(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_a_signature_cannot_be_carried_over():
    """To another link, or to a hash that was computed anew after a change."""
    first, second = chain_of(2)
    assert "of another document" in bad([{**first, "signature": SIGNED["signature"]}])[0][1]
    forged = seal(statement(notes=["cheaper"]), second["chain"]["previous"], 2, MADE_AT)
    assert "of another document" in bad([{**forged, "signature": SIGNED["signature"]}])[0][1]


def ec_pem():
    from cryptography.hazmat.primitives.asymmetric import ec

    return pem(ec.generate_private_key(ec.SECP256R1()))


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (pem(KEY, b"secret"), "encrypted"),
        (b"", "no private key in PEM"),
        (b"garbage \x00\xff", "no private key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key"),
        (public_pem(KEY), "no private key in PEM"),
        (ec_pem(), "not an Ed25519 key"),
    ],
)
def test_a_bad_key_file_is_told_in_a_sentence(key, sentence):
    """Without a word of the key in it."""
    with pytest.raises(Refuse, match=sentence) as caught:
        sign(chain_of(1)[0], key)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [b"", b"x" * 31, b"!" * 44, b"-----BEGIN PUBLIC KEY-----\n"])
def test_a_bad_public_key_is_told_in_a_sentence(key):
    """It is the caller's, not the document's."""
    with pytest.raises(Refuse, match="public key"):
        verify([SIGNED], [key])


def test_what_does_not_hold_is_not_signed():
    """A signature is a promise."""
    sealed = chain_of(1)[0]
    sealed["statement"]["site"] = "south"
    with pytest.raises(Refuse, match="altered"):
        sign(sealed, pem(KEY))


def test_without_the_library_it_says_what_to_install(monkeypatch):
    """Signing and checking signatures; what is not signed needs none."""
    real = builtins.__import__

    def missing(name, *rest, **named):
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(Refuse, match=r"pip install 'megawatch\[sign\]'"):
        sign(chain_of(1)[0], pem(KEY))
    assert "pip install" in bad([SIGNED])[0][1]
    assert not bad(chain_of(2))


SHAPES = st.fixed_dictionaries(
    {
        "statement": json_values | st.dictionaries(st.text(), json_values),
        "chain": json_values
        | st.fixed_dictionaries(
            {
                "tenant": json_values, "made_at": json_values, "algorithm": json_values,
                "sequence": st.integers(1, 3) | json_values,
                "previous": st.sampled_from([NOTHING, "ab" * 32]) | json_values,
                "hash": st.just("ab" * 32) | json_values,
            }
            | {"algorithm": st.just("sha256") | json_values}
        ),
    },
    optional={
        "signature": json_values
        | st.fixed_dictionaries(
            {
                "public_key": st.just(SIGNED["signature"]["public_key"]) | json_values,
                "fingerprint": st.just(fingerprint(PUBLIC)) | json_values,
                "value": st.just(SIGNED["signature"]["value"]) | json_values,
                "algorithm": st.just("ed25519") | json_values,
            }
        )
    },
)  # fmt: skip


@given(st.lists(json_values | SHAPES, max_size=4), st.sampled_from([(), (PUBLIC,)]))
@settings(max_examples=300, deadline=None)
def test_nothing_in_a_document_raises(documents, keys):
    """There is a finding for each, it is printable, and none of these forgeries is taken."""
    findings = verify(documents, keys)
    assert {one.file for one in findings if not one.ok} == set(range(len(documents)))
    for one in findings:
        assert one.sentence.isprintable()
        assert len(one.sentence) < 400


@pytest.mark.parametrize(
    "document",
    [
        None, 3, [], {}, {"chain": SIGNED["chain"]}, {**SIGNED, "more": 1},
        {**SIGNED, "statement": {"x": nested(5000)}},
        {**SIGNED, "statement": {"site": nested(5000)}},
        {**SIGNED, "chain": {**SIGNED["chain"], "sequence": 10**6000}},
        {**SIGNED, "chain": {**SIGNED["chain"], "sequence": True}},
        {**SIGNED, "chain": {**SIGNED["chain"], "sequence": 2.0}},
        {**SIGNED, "chain": {**SIGNED["chain"], "algorithm": "md5\x1b[31m"}},
        {**SIGNED, "chain": {**SIGNED["chain"], "tenant": "\ud800"}},
        {**SIGNED, "signature": None},
        {**SIGNED, "signature": {**SIGNED["signature"], "value": "é"}},
        {**SIGNED, "signature": {**SIGNED["signature"], "public_key": "A" * 32}},
    ],
)  # fmt: skip
def test_hostile_documents_give_findings(document):
    """Among good ones, which stay good."""
    good = chain_of(1, "b")[0]
    assert {file for file, _ in bad([good, document])} == {1}


@given(st.sampled_from(["json", "html"]))
@settings(max_examples=2, deadline=None)
def test_a_document_reads_back_from_a_file(form):
    """Names with markup in them do not end the element."""
    text = json.dumps(SIGNED, indent=1)
    if form == "html":
        assert embed(SIGNED).count("<") == 2
        text = f"<!DOCTYPE html>\n<p>{embed(SIGNED)}</p><script>let x = 1</script>"
    found = read_document(text.encode(), "a.html")
    assert found == SIGNED
    assert not bad([found], [PUBLIC])


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"x": [{"a": 1, "b": 2, "b": 2}]}', "the key 'b' is there twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 200_000, "nested too deep"),
        (b"[]", "no JSON object"),
        (b"<html></html>", "a page with 0 sealed statements"),
        ((embed(SIGNED) * 2).encode(), "a page with 2 sealed statements"),
        (embed(SIGNED).replace("chain", "\n").encode(), "not JSON"),
    ],
)
def test_a_file_that_is_none_is_told_in_a_sentence(raw, sentence):
    """With its name."""
    with pytest.raises(Refuse, match=sentence) as caught:
        read_document(raw, "march.json")
    assert str(caught.value).startswith("march.json ")
    assert len(str(caught.value)) < 400


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_reading_refuses_or_gives_an_object(raw):
    """Whatever the file holds."""
    with contextlib.suppress(Refuse):
        assert isinstance(read_document(raw, "x"), dict)


@given(st.integers(1, 1 << 50), st.text(), st.text(), st.floats(allow_nan=False), st.randoms())
@settings(deadline=None)
def test_what_is_sealed_verifies(sequence, tenant, made_at, energy_kwh, source: random.Random):
    """Also after somebody else's JSON library wrote it with its keys in another order."""
    use = Use(tenant=tenant, gpu_energy_kwh=energy_kwh)
    previous = NOTHING if sequence == FIRST else "0" * 63 + "1"
    try:
        sealed = seal(statement(tenants=[use]), previous, sequence, made_at)
    except Refuse:
        assert math.isinf(energy_kwh)
        return
    pairs = list(msgspec.to_builtins(sealed)["statement"].items())
    source.shuffle(pairs)
    again = json.loads(json.dumps({"chain": sealed["chain"], "statement": dict(pairs)}))
    assert not bad([again])
