#!/usr/bin/env python
"""Questions on documents with a vision-language model on latents: fold, train, evaluate, save, push.

    pip install ".[examples]"  # in a checkout
    python examples/document_vqa.py --model HuggingFaceTB/SmolVLM-256M-Instruct --codec walloc/rgb-f16c48 \\
        --dataset lmms-lab/DocVQA --dataset_config DocVQA --split validation --output_dir docvqa-on-latents \\
        --lora_rank 16 --max_steps 2000 --image_options '{"do_image_splitting": false}'
    python examples/document_vqa.py --dataset docvqa-latents --split validation  # of encode_dataset.py

A page costs as many tokens as on pixels, and a token sees 16 times as many of them. `rgb-f16c48` fits patches of 16
pixels, `rgb-16x` those of 14. Qwen2-VL and its kin take a budget: `--model Qwen/Qwen2-VL-2B-Instruct --codec
walloc/rgb-16x --image_options '{"max_pixels": 762048}'` gives 972 tokens. The data set has columns `image` (or
`latents`, of `encode_dataset.py`), `question` and `answers`; a folder with `metadata.jsonl` does as well.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments, set_seed

from transformers_walloc import load_on_latents, load_processor_on_latents
from transformers_walloc.latents.families import family_of

IGNORED = -100


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Returns ANLS and exact matches in percent, before and after training."""
    options = parser().parse_args(arguments)
    set_seed(options.seed)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = load_on_latents(options.model, options.codec, AutoModelForImageTextToText, halo=options.halo, dtype=dtype)
    processor = load_processor_on_latents(options.model, model, options.codec, **json.loads(options.image_options))
    processor.tokenizer.padding_side = "right"
    data = load_dataset(options.dataset, options.dataset_config, split=options.split)
    parts = data.train_test_split(options.test_size, seed=options.seed)
    test = parts["test"].select(range(min(options.max_eval_samples, len(parts["test"]))))
    found = {f"{name}_before": value for name, value in evaluate(model, processor, test, options).items()}

    trained = with_adapters(model, options.lora_rank) if options.lora_rank else model
    training = TrainingArguments(
        options.output_dir,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.max_steps // 20,
        bf16=torch.cuda.is_available(),
        logging_steps=10,
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_num_workers=options.workers,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
    )
    Trainer(trained, training, partial(collate, processor), parts["train"]).train()
    model = trained.merge_and_unload() if options.lora_rank else trained
    found.update(evaluate(model, processor, test, options))

    model.save_pretrained(options.output_dir)
    processor.save_pretrained(options.output_dir)
    if options.push_to_hub:
        model.push_to_hub(options.push_to_hub)
        processor.push_to_hub(options.push_to_hub)
    print(json.dumps(found, indent=2))
    return found


def with_adapters(model: Any, rank: int) -> Any:
    """LoRA on attention, and the patch embedding, which is new to its inputs, in full."""
    from peft import LoraConfig, get_peft_model

    embedding = family_of(model.config).embedding
    projections = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=projections))
    for name, parameter in adapted.named_parameters():
        if f"{embedding}." in name:
            parameter.requires_grad_(True)
    return adapted


def prompt_of(processor: Any, question: str) -> str:
    parts = [{"type": "image"}, {"type": "text", "text": f"{question} Answer briefly."}]
    return processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)


def collate(processor: Any, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pages or stored latents with their questions; the loss counts answers alone."""
    tokenizer = processor.tokenizer
    answers = [f" {row['answers'][0]}{tokenizer.eos_token}" for row in rows]
    texts = [prompt_of(processor, row["question"]) + answer for row, answer in zip(rows, answers, strict=True)]
    images = [[row["latents"] if "latents" in row else row["image"]] for row in rows]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for row, answer in enumerate(answers):
        end = int(inputs["attention_mask"][row].sum())
        start = end - len(tokenizer(answer, add_special_tokens=False)["input_ids"])
        labels[row, start:end] = inputs["input_ids"][row, start:end]
    return {**inputs, "labels": labels}


@torch.no_grad()
def evaluate(model: Any, processor: Any, rows: Any, options: argparse.Namespace) -> dict[str, float]:
    """ANLS and exact matches in percent."""
    model.eval()
    scores, exact = [], []
    for row in rows:
        images = [[row["latents"] if "latents" in row else row["image"]]]
        inputs = processor(images=images, text=[prompt_of(processor, row["question"])], return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        tokens = model.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False)
        answer = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        scores.append(max(anls(truth, answer) for truth in row["answers"]))
        exact.append(any(truth.strip().lower() == answer.strip().lower() for truth in row["answers"]))
    return {"anls": 100 * sum(scores) / len(scores), "exact_match": 100 * sum(exact) / len(exact)}


def anls(truth: str, answer: str) -> float:
    """Normalised Levenshtein similarity of an answer, 0 where it is below 0.5 (Biten et al., ICDAR 2019)."""
    a, b = truth.strip().lower(), answer.strip().lower()
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    distance = row[-1] / max(len(a), len(b), 1)
    return 1 - distance if distance < 0.5 else 0.0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolVLM-256M-Instruct", help="of pixels")
    parser.add_argument("--codec", default="walloc/rgb-f16c48")
    parser.add_argument("--halo", type=int, default=0, help="latents around a patch that it sees as well")
    parser.add_argument("--image_options", default="{}", help="JSON: budget or tiling of the image processor")
    parser.add_argument("--dataset", required=True, help="Hub id, or folder")
    parser.add_argument("--dataset_config", help="which configuration of a data set that has several")
    parser.add_argument("--split", default="train")
    parser.add_argument("--test_size", type=float, default=0.1)
    parser.add_argument("--max_eval_samples", type=int, default=200)
    parser.add_argument("--max_new_tokens", type=int, default=32)
    parser.add_argument("--lora_rank", type=int, default=0, help="0 trains all weights")
    parser.add_argument("--max_steps", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="docvqa-on-latents")
    parser.add_argument("--push_to_hub", help="repository, owner/name")
    return parser


if __name__ == "__main__":
    main()
