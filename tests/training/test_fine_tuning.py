"""What `prepare_for_training` leaves to learn."""

import logging

import pytest
import torch
from codec_fixtures import image_inputs, image_model, pictures

from transformers_walloc.training.fine_tuning import prepare_for_training


@pytest.mark.parametrize("train_encoder", [False, True])
def test_encoder_keeps_its_meaning_unless_asked(train_encoder, caplog):
    codec = image_model()
    before = codec.fingerprint()
    logging.getLogger("transformers_walloc").addHandler(caplog.handler)
    codec = prepare_for_training(codec, train_encoder)
    assert codec.training
    optimizer = torch.optim.SGD([p for p in codec.parameters() if p.requires_grad], lr=0.01)
    decoder = codec.decoder.linear.weight.detach().clone()
    codec(**image_inputs(pictures()[1][:64, :64])).loss.backward()
    optimizer.step()
    assert not torch.equal(codec.decoder.linear.weight, decoder)
    assert (codec.fingerprint() != before) == train_encoder
    assert (f"codec {before} will not open" in caplog.text) == train_encoder
