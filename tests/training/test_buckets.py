"""Which rows make a step, and how they are cut."""

from collections import Counter

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerState

from rlhf.training.buckets import ResumedEpoch, StepBuckets, row_lengths

LENGTHS = [3, 90, 14, 55, 8, 21, 34, 5, 60, 13, 7, 40, 2, 88, 19, 30, 11, 26, 47, 70, 9, 16, 33]


def steps(lengths, rows, processes=1, accumulation=1, epoch=0, **options):
    """For each step, for each process, its batches."""
    found = []
    for rank in range(processes):
        sampler = StepBuckets(lengths, rows, processes, accumulation, rank=rank, **options)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        found.append([batches[at : at + accumulation] for at in range(0, len(batches), accumulation)])
    return list(zip(*found, strict=True))


def rows_of(step):
    return sorted(row for batches in step for batch in batches for row in batch)


def test_a_step_has_the_rows_of_plain_shuffling():
    """The order is that of accelerate's seedable sampler: the seed plus the epoch."""
    from accelerate.data_loader import SeedableRandomSampler

    plain = SeedableRandomSampler(LENGTHS, data_seed=7)
    for epoch in range(2):
        plain.set_epoch(epoch)
        order = list(plain)
        cut = steps(LENGTHS, 8, accumulation=4, seed=7, epoch=epoch)
        assert [rows_of(step) for step in cut] == [sorted(order[at : at + 8]) for at in (0, 8, 16)]


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 4), (2, 2), (4, 1), (2, 1), (1, 1)])
def test_a_step_is_the_same_over_any_number_of_processes(processes, accumulation):
    alone = [rows_of(step) for step in steps(LENGTHS[:16], 8)]
    assert [rows_of(step) for step in steps(LENGTHS[:16], 8, processes, accumulation)] == alone


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 4), (2, 2), (2, 4), (4, 2)])
def test_processes_have_as_many_rows_in_each_batch(processes, accumulation):
    """Trainers gather numbers row by row, and wait for one another in every batch."""
    for step in steps(LENGTHS, 16, processes, accumulation):
        sizes = [[len(batch) for batch in batches] for batches in step]
        assert all(one == sizes[0] for one in sizes)
        assert min(sizes[0]) >= 1


def test_batches_have_about_as_many_tokens():
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 400, (640,), generator=draw).tolist()
    for (batches,) in steps(lengths, 64, accumulation=8):
        tokens = [sum(lengths[row] for row in batch) for batch in batches]
        assert max(tokens) < 1.35 * sum(tokens) / 8
        kept = [max(lengths[row] for row in batch) for batch in batches]
        assert kept == sorted(kept, reverse=True)
        padded = sum(len(batch) * longest for batch, longest in zip(batches, kept, strict=True))
        assert padded < 1.25 * sum(tokens)


def test_each_epoch_is_shuffled_anew():
    first, second = (steps(LENGTHS, 8, epoch=epoch) for epoch in range(2))
    assert first != second
    assert Counter(row for step in first for row in rows_of(step)) == Counter(range(len(LENGTHS)))


def test_the_last_step():
    """Of 23 rows in steps of 8, 7 are left; with two processes one row fills up, as accelerate does."""
    assert [len(rows_of(step)) for step in steps(LENGTHS, 8, accumulation=2)] == [8, 8, 7]
    assert [len(rows_of(step)) for step in steps(LENGTHS, 8, 2, 2)] == [8, 8, 8]
    sampler = StepBuckets(LENGTHS[:9], 8, accumulation=4)
    assert [len(batch) for batch in sampler][4:] == [1]  # no batch is empty
    assert len(sampler) == 5


@pytest.mark.parametrize(("rows", "kept"), [(16, []), (17, []), (18, [2]), (19, [2]), (21, [4]), (23, [6])])
@pytest.mark.parametrize(("processes", "accumulation"), [(1, 4), (2, 2)])
def test_rows_that_fill_no_batch_may_be_left_out(rows, kept, processes, accumulation):
    """Batches of two rows over all processes with one, of four with two: whole ones of the last step are kept."""
    kept = [size - size % (2 * processes) for size in kept]
    sizes = [len(rows_of(step)) for step in steps(LENGTHS[:rows], 8, processes, accumulation, drop_last=True)]
    assert sizes == [8, 8, *filter(None, kept)]


def test_fewer_rows_than_a_step():
    assert [rows_of(step) for step in steps(LENGTHS[:3], 8, accumulation=4, drop_last=True)] == [[0, 2]]
    assert steps(LENGTHS[:1], 8, accumulation=4, drop_last=True) == []


def test_row_lengths_count_all_token_ids():
    rows = Dataset.from_dict({"prompt_ids": [[1, 2], [3]], "chosen_ids": [[4], [5, 6, 7]], "other": [[1] * 9, [2]]})
    assert row_lengths(rows) == [3, 4]
    assert row_lengths(rows.select([1])) == [4]


def test_one_long_row_stands_alone():
    ((batches,),) = steps([500, 10, 10, 10, 10, 10], 6, accumulation=3)
    assert [len(batch) for batch in batches] == [1, 3, 2]


def bucketed() -> DataLoader:
    """As `Trainer` prepares a loader whose batches are a process's own."""
    sampler = StepBuckets(LENGTHS, 8, processes=2, accumulation=2, rank=1)
    return DataLoaderShard(range(len(LENGTHS)), batch_sampler=BatchSamplerShard(sampler))


def shuffled() -> DataLoader:
    """As accelerate prepares a loader for the second of two processes."""
    loader = DataLoader(range(len(LENGTHS)), batch_size=2, shuffle=True)
    return prepare_data_loader(loader, num_processes=2, process_index=1, use_seedable_sampler=True, data_seed=3)


@pytest.mark.parametrize("make", [bucketed, shuffled])
def test_a_resumed_epoch_goes_on_in_its_own_order(make):
    whole, resumed = make(), make()
    orders = []
    for epoch in range(2):
        ResumedEpoch().on_epoch_begin(None, TrainerState(epoch=epoch), None, train_dataloader=whole)
        whole.set_epoch(epoch)
        orders.append([batch.tolist() for batch in whole])
    ResumedEpoch().on_epoch_begin(None, TrainerState(epoch=1.4), None, train_dataloader=resumed)
    rest = skip_first_batches(resumed, 2)
    rest.set_epoch(1)  # as `Trainer` does, which does not reach every sampler
    assert [batch.tolist() for batch in rest] == orders[1][2:] != orders[0][2:]
