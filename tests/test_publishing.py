"""Publishing: what gets among the book's records, byte by byte, and what is refused."""

import copy
from pathlib import Path

import pytest

from dpldm.book.notebooks import ROOT
from dpldm.records import files, publishing
from dpldm.records.publishing import PublishingError, objection, publish

COMMITTED = sorted((ROOT / "book" / "records").glob("*-dpldm-*.json"))[0]


def own(secure: bool = True, scored: bool = False, private: bool = True) -> dict:
    record = copy.deepcopy(files.read(COMMITTED))
    record["dataset"] = "own-pets"
    record["settings"]["secure_mode"] = record["privacy"]["secure_mode"] = secure
    if not scored:
        record["metrics"] |= {"fid_classifier": None, "fid_inception": None}
        record["metrics"]["accuracy"] = {kind: [] for kind in record["metrics"]["accuracy"]}
    if not private:
        record["privacy"]["epsilon"] = None
    return record


def test_a_record_and_its_grid_are_copied_byte_by_byte(tmp_path: Path) -> None:
    made = publish(COMMITTED, tmp_path / "book")
    for file in (COMMITTED, COMMITTED.with_suffix(".png")):
        assert (tmp_path / "book" / file.name).read_bytes() == file.read_bytes()
    assert files.read_all(tmp_path / "book") == [files.read(made)]


@pytest.mark.parametrize(
    ("record", "own_data", "message"),
    [
        (files.read(COMMITTED) | {"profile": "smoke"}, True, "its numbers mean nothing"),
        (own(), False, "add --own-data"),
        (own(private=False), True, "not private"),
        (own(secure=False), True, "make it with --secure"),
        (own(scored=True), True, "make it without --test-data"),
    ],
)
def test_what_does_not_belong_in_the_book_is_refused(record: dict, own_data: bool, message: str) -> None:
    assert message in (objection(record, own_data) or "")


def test_what_belongs_there_is_not() -> None:
    assert objection(files.read(COMMITTED)) is None
    assert objection(own(), own_data=True) is None


def test_nothing_is_copied_of_what_is_refused(tmp_path: Path) -> None:
    smoke = files.write(files.read(COMMITTED) | {"profile": "smoke"}, tmp_path)
    with pytest.raises(PublishingError, match=r"smoke-seed.* is not published"):
        publish(smoke, tmp_path / "book")
    lone = files.write(files.read(COMMITTED), tmp_path)
    with pytest.raises(PublishingError, match="a sample grid"):
        publish(lone, tmp_path / "book")
    renamed = tmp_path / "better.json"
    renamed.write_bytes(COMMITTED.read_bytes())
    with pytest.raises(PublishingError, match=f"expected the name {COMMITTED.name}"):
        publishing.publish(renamed, tmp_path / "book")
    assert not (tmp_path / "book").exists()


def test_no_smoke_run_is_published() -> None:
    for record in files.read_all(ROOT / "book" / "records"):
        assert objection(record) is None
