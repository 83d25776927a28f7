"""Losses and gradients of a tiny VQGAN and its discriminator, by PyTorch in float64.

The network is written here once more, in PyTorch's own layers and layout; its
weights and pixels are a formula that the test evaluates too, so that only results are
kept. The perceptual loss is the package `lpips` itself, with its own weights of channels
over a VGG16 of the same formula. python training_vqgan.py [FOLDER]
"""

import sys
from pathlib import Path

import lpips
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

HIDDEN, MULT, BLOCKS, Z, CODES, WIDTH = 32, [1, 2], 1, 8, 16, 8
DISC_CHANNELS, DISC_LAYERS = 8, 2
L1, L2, CODEBOOK, BETA, ADVERSARIAL, PERCEPTUAL = 1.0, 0.5, 1.0, 0.25, 0.8, 4.0
KEPT = 48


def noise(n, seed):
    """n numbers in [-0.5, 0.5), exact in f32."""
    i = np.arange(n, dtype=np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    x = (i * np.uint64(2654435761) + np.uint64(seed) * np.uint64(2246822519)) & mask
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(3266489917)) & mask
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(668265263)) & mask
    return (x >> np.uint64(8)).astype(np.float32) / np.float32(2**24) - np.float32(0.5)


class Tensors:
    """Parameters by name, made when they are first asked for."""

    def __init__(self):
        self.made = {}

    def get(self, name, shape):
        if name not in self.made:
            n = int(np.prod(shape))
            values = noise(n, sum(name.encode()))
            if name.endswith(".kernel"):
                # A power of two near 3.5 / sqrt(fan in), so that the product is exact.
                fan_in = n // shape[-1]
                values = values * np.float32(2.0 ** round(np.log2(3.5 / np.sqrt(fan_in))))
            elif name.endswith(".scale"):
                values = values * np.float32(0.5) + np.float32(1.0)
            elif name.endswith("embeddings"):
                values = values * np.float32(4.0)
            tensor = torch.tensor(values.reshape(shape), dtype=torch.float64)
            self.made[name] = tensor.requires_grad_()
        return self.made[name]


P = Tensors()


def conv(x, name, taps, cin, cout, stride=1, pad=None):
    kernel = P.get(f"{name}.kernel", [taps, taps, cin, cout])
    bias = P.get(f"{name}.bias", [cout])
    pad = (taps - 1) // 2 if pad is None else pad
    return F.conv2d(x, kernel.permute(3, 2, 0, 1).contiguous(), bias, stride=stride, padding=pad)


def norm_silu(x, name):
    channels = x.shape[1]
    scale, bias = P.get(f"{name}.scale", [channels]), P.get(f"{name}.bias", [channels])
    return F.silu(F.group_norm(x, 32, scale, bias, eps=1e-6))


def block(x, name, cout):
    cin = x.shape[1]
    h = conv(norm_silu(x, f"{name}.GroupNorm_0"), f"{name}.Conv_0", 3, cin, cout)
    h = conv(norm_silu(h, f"{name}.GroupNorm_1"), f"{name}.Conv_1", 3, cout, cout)
    return h + (x if cin == cout else conv(x, f"{name}.Conv_2", 1, cin, cout))


def encode(x):
    x = conv(x, "vqgan.encoder.Conv_0", 3, 3, HIDDEN)
    for level, mult in enumerate(MULT):
        name = f"vqgan.encoder.DownsamplingBlock_{level}"
        for i in range(BLOCKS):
            x = block(x, f"{name}.ResnetBlock_{i}", HIDDEN * mult)
        if level + 1 < len(MULT):
            c = x.shape[1]
            x = conv(F.pad(x, (0, 1, 0, 1)), f"{name}.Downsample_0.Conv_0", 3, c, c, 2, 0)
    for i in range(2):
        x = block(x, f"vqgan.encoder.MidBlock_0.ResnetBlock_{i}", x.shape[1])
    x = norm_silu(x, "vqgan.encoder.GroupNorm_0")
    x = conv(x, "vqgan.encoder.Conv_1", 3, x.shape[1], Z)
    return conv(x, "vqgan.quant_conv", 1, Z, WIDTH)


def decode(x):
    x = conv(x, "vqgan.post_quant_conv", 1, WIDTH, Z)
    x = conv(x, "vqgan.decoder.Conv_0", 3, Z, HIDDEN * MULT[-1])
    for i in range(2):
        x = block(x, f"vqgan.decoder.MidBlock_0.ResnetBlock_{i}", x.shape[1])
    for step, mult in enumerate(reversed(MULT)):
        name = f"vqgan.decoder.UpsamplingBlock_{step}"
        for i in range(BLOCKS + 1):
            x = block(x, f"{name}.ResnetBlock_{i}", HIDDEN * mult)
        if step + 1 < len(MULT):
            c = x.shape[1]
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = conv(x, f"{name}.Upsample_0.Conv_0", 3, c, c)
    x = norm_silu(x, "vqgan.decoder.GroupNorm_0")
    return conv(x, "vqgan.decoder.Conv_1", 3, x.shape[1], 3)


