"""An MMDiT trained on real digits, asked for in words: it draws what was asked, in the data's variety."""

from __future__ import annotations

import pytest
import torch

from pyflowcore.demo import classifier, digits, metrics, words

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")

EACH = 20


@pytest.fixture(scope="module")
def halves():
    """Half of the digits for the painter, and a judge that was trained on the other half alone."""
    data = digits.load(held_out=0.5)
    judge = classifier.train(
        digits.Digits(data.held_images, data.held_labels, data.images, data.labels), epochs=20
    )
    assert judge.accuracy(data.images, data.labels) > 0.93
    return data, judge


@pytest.fixture(scope="module")
def painted(halves):
    """The trained model, and images of every digit with the texts that asked for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = words.new_model()
    losses = words.train(model, halves[0])
    labels = torch.arange(10).repeat(EACH)
    texts = [words.phrase(int(label), row // 10) for row, label in enumerate(labels)]
    images = words.draw(model, texts, seeds=range(len(texts)))
    torch.set_num_threads(threads)
    return model, losses, labels, texts, images


def spread(images, labels):
    """Mean over the digits of a class's total variance."""
    return float(torch.stack([images[labels == digit].var(dim=0).sum() for digit in range(10)]).mean())


def test_training_gains(painted):
    losses = torch.tensor(painted[1])
    assert losses.isfinite().all() and losses[-100:].mean() < 0.6 * losses[:20].mean()


def test_images_show_what_was_asked(halves, painted):
    """Chance is 0.1."""
    _, _, labels, _, images = painted
    assert halves[1].accuracy(images, labels) > 0.8


def test_every_way_to_ask_is_understood(halves, painted):
    _, _, labels, texts, images = painted
    for form in range(len(words.FORMS)):
        rows = torch.tensor(
            [text == words.phrase(int(y), form) for text, y in zip(texts, labels, strict=True)]
        )
        assert int(rows.sum()) == 10 * EACH // len(words.FORMS)
        assert halves[1].accuracy(images[rows], labels[rows]) > 0.6, words.FORMS[form]


def test_images_vary_as_digits_do(halves, painted):
    """Neither one picture for each text, nor noise; and near real digits by the judge's features."""
    (data, judge), (_, _, labels, _, images) = halves, painted
    assert 0.45 < spread(images, labels) / spread(data.images, data.labels) < 1.5
    real = judge.features(data.held_images)
    noise = metrics.frechet_distance(judge.features(torch.randn_like(images).clamp(-1, 1)), real)
    mean = torch.stack([data.images[data.labels == digit].mean(dim=0) for digit in range(10)])
    means = metrics.frechet_distance(judge.features(mean[labels] + 0.01 * torch.randn_like(images)), real)
    found = metrics.frechet_distance(judge.features(images), real)
    assert found < 2.0 and found < 0.3 * min(noise, means), (found, noise, means)


def test_an_image_is_a_function_of_its_text_and_seed(painted):
    model, _, _, texts, images = painted
    torch.testing.assert_close(words.draw(model, texts[3:5], seeds=[3, 4]), images[3:5], rtol=0, atol=1e-3)
    other = words.draw(model, texts[3:4], seeds=[5])
    assert (other - images[3:4]).abs().max() > 0.1


def test_the_empty_text_draws_any_digit(halves, painted):
    drawn = words.draw(painted[0], [""] * 40, seeds=range(40), guidance=1.0)
    kinds = halves[1](drawn).argmax(dim=1).unique()
    assert len(kinds) >= 4


def test_phrases_fit_and_differ():
    texts = [words.phrase(digit, form) for digit in range(10) for form in range(len(words.FORMS))]
    assert len(set(texts)) == len(texts)
    assert max(len(text.encode()) + 1 for text in texts) == words.LENGTH
    assert words.phrase(7, 2) == "a seven" and words.phrase(7, 3) == "the digit 7"
