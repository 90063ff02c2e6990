"""The last layer that a network gets when what it learnt before is to serve other classes."""

import pytest
import timm
import torch
from torch import nn

from qrdali import models
from qrdali.network_heads import head_names, renew_heads


def test_a_fresh_head_on_trained_weights_does_not_drown_them() -> None:
    """timm draws an EfficientNet's head from ±1 / √classes: with few classes tens of times too large."""
    trained = models.create("tf_efficientnet_lite0", 1000).state_dict()
    six = models.with_new_head("tf_efficientnet_lite0", trained, 6)
    head = six.get_submodule("classifier")
    assert isinstance(head, nn.Linear)
    assert head.weight.shape == (6, 1280)
    limit = 1280**-0.5
    assert float(head.weight.detach().abs().max()) <= limit
    assert float(head.weight.detach().std()) == pytest.approx(limit / 3**0.5, rel=0.05)
    assert all(
        torch.equal(value, trained[key]) for key, value in six.state_dict().items() if "classifier" not in key
    )
    # From scratch, the network is timm's own.
    alone = models.create("tf_efficientnet_lite0", 6).get_submodule("classifier")
    assert isinstance(alone, nn.Linear)
    assert float(alone.weight.detach().abs().max()) > 10 * limit


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "test_vit", "test_resnet", "torchvision/mobilenet_v3_small"]
)
def test_only_the_head_is_drawn_anew(name: str) -> None:
    model = models.create(name, 5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    renew_heads(model)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    (head,) = head_names(model)
    assert f"{head}.weight" in changed
    assert changed <= {f"{head}.weight", f"{head}.bias"}


@pytest.mark.parametrize(("classes", "is_fresh"), [(1000, False), (5, True)])
def test_published_weights_keep_their_own_head(
    classes: int, is_fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded: the published network is one whose head says that it is published."""
    make = timm.create_model

    def published(name: str, num_classes: int, pretrained: bool) -> nn.Module:
        assert pretrained
        model = make(name, num_classes=num_classes)
        nn.init.constant_(model.get_submodule("fc").weight, 7)
        return model

    monkeypatch.setattr(timm, "create_model", published)
    model = models.create("test_resnet", classes, pretrained=True)
    weight = model.get_submodule("fc").weight
    assert bool((weight == 7).all()) is not is_fresh
