"""DataLoaderFactory: from texts and a tokenizer to the batches that a model is trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from truthgpt_core.optimization import Progress, no_progress
from truthgpt_services.errors import DataError

if TYPE_CHECKING:
    from truthgpt_services.data.loader import BatchLoader
    from truthgpt_services.data.token_store import Texts

# What transformers says of a tokenizer without a limit is larger than any.
_NO_LIMIT = 1 << 40


class DataLoaderFactory:
    """Makes loaders; see `BatchLoader` for what they yield.

    train_loader = DataLoaderFactory.create_train_loader(
        texts=train_texts, tokenizer=tokenizer, max_length=1024, batch_size=8
    )
    """

    @staticmethod
    def create_train_loader(
        texts: Texts,
        tokenizer: Any,
        max_length: int,
        batch_size: int,
        *,
        packing: bool = True,
        length_bucketing: bool = True,
        shuffle: bool = True,
        seed: int = 42,
        drop_last: bool = False,
        end_of_text: bool = True,
        num_workers: int = 0,
        prefetch: int = 2,
        tokenizing_processes: int | None = None,
        context_length: int | None = None,
        progress: Progress = no_progress,
    ) -> BatchLoader:
        """Make a loader to train with, whose position can be saved and restored.

        All texts are tokenized now. More than a few million characters are kept in the cache
        as tokens, and never in memory.

        Args:
            texts: a source of texts, or texts and conversations (lists of messages, each with
                `role` and `content`), of which the assistant's turns alone are learned.
            tokenizer: of transformers; with a chat template, if there are conversations.
            max_length: how many tokens a row has at most; 2 or more.
            batch_size: how many rows a batch has.
            packing: fill rows with several texts, which do not see each other, and divide long
                ones; else a row is one text, cut to `max_length`, and padded.
            length_bucketing: put rows of similar length into a batch; without packing alone.
            shuffle: give each epoch an order of its own.
            seed: another one gives other orders.
            drop_last: leave out the last batch of an epoch if it is smaller.
            end_of_text: end each text with the end-of-sequence token.
            num_workers: processes that prepare batches; 0 prepares them in this one.
            prefetch: batches that each of these processes prepares ahead.
            tokenizing_processes: processes that tokenize; one for each core, up to 8, if None.
            context_length: how many tokens the model takes, if that is known.
            progress: told how far tokenizing is; it may raise, to stop.

        Returns:
            A loader that begins, and after `load_state_dict` goes on, where it was.

        Raises:
            DataError: a number is out of range, a text cannot be read or encoded, or nothing
                is left to train on.
        """
        return _loader(
            texts,
            tokenizer,
            max_length,
            batch_size,
            packing=packing,
            bucketing=length_bucketing,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            end_of_text=end_of_text,
            num_workers=num_workers,
            prefetch=prefetch,
            processes=tokenizing_processes,
            context_length=context_length,
            progress=progress,
            resumes=True,
        )

    @staticmethod
    def create_val_loader(
        texts: Texts,
        tokenizer: Any,
        max_length: int,
        batch_size: int,
        *,
        packing: bool = True,
        length_bucketing: bool = True,
        end_of_text: bool = True,
        num_workers: int = 0,
        prefetch: int = 2,
        tokenizing_processes: int | None = None,
        context_length: int | None = None,
        progress: Progress = no_progress,
    ) -> BatchLoader:
        """Make a loader to evaluate with: each iteration yields the same batches, all of them.

        Args:
            texts: as for `create_train_loader`, and so are the others.
            tokenizer: see there.
            max_length: see there.
            batch_size: see there.
            packing: see there.
            length_bucketing: see there.
            end_of_text: see there.
            num_workers: see there.
            prefetch: see there.
            tokenizing_processes: see there.
            context_length: see there.
            progress: see there.

        Returns:
            A loader whose iterations begin at the beginning.

        Raises:
            DataError: as for `create_train_loader`.
        """
        return _loader(
            texts,
            tokenizer,
            max_length,
            batch_size,
            packing=packing,
            bucketing=length_bucketing,
            shuffle=False,
            seed=0,
            drop_last=False,
            end_of_text=end_of_text,
            num_workers=num_workers,
            prefetch=prefetch,
            processes=tokenizing_processes,
            context_length=context_length,
            progress=progress,
            resumes=False,
        )


def _loader(
    texts: Texts,
    tokenizer: Any,
    max_length: int,
    batch_size: int,
    *,
    packing: bool,
    bucketing: bool,
    shuffle: bool,
    seed: int,
    drop_last: bool,
    end_of_text: bool,
    num_workers: int,
    prefetch: int,
    processes: int | None,
    context_length: int | None,
    progress: Progress,
    resumes: bool,
) -> BatchLoader:
    _check_number("max_length", max_length, 2)
    _check_number("batch_size", batch_size, 1)
    _check_number("num_workers", num_workers, 0)
    _check_number("prefetch", prefetch, 1)
    if processes is not None:
        _check_number("tokenizing_processes", processes, 1)
    _check_limit(max_length, tokenizer.model_max_length, "its tokenizer gives")
    _check_limit(max_length, context_length, "it has a context of")

    from truthgpt_services.data.batch_sampler import Order
    from truthgpt_services.data.loader import BatchLoader
    from truthgpt_services.data.packing import plan_rows
    from truthgpt_services.data.token_store import open_tokens
    from truthgpt_services.data.tokenize import TextEncoder

    encoder = TextEncoder(tokenizer, end_of_text=end_of_text)
    store = open_tokens(texts, encoder, processes=processes, progress=progress)
    documents = len(store.lengths)
    if not documents:
        raise DataError("The data set is empty: it has no text")
    rows = plan_rows(store, width=max_length, packing=packing)
    if not len(rows):
        raise _nothing_left(documents, max_length, chats=store.loss is not None)
    order = Order(rows, batch_size, shuffle, bucketing and not packing, drop_last, seed)
    if not len(order):
        raise DataError(
            f"There are {len(rows)} rows, fewer than the {batch_size} of a batch, and a last "
            "batch that is smaller is left out",
            hint=f"Give batch_size={len(rows)} or less, or drop_last=False.",
        )
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return BatchLoader(
        store,
        rows,
        order,
        padding=next(token for token in ids if token is not None),
        num_workers=num_workers,
        prefetch=prefetch,
        resumes=resumes,
    )


def _check_number(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DataError(f"{name} is {value!r}, not an integer of {least} or more")


def _check_limit(max_length: int, limit: int | None, why: str) -> None:
    if limit is not None and max_length > limit and limit < _NO_LIMIT:
        raise DataError(
            f"max_length is {max_length}, more than the model takes: {why} {limit} tokens",
            hint=f"Give max_length={limit} or less.",
        )


def _nothing_left(documents: int, max_length: int, *, chats: bool) -> DataError:
    if chats:
        return DataError(
            f"Nothing can be learned from any of {documents} texts: within {max_length} tokens "
            "the assistant says nothing in them",
            hint="Give a larger max_length, or other conversations.",
        )
    return DataError(f"Nothing can be learned from any of {documents} texts: they are empty")
