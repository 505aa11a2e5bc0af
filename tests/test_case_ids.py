"""Names that say nothing without the key, and a key that nobody else sees."""

import re
import stat

import pytest

from geomed.data.case_ids import CaseIds


def test_names_need_the_key_and_differ_in_kind(tmp_path):
    ids = CaseIds(key_file=str(tmp_path / "a" / "key"))
    assert ids.case("x") == ids.case("x") != ids.patient("x")
    assert re.fullmatch("[0-9a-f]{16}", ids.case("x"))
    assert CaseIds(key_file=str(tmp_path / "a" / "key")).case("x") == ids.case("x")
    assert CaseIds(key_file=str(tmp_path / "b" / "key")).case("x") != ids.case("x")
    assert stat.S_IMODE((tmp_path / "a" / "key").stat().st_mode) == 0o600
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "key"]
    assert (tmp_path / "a" / "key").read_bytes().hex() not in repr(ids)


def test_the_key_lies_in_the_settings_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    CaseIds().case("x")
    assert (tmp_path / "geomed" / "case_key").is_file()
    with pytest.raises(ValueError, match="inside the run's folder"):
        CaseIds().refuse_inside(tmp_path)


def test_a_key_that_others_can_read_or_that_is_short_is_refused(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(b"x" * 32)
    key.chmod(0o644)
    with pytest.raises(ValueError, match="can be read by others"):
        CaseIds(key_file=str(key)).case("x")
    with pytest.raises(ValueError, match="neither read nor made"):
        CaseIds(key_file=str(key / "below a file")).case("x")
    key.write_bytes(b"short")
    key.chmod(0o600)
    with pytest.raises(ValueError, match="at least 32 bytes, it has 5"):
        CaseIds(key_file=str(key)).case("x")
