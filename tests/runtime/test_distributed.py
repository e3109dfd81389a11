"""Work that is dealt to processes."""

from hfgen.runtime.distributed import batches_of_process


def test_chunks_are_dealt_out_completely():
    for count, size, world in [(10, 3, 1), (10, 3, 2), (5, 8, 3), (64, 16, 2)]:
        dealt = [
            index for rank in range(world) for batch in batches_of_process(count, size, rank, world) for index in batch
        ]
        assert sorted(dealt) == list(range(count))
    assert batches_of_process(10, 3, 0, 2) == [[0, 1, 2], [6, 7, 8]]
