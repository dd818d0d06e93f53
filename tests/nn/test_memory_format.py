import torch
from torch import nn

from t2i.nn.memory_format import LARGE, set_memory_format


def test_half_precision_is_laid_out_by_the_size_of_the_map():
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(8, 8)).to(torch.bfloat16)
    before = network[0].weight.clone()
    set_memory_format(network, LARGE)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    set_memory_format(network, LARGE - 1)
    assert network[0].weight.is_contiguous() and network[0].weight.equal(before)
    set_memory_format(network.float(), LARGE)
    assert network[0].weight.is_contiguous()
