"""A transformer that cache_dit has never seen: say where its blocks are and what they take and return."""

import torch
from torch import nn

import cache_dit
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads=4, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden_states, time):
        tokens = self.norm(hidden_states) + time[:, None]
        hidden_states = hidden_states + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return hidden_states + self.mlp(hidden_states)


class MyTransformer(nn.Module):
    def __init__(self, width=64, depth=8):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, hidden_states, timestep):
        time = self.time(timestep[:, None])
        for block in self.layers:
            hidden_states = block(hidden_states, time)
        return hidden_states


torch.manual_seed(0)
model = MyTransformer().eval()  # of random weights: this shows how it is wired, and nothing about quality

cache_dit.enable_cache(
    BlockAdapter(
        transformer=model,
        blocks=model.layers,
        # Hidden states in, hidden states out. With auto=True in place of these two lines, both are found out.
        forward_pattern=ForwardPattern.Pattern_3,
    ),
    DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.3, num_inference_steps=20
    ),
)

latents = torch.randn(1, 16, 64)
with torch.no_grad():
    for step in range(20):
        velocity = model(latents, timestep=torch.tensor([1 - step / 20]))
        latents = latents - velocity / 20
cache_dit.summary(model)