def judge(x):
    width = lambda i: DISC_CHANNELS * min(8, 2**i)
    convs = [(2, 3, width(0))]
    convs += [(2, width(i - 1), width(i)) for i in range(1, DISC_LAYERS)]
    convs += [(1, width(DISC_LAYERS - 1), width(DISC_LAYERS)), (1, width(DISC_LAYERS), 1)]
    for i, (stride, cin, cout) in enumerate(convs):
        if i > 0:
            x = F.leaky_relu(x, 0.2)
        x = conv(x, f"discriminator.Conv_{i}", 4, cin, cout, stride, 1)
    return x


def perceptual():
    """LPIPS with VGG16, whose weights are the formula's by torchvision's names."""
    model = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).double()
    for name, parameter in model.net.named_parameters():
        _, number, kind = name.split(".")
        n, shape = parameter.numel(), parameter.shape
        values = noise(n, sum(f"features.{number}.{kind}".encode()))
        # A power of two near He's sqrt(24 / fan in) of even noise.
        scale = 0.25 if kind == "bias" else 2.0 ** round(np.log2(np.sqrt(24 * shape[0] / n)))
        parameter.data = torch.tensor((values * np.float32(scale)).reshape(shape), dtype=torch.float64)
    return model


def losses(resolution, lpips_model=None):
    pixels = noise(2 * resolution * resolution * 3, 7).reshape(2, resolution, resolution, 3)
    pixels = torch.tensor(pixels * np.float32(2.0), dtype=torch.float64).permute(0, 3, 1, 2)
    z = encode(pixels)
    rows = P.get("vqgan.quantize.embeddings", [CODES, WIDTH])
    vectors = z.permute(0, 2, 3, 1).reshape(-1, WIDTH)
    distances = torch.cdist(vectors, rows)
    codes = distances.argmin(1)
    two = distances.topk(2, largest=False).values
    chosen = rows[codes].reshape(z.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    picture = decode(z + (chosen - z).detach())
    l1, l2 = (picture - pixels).abs().mean(), ((picture - pixels) ** 2).mean()
    codebook = ((chosen - z.detach()) ** 2).mean()
    commitment = ((z - chosen.detach()) ** 2).mean()
    reconstruction = L1 * l1 + L2 * l2
    found = {}
    if lpips_model is not None:
        distance = lpips_model(pixels, picture).mean()
        reconstruction = reconstruction + PERCEPTUAL * distance
        found["distance"] = distance[None]
    generator = -judge(picture).mean()
    last = P.made["vqgan.decoder.Conv_1.kernel"]
    of_reconstruction, of_generator = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (reconstruction, generator)
    )
    weight = (of_reconstruction / (of_generator + 1e-6)).clamp(0, 1e4).detach()
    plain = reconstruction + CODEBOOK * (codebook + BETA * commitment)
    total = plain + weight * ADVERSARIAL * generator
    real, made = judge(pixels), judge(picture.detach())
    discriminator = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())
    names = list(P.made)
    mine = [n for n in names if n.startswith("vqgan.")]
    theirs = [n for n in names if n.startswith("discriminator.")]
    for prefix, loss, of in (("plain", plain, mine), ("total", total, mine), ("judge", discriminator, theirs)):
        grads = torch.autograd.grad(loss, [P.made[n] for n in of], retain_graph=True)
        for name, grad in zip(of, grads):
            flat = grad.reshape(-1)
            found[f"{prefix}.{name}"] = flat[:: max(1, len(flat) // KEPT) | 1]
            found[f"{prefix}.{name}.length"] = flat.norm()[None]
    values = [l1, l2, codebook, plain, generator, discriminator, weight, total]
    found["values"] = torch.stack(values)
    found["picture"] = picture.permute(0, 2, 3, 1).reshape(-1)[::5]
    found = {name: tensor.detach().numpy().astype(np.float32) for name, tensor in found.items()}
    found["codes"] = codes.numpy().astype(np.int32)
    print("values", found["values"], "distinct codes", len(set(codes.tolist())))
    print("nearest two rows are apart by", float((two[:, 1] - two[:, 0]).detach().min()))
    print("logits", real.detach().flatten()[:4], made.detach().flatten()[:4])
    return found


def main(folder):
    save_file(losses(16), folder / "vqgan.safetensors")
    # 36, 18, 9, 4, 2: a pool leaves something out.
    found = losses(36, perceptual())
    print("distance", found["distance"])
    found = {name: x for name, x in found.items() if not name.startswith("judge.")}
    save_file(found, folder / "perceptual.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "training")
