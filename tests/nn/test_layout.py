import torch
from torch import nn

from t2i.nn.layout import LARGE, lay_out


def test_half_precision_is_laid_out_by_the_size_of_the_map():
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(8, 8)).to(torch.bfloat16)
    before = network[0].weight.clone()
    lay_out(network, LARGE)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    lay_out(network, LARGE - 1)
    assert network[0].weight.is_contiguous() and network[0].weight.equal(before)
    lay_out(network.float(), LARGE)
    assert network[0].weight.is_contiguous()
