"""The optimiser of the decoders, against torch's own Muon and the singular value decomposition."""

import pytest
import torch

from transformers_walloc.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalised_matrices_keep_their_singular_vectors_and_lose_their_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    in_that_basis = u.T @ orthogonalise(matrix) @ v.T
    values = in_that_basis.diagonal()
    assert values.min() > 0.3 and values.max() < 1.3
    assert (in_that_basis - values.diag()).abs().max() < 1e-9


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_matrices_move_as_with_the_muon_of_torch():
    generator = torch.Generator().manual_seed(0)
    start, gradients = (torch.randn(*size, 12, 20, generator=generator) for size in ((), (5,)))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizer = Muon([{"params": [ours], "muon": True}], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved  # torch computes the update in bfloat16


def test_centred_convolutions_learn_as_if_the_mean_of_their_inputs_were_taken_off():
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(4, channels, 9, 9, generator=generator) + 2.0 for channels in (5, 6))
    mean = x.mean(dim=(0, 2, 3))[:, None, None]
    plain, explicit = (torch.nn.Conv2d(5, 6, 3) for _ in range(2))
    with torch.no_grad():
        explicit.weight.copy_(plain.weight)
        explicit.bias.copy_(plain.bias + (plain.weight * mean).sum(dim=(1, 2, 3)))

    def train(layer, read, **options):
        groups = [{"params": [layer.weight], "muon": True, "lr": 0.02}, {"params": [layer.bias]}]
        optimizer = Muon(groups, lr=1e-3, weight_decay=0.0, **options)
        for _ in range(20):
            layer.zero_grad()
            (read(x) - target[:, :, 1:-1, 1:-1]).square().mean().backward()
            optimizer.step()
        return read(x)

    ours = train(plain, plain, centred=[plain])
    start = explicit(x - mean)
    theirs = train(explicit, lambda x: explicit(x - mean))
    assert (theirs - start).std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_centring_needs_a_bias():
    layer = torch.nn.Conv2d(2, 2, 3, bias=False)
    with pytest.raises(ValueError, match="without a bias"):
        Muon([{"params": [layer.weight], "muon": True}], centred=[layer])


def test_rows_that_have_died_away_do_not_disturb_the_others():
    matrix = torch.randn(16, 48, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([matrix, torch.full((4, 48), 1e-44)])
    result = orthogonalise(padded)
    torch.testing.assert_close(result[:16], orthogonalise(matrix))
    assert not result[16:].any()


def test_the_other_groups_are_those_of_adamw():
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(7, generator=generator), torch.randn(3, 7, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    kernel = torch.nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator))
    optimizer = Muon([{"params": [kernel], "muon": True}, {"params": [ours]}], lr=0.02)
    reference = torch.optim.AdamW([theirs], lr=0.02)
    for gradient in gradients:
        kernel.grad = torch.randn(kernel.shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    assert torch.equal(ours, theirs)


def test_state_is_saved_and_restored():
    def run(steps, state=None, start=None):
        kernel = torch.nn.Parameter(torch.ones(4, 3, 3) if start is None else start)
        optimizer = Muon([{"params": [kernel], "muon": True}], lr=0.02)
        if state:
            optimizer.load_state_dict(state)
        for step in steps:
            kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        return kernel.detach().clone(), optimizer.state_dict()

    whole, _ = run(range(4))
    half, state = run(range(2))
    assert torch.equal(run(range(2, 4), state, half)[0], whole)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="two dimensions"):
        Muon([{"params": [torch.nn.Parameter(torch.ones(3))], "muon": True}])
