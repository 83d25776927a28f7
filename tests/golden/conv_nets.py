"""Tiny convolutional networks with the switches that tests/golden/systems/resnet, x_vgg and
x_lenet5 do not have.

    python tests/golden/conv_nets.py

Writes config.json, model.safetensors and expected.safetensors to tests/golden/conv_nets/NAME.
Made with transformers 5.23.0 and torch 2.15.0 on a CPU.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

SIZES = dict(embedding_size=6, hidden_sizes=[8, 12], depths=[2, 1], num_labels=3)

RESNETS = {
    "resnet_basic": ResNetConfig(**SIZES, layer_type="basic", downsample_in_first_stage=True),
    "resnet_v1": ResNetConfig(**SIZES, layer_type="bottleneck", downsample_in_bottleneck=True),
}


class Vgg(nn.Module):
    """torchvision's names: a batch norm behind convolutions that have biases."""

    def __init__(self):
        super().__init__()
        block = lambda i, o: [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
        self.features = nn.Sequential(*block(3, 4), nn.MaxPool2d(2), *block(4, 6), nn.MaxPool2d(2))
        self.avgpool = nn.AdaptiveAvgPool2d(3)
        self.classifier = nn.Sequential(nn.Linear(54, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))

    def forward(self, pixels):
        return self.classifier(torch.flatten(self.avgpool(self.features(pixels)), 1))


class Lenet(nn.Module):
    """LeNet-5 as it is written since: rectifiers, largest values, 28x28 padded to 32x32; small matrices."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 12), nn.Linear(12, 9), nn.Linear(9, 10)

    def forward(self, pixels):
        seen = lambda conv, x: torch.max_pool2d(conv(x).relu(), 2)
        x = torch.flatten(seen(self.conv2, seen(self.conv1, pixels)), 1)
        return self.fc3(self.fc2(self.fc1(x).relu()).relu())


def trained(model):
    """Statistics that no initialisation has."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def write(name, model, **expected):
    out = Path(__file__).parent / "conv_nets" / name
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()}, out / "model.safetensors")
    save_file({k: v.detach().contiguous() for k, v in expected.items()}, out / "expected.safetensors")
    return out


def main():
    pixels = torch.randn(2, 3, 33, 26, generator=torch.Generator().manual_seed(5))
    for name, config in RESNETS.items():
        torch.manual_seed(7)
        model = trained(ResNetForImageClassification(config))
        got = model(pixels, output_hidden_states=True)
        stages = {f"mid.stage{i}": states for i, states in enumerate(got.hidden_states)}
        out = write(name, model, **{"in.pixel_values": pixels, "out.logits": got.logits}, **stages)
        config.architectures = ["ResNetForImageClassification"]
        (out / "config.json").write_text(config.to_json_string())
    torch.manual_seed(9)
    vgg = trained(Vgg())
    write("vgg_norm", vgg, **{"in.pixel_values": pixels, "out.logits": vgg(pixels)})
    torch.manual_seed(11)
    lenet, digits = Lenet().eval(), torch.randn(2, 1, 28, 28)
    out = write("lenet_max", lenet, **{"in.pixel_values": digits, "out.logits": lenet(digits)})
    (out / "config.json").write_text(json.dumps(dict(act="relu", pool="max", padding=2)) + "\n")


main()
