"""The fold of a log: which records are live, whatever the order of retractions and rollbacks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesmlp.inference.errors import CorruptStore
from bayesmlp.store.fold import Record, effective


def publish(offset: int) -> Record:
    return Record(offset, "publish", None, {})


def event(offset: int) -> Record:
    return Record(offset, "event", f"e{offset}", {})


def quarantine(offset: int) -> Record:
    return Record(offset, "quarantine", f"e{offset}", {})


def release(offset: int, source: int) -> Record:
    return Record(offset, "release", None, {"offset": source})


def merge(offset: int, how: str = "delta") -> Record:
    return Record(offset, "merge", None, {"how": how, "branches": []})


def retract(offset: int, *event_ids: str, merges: tuple[int, ...] = ()) -> Record:
    return Record(offset, "retract", None, {"event_ids": list(event_ids), "merges": list(merges)})


def line(records: list[Record]) -> list[int]:
    return [record.offset for record in effective(records).line]


def test_events_follow_their_publish() -> None:
    assert line([publish(1), event(2), event(3)]) == [1, 2, 3]


def test_a_second_publish_supersedes_what_came_before() -> None:
    fold = effective([publish(1), event(2), publish(3), event(4)])
    assert [record.offset for record in fold.line] == [3, 4]
    assert fold.status == {2: "superseded", 4: "live"}


def test_retraction_takes_out_and_stays_across_a_rollback() -> None:
    records = [publish(1), event(2), event(3), Record(4, "retract", None, {"event_ids": ["e2"]}), event(5)]
    assert line(records) == [1, 3, 5]
    fold = effective([*records, Record(6, "rollback", None, {"version": 3}), event(7)])
    assert [record.offset for record in fold.line] == [1, 3, 7]
    assert fold.status == {2: "retracted", 3: "live", 5: "rolled back", 7: "live"}


def test_rollback_of_a_rollback_brings_the_line_back() -> None:
    records = [publish(1), event(2), event(3), Record(4, "rollback", None, {"version": 2})]
    assert line(records) == [1, 2]
    assert line([*records, Record(5, "rollback", None, {"version": 3})]) == [1, 2, 3]


def test_rollback_across_a_publish_restores_the_old_line() -> None:
    assert line([publish(1), event(2), publish(3), Record(4, "rollback", None, {"version": 2})]) == [1, 2]


def test_a_quarantined_event_is_learned_where_it_is_released() -> None:
    records = [publish(1), event(2), quarantine(3), event(4)]
    assert line(records) == [1, 2, 4]
    assert effective(records).status == {2: "live", 3: "quarantined", 4: "live"}
    fold = effective([*records, release(5, 3), event(6)])
    assert [record.offset for record in fold.line] == [1, 2, 4, 5, 6]
    assert fold.line[3].learned == 3
    assert fold.status == {2: "live", 3: "released", 4: "live", 5: "live", 6: "live"}


def test_a_released_event_can_be_retracted_and_a_retracted_one_is_not_released() -> None:
    retract = Record(5, "retract", None, {"event_ids": ["e2"]})
    for records in ([publish(1), quarantine(2), release(3, 2), event(4), retract],
                    [publish(1), quarantine(2), event(4), retract, release(6, 2)]):  # fmt: skip
        assert line(records) == [1, 4]
        assert effective(records).status[2] == "retracted"


def test_a_rollback_before_a_release_puts_the_event_back_into_quarantine() -> None:
    records = [publish(1), quarantine(2), release(3, 2), Record(4, "rollback", None, {"version": 2})]
    fold = effective(records)
    assert line(records) == [1]
    assert fold.status == {2: "quarantined", 3: "rolled back"}
    assert line([*records, release(5, 2)]) == [1, 5]
    assert line([*records, Record(5, "rollback", None, {"version": 1}), release(6, 2)]) == [1]


def test_an_event_is_released_once() -> None:
    assert line([publish(1), quarantine(2), release(3, 2), release(4, 2)]) == [1, 3]


def test_a_branch_starts_a_line_and_names_its_parent() -> None:
    records = [Record(1, "branch", None, {"parent": "m"}), event(2)]
    assert line(records) == [1, 2]
    assert effective(records).parent == "m"
    assert effective([publish(1), event(2)]).parent is None
    assert effective([*records, publish(3)]).parent is None


@pytest.mark.parametrize("kind", ["merge", "pull"])
def test_a_merge_counts_as_long_as_all_that_it_was_made_of(kind: str) -> None:
    records = [publish(1), event(2), event(3), Record(4, kind, None, {"how": "delta"}), event(5)]
    assert line(records) == [1, 2, 3, 4, 5]
    fold = effective([*records, retract(6, "e2")])
    assert [record.offset for record in fold.line] == [1, 3, 5]
    assert fold.status[4] == "retracted"
    assert line([*records, retract(6, "e5")]) == [1, 2, 3, 4]
    assert line([publish(1), event(2), event(3), retract(4, "e2"), merge(5)]) == [1, 3, 5]


def test_a_merge_made_after_a_retraction_stays() -> None:
    records = [publish(1), event(2), event(3), merge(4), retract(5, "e2"), merge(6), event(7)]
    assert line(records) == [1, 3, 6, 7]
    assert line([*records, retract(8, "e3")]) == [1, 7]


def test_a_merge_is_taken_out_with_those_made_of_it() -> None:
    records = [publish(1), merge(2), event(3), merge(4)]
    assert line([*records, retract(5, merges=(4,))]) == [1, 2, 3]
    assert line([*records, retract(5, merges=(2,))]) == [1, 3]
    assert line([*records, retract(5, merges=(2,)), merge(6)]) == [1, 3, 6]


def test_a_rollback_does_not_bring_back_a_merge_of_what_was_retracted() -> None:
    records = [publish(1), event(2), merge(3), Record(4, "rollback", None, {"version": 2}), retract(5, "e2")]
    assert line(records) == [1]
    assert line([*records, Record(6, "rollback", None, {"version": 3})]) == [1]


def test_what_was_consolidated_after_a_merge_falls_away_with_it() -> None:
    records = [publish(1), event(2), merge(3), event(4), event(5), Record(6, "consolidate", None, {"until": 4})]
    assert line(records) == [1, 2, 3, 4, 6, 5]
    assert line([*records, retract(7, merges=(3,))]) == [1, 2, 4, 5]
    assert line([*records, retract(7, "e2")]) == [1, 4, 5]
    assert line([*records, retract(7, "e5")]) == [1, 2, 3, 4, 6]
    assert line([*records, merge(7), retract(8, "e5")]) == [1, 2, 3, 4, 6]


def test_a_merge_event_by_event_stays_without_one_of_them() -> None:
    records = [publish(1), event(2), event(3), merge(4, "replay"), retract(5, "e2")]
    assert line(records) == [1, 3, 4]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(CorruptStore, match="record 2 is of kind 'teleport'"):
        effective([publish(1), Record(2, "teleport", None, {})])


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    records = [publish(1)]
    for offset in range(2, draw(st.integers(2, 25))):
        kind = draw(
            st.sampled_from(
                [
                    "event",
                    "event",
                    "event",
                    "quarantine",
                    "release",
                    "retract",
                    "rollback",
                    "publish",
                    "handover",
                    "merge",
                ]
            )
        )
        if kind == "event":
            records.append(event(offset))
        elif kind == "quarantine":
            records.append(quarantine(offset))
        elif kind == "release":
            records.append(release(offset, draw(st.integers(1, offset - 1))))
        elif kind == "retract":
            ids = [r.event_id for r in records if r.event_id]
            chosen = draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
            records.append(Record(offset, "retract", None, {"event_ids": chosen}))
        elif kind == "rollback":
            records.append(Record(offset, "rollback", None, {"version": draw(st.integers(1, offset - 1))}))
        else:
            records.append(Record(offset, kind, None, {}))
    return records


@settings(max_examples=300, deadline=None)
@given(logs())
def test_properties_of_any_log(records: list[Record]) -> None:
    fold = effective(records)
    offsets = [record.offset for record in fold.line]
    assert offsets == sorted(set(offsets))
    assert fold.line[0].kind == "publish"
    assert sum(record.kind == "publish" for record in fold.line) == 1
    retracted = {i for record in records if record.kind == "retract" for i in record.body["event_ids"]}
    events = [record for record in records if record.event_id]
    ids = {record.offset: record.event_id for record in events}
    learned = [record.learned for record in fold.line if record.learned is not None]
    assert len(set(learned)) == len(learned)
    assert not retracted & {ids[offset] for offset in learned}
    merges = {record.offset for record in records if record.kind == "merge"}
    observed = {record.offset for record in records if record.event_id or record.kind == "release"}
    assert set(fold.status) - merges == observed
    for number, record in enumerate(fold.line):  # what a merge was made of is the line before it, to the last record
        if record.kind == "merge":
            assert fold.line[:number] == effective([r for r in records if r.offset < record.offset]).line
    assert {o for o, s in fold.status.items() if s == "live"} == {r.offset for r in fold.line if r.learned is not None}
    assert {o for o, s in fold.status.items() if s == "released"} == {
        r.learned for r in fold.line if r.kind == "release"
    }
    assert all(fold.status[r.offset] == "retracted" for r in events if r.event_id in retracted)
    kinds = {record.offset: record.kind for record in records}
    assert all((kinds[r.learned] == "quarantine") == (r.kind == "release") for r in fold.line if r.learned is not None)
    chains = list(fold.covers)
    assert len(set(chains)) == len(chains) == len(offsets)


@settings(max_examples=200, deadline=None)
@given(logs())
def test_a_log_without_the_retracted_events_folds_to_the_same_line(records: list[Record]) -> None:
    retracted = {i for record in records if record.kind == "retract" for i in record.body["event_ids"]}
    fallen = effective(records).fallen  # what was made of them
    never = [r for r in records if r.event_id not in retracted and r.kind != "retract" and r.offset not in fallen]
    known = {r.offset for r in never}
    never = [r for r in never if r.kind != "release" or r.body["offset"] in known]
    known = {r.offset for r in never}
    if any(r.kind == "rollback" and r.body["version"] not in known for r in never):
        return  # it rolls back to a version that such a log would not have
    assert line(records) == line(never)
