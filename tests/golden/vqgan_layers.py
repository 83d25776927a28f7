"""Writes vqgan/layers.safetensors: samples of every layer's output for the first golden picture.

The network is written out again in float64 NumPy from its description, sharing
no code with the Rust implementation, and nothing is written unless its latents,
codes and pictures agree with the official ones in vqgan/io.safetensors.

    pip install numpy safetensors && python3 tests/golden/vqgan_layers.py
"""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

FOLDER = pathlib.Path(__file__).parent / "vqgan"
SAMPLES = 512
TYPES = {"F32": (np.uint32, 0), "BF16": (np.uint16, 16), "I32": (np.int32, None), "U8": (np.uint8, None)}


def read(name):
    """Tensors of a safetensors file; bf16 widens to f32, floats to f64."""
    data = (FOLDER / name).read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for key, info in json.loads(data[8 : 8 + size]).items():
        if key == "__metadata__":
            continue
        start, end = info["data_offsets"]
        dtype, shift = TYPES[info["dtype"]]
        value = np.frombuffer(data[8 + size + start : 8 + size + end], dtype)
        if shift is not None:
            value = (value.astype(np.uint32) << shift).view(np.float32).astype(np.float64)
        tensors[key] = value.reshape(info["shape"])
    return tensors


class Network:
    """The VQGAN over one picture [h, w, c]; `layers` collects what each layer gives."""

    def __init__(self, weights, config):
        self.weights, self.config, self.layers = weights, config, {}

    def keep(self, path, y):
        self.layers[path.replace("/", ".")] = y
        return y

    def raw_conv(self, path, x, pad):
        kernel, bias = self.weights[path + "/kernel"], self.weights[path + "/bias"]
        side, stride = kernel.shape[0], 2 if pad == (0, 1) else 1
        x = np.pad(x, (pad, pad, (0, 0)))
        height, width = ((n - side) // stride + 1 for n in x.shape[:2])
        y = np.zeros((height, width, kernel.shape[3])) + bias
        for i in range(side):
            for j in range(side):
                y += x[i : i + height * stride : stride, j : j + width * stride : stride][:height, :width] @ kernel[i, j]
        return y

    def conv(self, path, x, pad=(1, 1), layer=None):
        return self.keep(layer or path, self.raw_conv(path, x, pad))

    def norm_silu(self, path, x):
        height, width, channels = x.shape
        groups = x.reshape(height * width, 32, channels // 32)
        mean = groups.mean(axis=(0, 2), keepdims=True)
        variance = groups.var(axis=(0, 2), keepdims=True)
        y = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
        y = y * self.weights[path + "/scale"] + self.weights[path + "/bias"]
        return self.keep(path, y / (1 + np.exp(-y)))

    def resnet(self, path, x):
        y = self.norm_silu(path + "/GroupNorm_0", x)
        y = self.conv(path + "/Conv_0", y)
        y = self.norm_silu(path + "/GroupNorm_1", y)
        y = self.raw_conv(path + "/Conv_1", y, (1, 1))
        if path + "/Conv_2/kernel" in self.weights:
            x = self.conv(path + "/Conv_2", x, (0, 0))
        return self.keep(path, y + x)

    def encode(self, x):
        levels = len(self.config["channel_mult"])
        x = self.conv("encoder/Conv_0", x)
        for level in range(levels):
            path = f"encoder/DownsamplingBlock_{level}"
            for i in range(self.config["num_res_blocks"]):
                x = self.resnet(f"{path}/ResnetBlock_{i}", x)
            if level < levels - 1:
                x = self.conv(path + "/Downsample_0/Conv_0", x, (0, 1))
        for i in range(2):
            x = self.resnet(f"encoder/MidBlock_0/ResnetBlock_{i}", x)
        x = self.norm_silu("encoder/GroupNorm_0", x)
        x = self.conv("encoder/Conv_1", x)
        return self.conv("quant_conv", x, (0, 0))

    def decode(self, codes):
        levels = len(self.config["channel_mult"])
        x = self.conv("post_quant_conv", self.weights["quantize/embeddings"][codes], (0, 0))
        x = self.conv("decoder/Conv_0", x)
        for i in range(2):
            x = self.resnet(f"decoder/MidBlock_0/ResnetBlock_{i}", x)
        for step in range(levels):
            path = f"decoder/UpsamplingBlock_{step}"
            for i in range(self.config["num_res_blocks"] + 1):
                x = self.resnet(f"{path}/ResnetBlock_{i}", x)
            if step < levels - 1:
                x = self.conv(path + "/Upsample_0/Conv_0", x.repeat(2, axis=0).repeat(2, axis=1))
        x = self.norm_silu("decoder/GroupNorm_0", x)
        return self.conv("decoder/Conv_1", x)


def agree(what, got, official, tolerance):
    worst = np.abs(got - official).max()
    print(f"{what}: {worst:.1e} from the official values")
    assert worst <= tolerance, what


def sample(y):
    """About SAMPLES elements of y, an odd step apart in row-major order."""
    step = y.size // SAMPLES | 1
    return y.reshape(-1)[::step].astype(np.float32)


def main():
    manifest = json.loads((FOLDER.parent / "manifest.json").read_text())
    io = read("io.safetensors")
    network = Network(read("weights.safetensors"), manifest["parts"]["vqgan"]["config"])
    z = network.encode(io["pixels"][0])
    agree("z", z, io["z"][0], 5e-5)
    rows = network.weights["quantize/embeddings"]
    distances = ((z[:, :, None] - rows) ** 2).sum(-1)
    assert (distances.argmin(-1) == io["indices"][0]).all(), "codes"
    decoded = network.decode(io["indices"][0])
    agree("decoded", decoded.clip(-1, 1), io["decoded"][0], 7e-5)
    agree("decoded, unclipped", decoded, io["decoded_unclipped_f64"][0], 1e-6)
    save_file({path: sample(y) for path, y in network.layers.items()}, FOLDER / "layers.safetensors")
    print(f"{len(network.layers)} layers written")


if __name__ == "__main__":
    main()
