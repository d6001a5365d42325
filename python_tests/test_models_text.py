"""The byte encoder: what it makes of texts, that padding is nothing, that order and every byte matter."""

import pytest
import torch

from pyflowcore.models.text import BEGIN, PADDING, ByteEncoder

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a seven", "", "Ein größerer Text, länger als die anderen", "七"]


def encoder(**changes):
    torch.manual_seed(0)
    return ByteEncoder(**{"width": 16, "depth": 2, "heads": 2, "max_length": 48, **changes}).double()


def test_tokens_are_the_bytes_behind_a_first_token():
    tokens, mask = encoder().encode(TEXTS)
    assert tokens.dtype == torch.int64 and mask.dtype == torch.bool and tokens.shape == mask.shape
    for row, real, text in zip(tokens, mask, TEXTS, strict=True):
        data = list(text.encode("utf-8"))
        assert row[real].tolist() == [BEGIN, *data]
        assert real.tolist() == [True] * (1 + len(data)) + [False] * (len(row) - 1 - len(data))
        assert set(row[~real].tolist()) <= {PADDING}
    assert tokens.shape[1] == 1 + max(len(text.encode()) for text in TEXTS)
    assert encoder().encode(["ab"], length=9)[0].shape == (1, 9)
    assert encoder().encode([])[0].shape == (0, 1)


def test_shapes_and_zeros_at_padding():
    model = encoder()
    tokens, mask = model.encode(TEXTS)
    text, same, pooled = model(tokens, mask)
    assert text.shape == (*tokens.shape, 16) and pooled.shape == (4, 16) and torch.equal(same, mask)
    assert (text[~mask] == 0).all() and (text[mask].abs().amax(dim=-1) > 0).all()
    assert torch.equal(pooled, text[:, 0])
    read = model.read(TEXTS)
    assert torch.equal(read["text"], text) and torch.equal(read["mask"], mask)
    assert torch.equal(read["pooled"], pooled)


def test_what_a_masked_token_is_changes_nothing_to_the_bit():
    model = encoder()
    tokens, mask = model.encode(TEXTS)
    junk = torch.randint(0, 256, tokens.shape, generator=torch.Generator().manual_seed(1))
    before, after = model(tokens, mask), model(torch.where(mask, tokens, junk), mask)
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])


def test_padding_and_company_change_nothing():
    model = encoder()
    together = model.read(TEXTS)
    for row, text in enumerate(TEXTS):
        for length in (None, 48):
            alone = model.read([text], length=length)
            count = int(alone["mask"].sum())
            torch.testing.assert_close(
                alone["text"][0, :count], together["text"][row, :count], rtol=1e-12, atol=1e-12
            )
    assert all(value.isfinite().all() for value in model(*_nothing(model)) if value.is_floating_point())


def _nothing(model):
    tokens, mask = model.encode(TEXTS)
    return tokens, torch.zeros_like(mask)


def test_every_byte_and_its_place_matter():
    model = encoder()
    texts = ["abcd", "abce", "bacd", "abcdd", "abc"]
    pooled = model.read(texts)["pooled"]
    assert torch.cdist(pooled, pooled).fill_diagonal_(1.0).min() > 1e-3


def test_gradients_reach_every_parameter():
    model = encoder(max_length=45)
    text, _, pooled = model(*model.encode(TEXTS, length=45))
    (text.sin().sum() + pooled.cos().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    used = torch.cat([model.encode(TEXTS)[0][row, real] for row, real in enumerate(model.encode(TEXTS)[1])])
    felt = model.embed.weight.grad.abs().amax(dim=1) > 0
    assert felt[used].all() and not felt[ord("~")] and not felt[PADDING]


def test_config_makes_it_again():
    model = encoder()
    again = ByteEncoder(**model.config).double()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.read(TEXTS)["pooled"], model.read(TEXTS)["pooled"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encoder(heads=3), "width must be a multiple of heads"),
        (lambda: encoder(depth=0), "depth and max_length must be at least 1"),
        (lambda: encoder().encode("seven"), "texts must be a list of strings"),
        (lambda: encoder().encode(["x" * 48]), "at most max_length=48; the longest needs 49"),
        (lambda: encoder().encode(["seven"], length=5), "length=5 tokens"),
        (lambda: encoder().encode(["a"], length=50), "at most max_length=48"),
        (lambda: encoder()(torch.zeros(3).long(), torch.ones(3).bool()), r"tokens must be \[B, L\]"),
        (lambda: encoder()(torch.zeros(1, 49).long(), torch.ones(1, 49).bool()), "L from 1 to 48"),
        (lambda: encoder()(torch.zeros(1, 4).long(), torch.ones(1, 3).bool()), "mask must be"),
        (lambda: encoder()(torch.zeros(1, 4).long(), torch.ones(1, 4)), "of bool"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
