"""Stored latents with questions, streamed into a Trainer, augmented on the way; nothing is encoded or decoded."""

import numpy as np
import PIL.Image
import pytest
import skimage.data
import torch
from block_codecs import block_model
from datasets import Dataset, load_dataset
from pixel_models import AUTO_CLASSES
from pixel_processors import placeholder
from transformers import Trainer, TrainingArguments

from transformers_walloc import (
    LatentAugmentation,
    latent_transform,
    load_on_latents,
    load_processor_on_latents,
    transform_latents,
    write_latent_dataset,
)


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_vl"])
def test_streamed_rows_with_text(family, repositories, tmp_path, monkeypatch):
    codec = block_model()
    codec.save_pretrained(tmp_path / "blocks")
    name = str(tmp_path / "blocks")
    model = load_on_latents(repositories(family), name, AUTO_CLASSES[family])
    processor = load_processor_on_latents(repositories(family), model, name)
    size = processor.image_processor.input_size() or (64, 96)
    pictures = [PIL.Image.fromarray(skimage.data.astronaut()[20 * i : 20 * i + 90, 100:200]) for i in range(4)]
    rows = Dataset.from_dict({"image": pictures, "question": ["what is the total"] * 4, "answer": ["word30"] * 4})
    write_latent_dataset(rows, tmp_path / "latents", name, storage="int8", size=size, progress=False)

    augment = LatentAugmentation(codec, flips=True, brightness=0.3)
    read = latent_transform(name, content="latents", output_name="image", augmentation=augment)
    stream = load_dataset(str(tmp_path / "latents"), split="train", streaming=True)
    stream = stream.map(read, batched=True, batch_size=2, remove_columns=["latents"])
    monkeypatch.setattr(type(codec), "decode", None)  # neither pictures nor an encoder are needed
    batches = []

    def collate(rows):
        texts = [f"{placeholder(family)} {row['question']} {row['answer']}" for row in rows]
        inputs = processor(images=[[row["image"]] for row in rows], text=texts, padding=True, return_tensors="pt")
        batches.append(inputs["pixel_values"])
        return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}

    args = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=4,
        per_device_train_batch_size=2,
        accelerator_config={"dispatch_batches": False},  # a batch has patches of all pictures in one axis
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    torch.manual_seed(0)
    result = Trainer(model, args, collate, stream).train()
    assert np.isfinite(result.training_loss) and len(batches) >= 4  # two epochs of two batches
    # The second epoch is another draw of the same pictures.
    assert batches[0].shape == batches[2].shape and not batches[0].equal(batches[2])


def test_augmented_latents_are_those_of_the_moved_picture(repositories, tmp_path):
    """A flip of what is stored reaches the model as the flipped picture does."""
    codec = block_model()
    codec.save_pretrained(tmp_path)
    model = load_on_latents(repositories("smolvlm"), str(tmp_path), AUTO_CLASSES["smolvlm"])
    processor = load_processor_on_latents(repositories("smolvlm"), model, str(tmp_path), do_image_splitting=False)
    height, width = processor.image_processor.input_size()
    picture = skimage.data.astronaut()[:height, 100 : 100 + width].copy()
    x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 - 0.5
    with torch.no_grad():
        latents = transform_latents(codec.encode(x).latents[0], codec.config, "hflip")
    text = f"{placeholder('smolvlm')} what is"
    stored = processor(images=[[latents]], text=[text], return_tensors="pt")["pixel_values"]
    moved = processor(images=[[picture[:, ::-1].copy()]], text=[text], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(stored, moved, rtol=1e-3, atol=1e-3)
