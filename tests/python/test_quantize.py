"""quantize_q against its formula in plain torch, and strided inputs."""

import pytest
import torch

import snapmla


def rotate(x, cos_sin, interleaved):
    """RoPE on the last dimension, in fp32, rounded to bf16 once; cos_sin broadcasts against x's rows."""
    cos, sin = cos_sin[..., :32], cos_sin[..., 32:]
    x = x.float()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :32], x[..., 32:])
    first, second = a * cos - b * sin, b * cos + a * sin
    pair = torch.stack([first, second], -1).flatten(-2) if interleaved else torch.cat([first, second], -1)
    return pair.bfloat16()


def angles(num_positions, device):
    angle = torch.arange(num_positions)[:, None] * 10000.0 ** (-torch.arange(32) / 32)
    return torch.cat([angle.cos(), angle.sin()], -1).float().to(device)


def query(device, *shape, scale=1.0):
    torch.manual_seed(1)
    rows = torch.randn(*shape, 512) * torch.rand(*shape, 1).mul(20).sub(10).exp2() * scale
    return rows.bfloat16().to(device), torch.randn(*shape, 64).mul(100).bfloat16().to(device)


def check(q, latent, rope, rule):
    amax = latent.float().abs().amax(-1)
    assert torch.equal(q.scale, snapmla.quantization_scale(amax, rule))
    scale = q.scale[..., None]
    assert torch.equal(q.latent.view(torch.uint8), (latent.float() / scale).to(torch.float8_e4m3fn).view(torch.uint8))
    assert torch.equal(q.rope, (rope.float() / scale).bfloat16())
    # The bound that the docstring states.
    real, stored = latent.double(), q.latent.double() * scale.double()
    bound = torch.maximum(2**-4 * real.abs(), 2**-10 * scale.double()) * (1 + 2**-22)  # "amax": the quotient rounds too
    assert ((stored - real).abs() <= bound).all()


@pytest.mark.parametrize("rule", ["pow2", "amax"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (2, 1, 128)])
def test_formula(device, rule, shape):
    latent, rope = query(device, *shape)
    check(snapmla.quantize_q(latent, rope, scale_rule=rule), latent, rope, rule)


def test_rows_side_by_side(device):
    """Without q_rope, q_latent holds both, and nothing is copied: the rows need not be dense."""
    latent, rope = query(device, 3, 2, 5)
    rows = torch.cat([latent, rope, latent[..., :8]], -1)[..., :576]
    for got, want in zip(snapmla.quantize_q(rows, None), snapmla.quantize_q(latent, rope)):
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


def test_scales():
    amax = torch.tensor([0.0, 448.0, 449.0, 447.0, 1.0, 2**-45, 1e30, torch.inf, torch.nan])
    pow2 = snapmla.quantization_scale(amax)
    assert pow2.tolist() == [1.0, 1.0, 2.0, 1.0, 2**-8, 2**-40, 2.0**40, 1.0, 1.0]
    amax_rule = snapmla.quantization_scale(amax[:6], "amax")
    assert torch.allclose(amax_rule, amax[:6].clamp_min(1e-26) / 448)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotation(device, interleaved):
    latent, rope = query(device, 3, 2, 4)
    cos_sin = angles(50, device)
    positions = torch.tensor([[0, 1], [7, 8], [48, 49]], dtype=torch.int32, device=device)
    q = snapmla.quantize_q(latent, rope, cos_sin=cos_sin, positions=positions, interleaved=interleaved)
    check(q, latent, rotate(rope, cos_sin[positions.long()][:, :, None], interleaved), "pow2")


def test_strided_inputs(device):
    """Slices of one projection [batch, s, heads, 576], a transposed one, and one at an odd offset."""
    torch.manual_seed(1)
    whole = torch.randn(2, 3, 8, 576).bfloat16().to(device)
    dense = snapmla.quantize_q(whole[..., :512].contiguous(), whole[..., 512:].contiguous())
    transposed = whole.transpose(1, 2).contiguous().transpose(1, 2)
    offset = torch.empty(whole.numel() + 8, dtype=whole.dtype, device=device)[8:].view_as(whole).copy_(whole)
    for tensor in (whole, transposed, offset):
        for got, want in zip(snapmla.quantize_q(tensor[..., :512], tensor[..., 512:]), dense):
            assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


def test_out(device):
    latent, rope = query(device, 2, 1, 4)
    want = snapmla.quantize_q(latent, rope)
    out = tuple(torch.empty_like(x).view(torch.uint8).fill_(0xFF).view(x.dtype) for x in want)
    got = snapmla.quantize_q(latent, rope, out=out)
    for a, b, c in zip(got, out, want):
        assert a is b and torch.equal(a.view(torch.uint8), c.view(torch.uint8))
