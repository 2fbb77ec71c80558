"""What a decoder starts from: the codec that it is to replace, or to grow from."""

import json

import pytest
import torch
from codec_fixtures import same
from safetensors.torch import load_file
from training_runs import crops, first_batches, script_arguments, small_codec

from transformers_walloc import WallocImageModel, bundled_path
from transformers_walloc.cli.train import main, parse_recipe
from transformers_walloc.codec.bottleneck import decompand
from transformers_walloc.codec.decoders import LinearDecoder
from transformers_walloc.training.growing import grow_from, revive
from transformers_walloc.training.start import make_model


def test_network_of_a_new_decoder_starts_at_the_published_codec(photos, tmp_path):
    published = WallocImageModel.from_pretrained(bundled_path("rgb-16x-klt")).eval()
    published.decoder = LinearDecoder(published.config)  # what a network of another shape can start from
    source = load_file(bundled_path("rgb-16x-klt") / "model.safetensors")
    published.decoder.linear.load_state_dict({n: source[f"decoder.linear.{n}"] for n in ("weight", "bias")})
    args = parse_recipe(script_arguments(photos, tmp_path, "--encoder_from", str(bundled_path("rgb-16x-klt"))))
    model = make_model(args, crops(photos)).eval()
    x = first_batches(crops(photos, "held"), 4, 1)[0]
    codes = published.quantize(published.encode(x).latents)
    assert torch.equal(model.quantize(model.encode(x).latents), codes)
    torch.testing.assert_close(model.decode(codes).pixel_values, published.decode(codes).pixel_values)
    assert (model.decoder.latent_std > 0.1).all()
    assert 1e-4 < model.decoder.subband_scale.min() < model.decoder.subband_scale.max() < 1.0


def test_decoder_of_the_same_shape_is_trained_on(photos, tmp_path):
    main(script_arguments(photos, tmp_path / "a", "--latent_channels", "4", "--step", "0.1", "--max_steps", "2"))
    first = tmp_path / "a" / "model"
    args = parse_recipe(script_arguments(photos, tmp_path / "b", "--continue_from", str(first)))
    model = make_model(args, crops(photos))
    trained = WallocImageModel.from_pretrained(first)
    assert all(same(value, trained.state_dict()[name]) for name, value in model.state_dict().items())
    main(script_arguments(photos, tmp_path / "b", "--continue_from", str(first), "--max_steps", "1"))
    recipe = json.loads((tmp_path / "b" / "model" / "recipe.json").read_text())
    assert recipe["earlier"] == json.loads((first / "recipe.json").read_text())


def test_a_wider_and_deeper_decoder_starts_as_the_one_that_the_codec_has(photos, tmp_path):
    published = WallocImageModel.from_pretrained(bundled_path("rgb-16x-klt")).eval()
    shape = ["--decoder_hidden_size", "80", "--decoder_num_layers", "10"]
    args = script_arguments(photos, tmp_path, "--continue_from", str(bundled_path("rgb-16x-klt")), *shape)
    torch.manual_seed(0)
    model = make_model(parse_recipe(args), crops(photos)).eval()
    assert (model.config.decoder_hidden_size, model.config.decoder_num_layers) == (80, 10)
    codes = torch.randint(-3, 4, (1, 12, 9, 7)).float()
    expected = published.decode(codes).pixel_values
    torch.testing.assert_close(model.decode(codes).pixel_values, expected, atol=1e-5, rtol=0)

    # The new parts are reached by gradients, at once or as soon as the first zeros have moved.
    def step():
        model.zero_grad()
        model.decode(codes).pixel_values.square().mean().backward()
        with torch.no_grad():
            for parameter in model.decoder.parameters():
                parameter -= parameter.grad
        return {name: value.grad.abs().amax().item() for name, value in model.decoder.named_parameters()}

    step()
    gradients = step()
    assert all(value > 0 for value in gradients.values()), gradients
    assert model.decoder.stem.weight.grad[64:].abs().amax() > 0
    assert model.decoder.blocks[3].conv1.weight.grad[:, 64:].abs().amax() > 0

    with pytest.raises(ValueError, match="a decoder of width 80 with 10 blocks does not fit into one of width 64"):
        grow_from(published.decoder, model.decoder)


def test_projection_and_restoration_learn_together_then_the_decoder_alone(photos, tmp_path):
    restoration = ["--decoder_type", "restoration", "--log_floor", "7e-4", "--learning_rate", "1e-3"]
    joint = ["--train_encoder", "--encoder_learning_rate", "0.01", "--rate_weight", "1e-5", "--latent_channels", "4"]
    main(script_arguments(photos, tmp_path / "a", *restoration, *joint, "--step", "0.1", "--max_steps", "3"))
    first = WallocImageModel.from_pretrained(tmp_path / "a" / "model")
    assert first.decoder.network.head.weight.abs().max() > 0
    gram = first.encoder.projection.weight[:, :, 0, 0] @ first.encoder.projection.weight[:, :, 0, 0].T
    assert (gram - gram.diag().diag()).abs().max() > 3e-4  # the closed form has orthogonal rows

    shape = ["--decoder_num_layers", "2", "--decoder_hidden_size", "12"]
    following = [*restoration, "--continue_from", str(tmp_path / "a" / "model"), *shape]
    args = parse_recipe(script_arguments(photos, tmp_path / "b", *following))
    grown = make_model(args, crops(photos)).eval()
    codes = torch.randint(-3, 4, (1, 4, 9, 7)).float()
    expected = first.eval().decode(codes).pixel_values
    torch.testing.assert_close(grown.decode(codes).pixel_values, expected, atol=1e-5, rtol=0)
    main(script_arguments(photos, tmp_path / "b", *following, "--refit_linear", "--max_steps", "1"))
    second = WallocImageModel.from_pretrained(tmp_path / "b" / "model")
    assert second.fingerprint() == first.fingerprint()
    assert not torch.equal(second.decoder.linear.weight, first.decoder.linear.weight)
    with pytest.raises(ValueError, match="a decoder of width 12 with 2 blocks does not fit into one of width 8 with 1"):
        grow_from(first.decoder, grown.decoder)


def test_silent_units_start_anew_without_a_change_of_the_decoder(photos):
    model = small_codec(photos, hidden_size=16)
    decoder, x = model.decoder, first_batches(crops(photos, size=64), 8, 1)[0]
    first, second = decoder.blocks[0].conv1, decoder.blocks[0].conv2
    with torch.no_grad():
        decoder.head.weight.normal_(std=0.02)
        first.bias[[2, 7, 11]] = -100.0
        z = decompand(model.quantize(model.encode(x).latents), model.config.latent_bits)
        before, kept = decoder(z), first.weight[3].clone()
        assert revive(decoder, z) == 3
        assert not second.weight[:, [2, 7, 11]].any()
        torch.testing.assert_close(decoder(z), before)
        assert same(first.weight[3], kept)
        assert revive(decoder, z) == 0
    decoder(z).square().mean().backward()
    assert (second.weight.grad[:, [2, 7, 11]].abs().amax(dim=(0, 2, 3)) > 0).all()


def test_another_number_of_channels_than_the_kept_encoder_has_is_refused(photos, tmp_path):
    arguments = ["--encoder_from", str(bundled_path("rgb-16x-klt")), "--latent_channels", "48"]
    with pytest.raises(ValueError, match=r"latent_channels is 48; .* has 12"):
        make_model(parse_recipe(script_arguments(photos, tmp_path, *arguments)), crops(photos))
