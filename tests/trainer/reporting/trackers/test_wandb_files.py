"""The records of W&B's offline files, against a writer of LevelDB's log format."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from trainer.reporting.trackers.wandb_files import _records

FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def written(records: list[bytes]) -> bytes:
    """As github.com/google/leveldb/blob/main/doc/log_format.md has it, behind W&B's header of 7 bytes; checksums are left 0."""
    log = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        begun = False
        while True:
            left = 32768 - len(log) % 32768
            if left < 7:
                log += bytes(left)
                left = 32768
            part, record = record[: left - 7], record[left - 7 :]
            kind = (LAST if begun else FULL) if not record else (MIDDLE if begun else FIRST)
            log += bytes(4) + len(part).to_bytes(2, "little") + bytes([kind]) + part
            begun = True
            if not record:
                break
    return bytes(log)


@given(sizes=st.lists(st.integers(1, 70_000), max_size=6), cut=st.integers(0, 200_000))
@example(sizes=[32768 - 7 - 7 - 3, 5], cut=10**6)  # three bytes are left of the block
@example(sizes=[32768 - 7 - 7 - 7, 5], cut=10**6)  # room for an empty chunk
def test_whole_records_of_a_file_that_is_cut_anywhere(sizes: list[int], cut: int) -> None:
    """Prevents: steps that a kill took back and that are counted as there, or a traceback on half a record."""
    records = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    log = written(records)
    found = list(_records(log[:cut]))
    assert found == records[: len(found)]
    whole = [number for number in range(len(records) + 1) if len(written(records[:number])) <= cut]
    assert len(found) == max(whole, default=0)
