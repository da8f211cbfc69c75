"""Signed links: only what was signed, only until it expires, under either of two live secrets."""

from __future__ import annotations

import base64
import json
import string
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from jobs.errors import LinkExpiredError, LinkInvalidError
from jobs.ids import new_id
from jobs.signing.keys import generate_key, key_hashes
from jobs.signing.links import Grant, LinkSigner
from jobs.signing.secret import Secrets, ensure_secret, load_secrets

OLD, NEW = b"o" * 64, b"n" * 64
SIGNER = LinkSigner(Secrets((OLD,)))
JOB = new_id()


def token(signer: LinkSigner = SIGNER, **changes: object) -> str:
    values: dict[str, object] = {
        "job_id": JOB,
        "name": "model.safetensors",
        "sha256": "ab" * 32,
        "tenant": "acme",
        "expires_at": 1000,
    }
    return signer.sign(**{**values, **changes})  # type: ignore[arg-type]


def test_a_link_says_what_it_permits() -> None:
    grant = SIGNER.verify(token(), now=999)
    assert (grant.job_id, grant.name, grant.sha256) == (JOB, "model.safetensors", "ab" * 32)
    assert (grant.tenant, grant.method, grant.expires_at) == ("acme", "read", 1000)


def test_it_ends_at_its_second() -> None:
    SIGNER.verify(token(), now=999)
    with pytest.raises(LinkExpiredError):
        SIGNER.verify(token(), now=1000)


@given(position=st.integers(0, 400), other=st.characters(codec="ascii"))
def test_any_altered_character_is_noticed(position: int, other: str) -> None:
    genuine = token()
    position %= len(genuine)
    altered = genuine[:position] + other + genuine[position + 1 :]
    if altered != genuine:
        with pytest.raises(LinkInvalidError):
            SIGNER.verify(altered, now=0)


@pytest.mark.parametrize("name", ["a", "ab", "abc"])  # three lengths: one leaves no spare bits, two do
def test_only_one_spelling_of_the_same_bytes_is_a_link(name: str) -> None:
    genuine = token(name=name)
    head, _, tail = genuine.partition(".")
    for other in string.ascii_letters + string.digits + "-_":
        for altered in (f"{head[:-1]}{other}.{tail}", f"{head}.{tail[:-1]}{other}"):
            if altered != genuine:
                with pytest.raises(LinkInvalidError):
                    SIGNER.verify(altered, now=0)


@given(st.text(max_size=200))
def test_garbage_is_invalid_and_nothing_else(text: str) -> None:
    with pytest.raises(LinkInvalidError):
        SIGNER.verify(text, now=0)


def test_a_payload_cannot_be_exchanged_under_a_signature() -> None:
    payload, _, signature = token().partition(".")
    fields = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    for index in range(len(fields)):
        other = list(fields)
        other[index] = 10**12 if isinstance(other[index], int) else f"{other[index]}x"
        forged = (
            base64.urlsafe_b64encode(json.dumps(other, separators=(",", ":")).encode()).rstrip(b"=").decode()
        )
        with pytest.raises(LinkInvalidError):
            SIGNER.verify(f"{forged}.{signature}", now=0)


def test_another_method_class_is_refused() -> None:
    with pytest.raises(LinkInvalidError):
        SIGNER.verify(token(), now=0, method="write")


def test_rotation() -> None:
    both, fresh = LinkSigner(Secrets((NEW, OLD))), LinkSigner(Secrets((NEW,)))
    old_link = token(SIGNER)
    assert isinstance(both.verify(old_link, now=0), Grant)
    assert isinstance(fresh.verify(token(both), now=0), Grant)  # new links are signed with the new secret
    with pytest.raises(LinkInvalidError):
        fresh.verify(old_link, now=0)
    with pytest.raises(LinkInvalidError):
        SIGNER.verify(token(both), now=0)


class TestKeys:
    def test_a_key_is_found_by_its_hash_under_either_secret(self) -> None:
        old = generate_key(Secrets((OLD,)))
        assert old.plain.startswith("ofk_")
        assert key_hashes(old.plain, Secrets((OLD,))) == [old.hash]
        assert old.hash in key_hashes(old.plain, Secrets((NEW, OLD)))
        assert old.hash not in key_hashes(old.plain, Secrets((NEW,)))

    def test_neither_the_key_nor_its_plain_hash_is_stored(self) -> None:
        import hashlib

        key = generate_key(Secrets((OLD,)))
        assert key.plain not in repr(key)
        assert key.hash != hashlib.sha256(key.plain.encode()).hexdigest()

    @pytest.mark.parametrize("text", ["", "ofk_", "ofk_" + "a" * 42, "xfk_" + "a" * 43, "ofk_" + "ä" * 43])
    def test_what_is_not_shaped_like_a_key_has_no_hash(self, text: str) -> None:
        assert key_hashes(text, Secrets((OLD,))) == []

    def test_links_and_keys_do_not_share_a_key(self) -> None:
        live = Secrets((OLD,))
        assert live.derive("links")[0].key != live.derive("api-keys")[0].key


class TestSecretFile:
    def test_it_is_made_once_and_private(self, tmp_path: Path) -> None:
        path = tmp_path / "data" / "secret"
        ensure_secret(path)
        first = path.read_text()
        ensure_secret(path)
        assert path.read_text() == first
        assert path.stat().st_mode & 0o777 == 0o600
        assert [p.name for p in path.parent.iterdir()] == ["secret"]
        assert len(load_secrets(path).live) == 1

    def test_one_that_is_there_is_left_alone_in_a_folder_that_takes_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "secret"
        ensure_secret(path)

        def refuse(*_args: object, **_options: object) -> int:
            raise PermissionError("read-only")

        before = path.read_text()
        monkeypatch.setattr("jobs.signing.secret.os.open", refuse)
        ensure_secret(path)
        assert path.read_text() == before
        assert list(tmp_path.iterdir()) == [path]
        with pytest.raises(PermissionError, match="read-only"):
            ensure_secret(tmp_path / "another")

    def test_two_lines_are_two_live_secrets_the_first_of_which_signs(self, tmp_path: Path) -> None:
        path = tmp_path / "secret"
        path.write_text("n" * 64 + "\n" + "o" * 64 + "\n")
        assert load_secrets(path) == Secrets((NEW, OLD))

    @pytest.mark.parametrize("text", ["", "short\n", "x" * 40 + "\nshort", "\n".join(["x" * 40] * 3)])
    def test_what_cannot_be_a_secret_is_refused(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "secret"
        path.write_text(text)
        with pytest.raises(ValueError, match="secret file"):
            load_secrets(path)

    def test_secrets_do_not_show(self) -> None:
        assert "nnn" not in repr(Secrets((NEW,)))
        assert "key=" not in repr(Secrets((NEW,)).derive("links")[0])
