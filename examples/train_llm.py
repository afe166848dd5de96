"""Train a language model with the services, the loop in your own hands.

    python examples/train_llm.py examples/train_llm.yaml

`truthgpt train` does the same with one command, and more: mixed precision, checkpoints to go on
from, several processes. This is for those who want to see or to change what happens between two
epochs.
"""

from __future__ import annotations

import sys

import torch
from transformers import get_cosine_schedule_with_warmup

from truthgpt_core.application import get_application
from truthgpt_core.config import ConfigManager
from truthgpt_core.event_system import EventType, on_event
from truthgpt_services import ModelService, TrainingService
from truthgpt_services.data import DataLoaderFactory, DatasetManager


def main() -> None:
    """Train as the file on the command line says."""
    (file,) = sys.argv[1:]
    application = get_application()
    models: ModelService = application.get_service("model_service")
    training: TrainingService = application.get_service("training_service")
    config = ConfigManager.load_config(file)
    on_event(
        EventType.TRAINING_STEP,
        lambda event: print(f"step {event.data['step']}: loss {event.data['loss']:.4f}"),
    )

    model = models.load_model(config.model.name_or_path)
    tokenizer = models.load_tokenizer(config.model.name_or_path)
    train_texts, val_texts = DatasetManager.load_dataset(
        source=config.data.source, dataset_name=config.data.dataset
    )
    # A little of it, for a run of a minute or two.
    train_texts, val_texts = train_texts[:3], val_texts[:1]
    length = config.data.max_seq_len
    train_loader = DataLoaderFactory.create_train_loader(
        texts=train_texts,
        tokenizer=tokenizer,
        max_length=length,
        batch_size=config.training.train_batch_size,
    )
    val_loader = DataLoaderFactory.create_val_loader(
        texts=val_texts,
        tokenizer=tokenizer,
        max_length=length,
        batch_size=config.training.eval_batch_size,
    )

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.training.learning_rate)
    steps = len(train_loader) * config.training.epochs
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    training.configure(
        config=config.training.__dict__,
        model=model,
        train_loader=train_loader,
        val_loader=val_loader,
        optimizer=optimizer,
        scheduler=scheduler,
        device=device,
        output_dir=config.output_dir,
    )
    print(f"before: {training.evaluate(model, val_loader, device)}")
    for epoch in range(config.training.epochs):
        training.train_epoch(model, train_loader, optimizer, scheduler, None, epoch)
        print(f"epoch {epoch}: {training.evaluate(model, val_loader, device)}")
    training.finish()
    model.save_pretrained(config.output_dir)
    tokenizer.save_pretrained(config.output_dir)
    print(f"truthgpt chat {config.output_dir}")


if __name__ == "__main__":
    main()
