"""Worker: the same training step in PyTorch: ResNet, projection head, NT-Xent; channels last, SGD with momentum."""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

SETTINGS = json.loads(sys.argv[1])
DEPTHS = {18: (False, (2, 2, 2, 2)), 50: (True, (3, 4, 6, 3))}


def conv_norm(c_in, c_out, kernel, stride=1):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, (kernel - 1) // 2, bias=False), nn.BatchNorm2d(c_out, momentum=0.1)
    )


class Block(nn.Module):
    def __init__(self, c_in, width, stride, bottleneck):
        super().__init__()
        c_out = 4 * width if bottleneck else width
        if bottleneck:
            parts = [conv_norm(c_in, width, 1), conv_norm(width, width, 3, stride), conv_norm(width, c_out, 1)]
        else:
            parts = [conv_norm(c_in, width, 3, stride), conv_norm(width, width, 3)]
        self.parts = nn.ModuleList(parts)
        self.shortcut = conv_norm(c_in, c_out, 1, stride) if stride > 1 or c_in != c_out else nn.Identity()

    def forward(self, x):
        y = x
        for part in self.parts[:-1]:
            y = F.relu(part(y))
        return F.relu(self.parts[-1](y) + self.shortcut(x))


def encoder(depth, size):
    bottleneck, counts = DEPTHS[depth]
    if size <= 32:
        layers = [conv_norm(3, 64, 3), nn.ReLU()]
    else:
        layers = [conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for group, count in enumerate(counts):
        width = 64 << group
        for i in range(count):
            layers.append(Block(channels, width, 2 if group and i == 0 else 1, bottleneck))
            channels = 4 * width if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


def nt_xent(z, temperature=0.1):
    z = F.normalize(z.float(), dim=1)
    n = len(z) // 2
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(-1e9)
    return 2 * F.cross_entropy(similarity, torch.arange(2 * n).roll(n))


def main():
    torch.manual_seed(0)
    n, size = SETTINGS["train_batch_size"], SETTINGS["image_size"]
    network, width = encoder(SETTINGS["resnet_depth"], size)
    head = []
    for out, last in ((width, False), (width, False), (128, True)):
        head += [nn.Linear(width, out, bias=False), nn.BatchNorm1d(out)] + ([] if last else [nn.ReLU()])
    model = nn.Sequential(network, *head).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-6)
    views = torch.rand(2 * n, 3, size, size).to(memory_format=torch.channels_last)

    def work():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=SETTINGS["precision"] == "mixed_bfloat16"):
            z = model(views)
        loss = nt_xent(z)
        loss.backward()
        optimizer.step()
        return loss.item()

    work()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            work()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        print(json.dumps(dict(seconds=seconds, cpu_seconds=cpu, items=n * int(line))), flush=True)


main()
