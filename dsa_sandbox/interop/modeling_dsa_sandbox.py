"""The `dsa` network of dsa-sandbox as a model of transformers; needs nothing else.

Some heads see every past token through a low-rank latent (`compressed`: multi-head latent
attention, arXiv 2405.04434); the others see the K tokens that a lightning indexer chooses
(`selected`: DeepSeek-V3.2-Exp report, section 2). Tensors have the names of dsa-sandbox.

B batch, T query tokens, S key tokens, D width, N heads, H head width, R latent rank.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

OUTPUTS = CausalLMOutputWithPast.__dataclass_fields__
CACHE = "cache" if "cache" in OUTPUTS else "past_key_values"  # as this transformers calls it


class DsaSandboxConfig(PretrainedConfig):
    """Sizes; the defaults are those of the `smoke` preset."""

    model_type = "dsa_sandbox"

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 432
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_selected_heads: int = 4
    kv_lora_rank: int = 64
    index_n_heads: int = 4
    index_head_dim: int = 32
    index_topk: int = 16
    force_sink: int = 1
    force_local: int = 2
    max_position_embeddings: int = 128
    rms_norm_eps: float = 1e-6
    rope_parameters: dict[str, Any] | None = None
    rope_theta: float | None = None  # its name in releases before 5
    tie_word_embeddings: bool = True
    use_cache: bool = True


def rope_base(config: DsaSandboxConfig) -> float:
    """The base of the rotary embedding, by whichever of its names a config has."""
    return (config.rope_parameters or {}).get("rope_theta") or config.rope_theta or 10_000.0


def linear(num_in: int, num_out: int) -> nn.Linear:
    return nn.Linear(num_in, num_out, bias=False)


def heads(x_BTF: Tensor, head_width: int) -> Tensor:
    """[B, T, N * H] as [B, N, T, H]."""
    return x_BTF.unflatten(-1, (-1, head_width)).transpose(1, 2)


def rotate(x_BNTH: Tensor, position_BT: Tensor, base: float) -> Tensor:
    """Rotary position embedding of half-split pairs."""
    width = x_BNTH.shape[-1]
    frequency_H = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle_B1TH = position_BT.cpu().double()[:, None, :, None] * frequency_H
    cos, sin = (part.to(x_BNTH) for part in (angle_B1TH.cos(), angle_B1TH.sin()))
    first, second = x_BNTH.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def rotate_half(x_BNTH: Tensor, position_BT: Tensor, base: float, last: bool) -> Tensor:
    """The same of the first or the last half of each head."""
    first, second = x_BNTH.chunk(2, dim=-1)
    if last:
        return torch.cat([first, rotate(second, position_BT, base)], dim=-1)
    return torch.cat([rotate(first, position_BT, base), second], dim=-1)


class Attention(nn.Module):
    """Compressed flow + selected flow."""

    def __init__(self, config: DsaSandboxConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.base = rope_base(config)
        width, rank = config.hidden_size, config.kv_lora_rank
        self.head_width = head = width // config.num_attention_heads
        selected = config.num_selected_heads * head
        compressed = width - selected
        self.compressed = nn.ModuleDict(
            {
                "q": linear(width, compressed),
                "down": linear(width, rank),
                "norm": nn.RMSNorm(rank, eps=config.rms_norm_eps),
                "k_rope": linear(width, head // 2),
                "k_up": linear(rank, compressed // 2),
                "v_up": linear(rank, compressed),
                "o": linear(compressed, width),
            }
        )
        self.selected = nn.ModuleDict(
            {
                "q": linear(width, selected),
                "k": linear(width, head),
                "v": linear(width, head),
                "o": linear(selected, width),
            }
        )
        self.indexer = nn.ModuleDict(
            {
                "q": linear(width, config.index_n_heads * config.index_head_dim),
                "k": linear(width, config.index_head_dim),
                "k_norm": nn.LayerNorm(config.index_head_dim, eps=1e-6),
                "w": linear(width, config.index_n_heads),
            }
        )

    def forward(
        self, x_BTD: Tensor, position_BS: Tensor, past_BTS: Tensor, cache: Any | None
    ) -> Tensor:
        """Output [B, T, D]; `past_BTS` says which keys are there and not later than the query."""
        compressed, selected = self.compressed, self.selected
        head, base = self.head_width, self.base
        now_BT = position_BS[:, -x_BTD.shape[1] :]
        new = [  # all that is kept of a token, each [B, 1, T, ..]
            compressed["norm"](compressed["down"](x_BTD)).unsqueeze(1),
            rotate(compressed["k_rope"](x_BTD).unsqueeze(1), now_BT, base),
            rotate(selected["k"](x_BTD).unsqueeze(1), now_BT, base),
            selected["v"](x_BTD).unsqueeze(1),
            rotate_half(self.index_key(x_BTD).unsqueeze(1), now_BT, base, last=False),
        ]
        if cache is not None:
            together = torch.cat(new, dim=-1)
            together, _ = cache.update(together, together[..., :0], self.layer)
            new = list(together.split([part.shape[-1] for part in new], dim=-1))
        latent_B1SR, k_rope_B1SH, k_B1SH, v_B1SH, index_B1SH = new

        k_BNSH = heads(compressed["k_up"](latent_B1SR.squeeze(1)), head // 2)
        k_BNSH = torch.cat([k_BNSH, k_rope_B1SH.expand_as(k_BNSH)], dim=-1)
        v_BNSH = heads(compressed["v_up"](latent_B1SR.squeeze(1)), head)
        q_BNTH = rotate_half(heads(compressed["q"](x_BTD), head), now_BT, base, last=True)
        y_BTD = compressed["o"](attend(q_BNTH, k_BNSH, v_BNSH, past_BTS))

        kept_BTS = self.select(self.scores(x_BTD, index_B1SH, now_BT), position_BS, past_BTS)
        q_BNTH = rotate(heads(selected["q"](x_BTD), head), now_BT, base)
        k_BNSH, v_BNSH = (x.expand(-1, q_BNTH.shape[1], -1, -1) for x in (k_B1SH, v_B1SH))
        return y_BTD + selected["o"](attend(q_BNTH, k_BNSH, v_BNSH, kept_BTS))

    def index_key(self, x_BTD: Tensor) -> Tensor:
        return self.indexer["k_norm"](self.indexer["k"](x_BTD))

    def scores(self, x_BTD: Tensor, k_B1SH: Tensor, now_BT: Tensor) -> Tensor:
        """I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s]), DeepSeek-V3.2-Exp report, eq. 1; in fp32."""
        q_BNTH = heads(self.indexer["q"](x_BTD), self.config.index_head_dim)
        q_BNTH = rotate_half(q_BNTH, now_BT, self.base, last=False).float()
        num_index = self.config.index_n_heads * self.config.index_head_dim
        w_BTN = self.indexer["w"](x_BTD).float() * num_index**-0.5
        relu_BNTS = F.relu(q_BNTH @ k_B1SH.float().transpose(-1, -2))
        return (w_BTN.transpose(1, 2).unsqueeze(-1) * relu_BNTS).sum(1)

    def select(self, scores_BTS: Tensor, position_BS: Tensor, past_BTS: Tensor) -> Tensor:
        """True at the K best past keys of each query; ties go to the later one.

        The first `force_sink` and the last `force_local` past tokens are always kept, within K.
        """
        config, length = self.config, scores_BTS.shape[-1]
        age_BTS = position_BS[:, -scores_BTS.shape[1] :, None] - position_BS[:, None]
        forced_BTS = (position_BS[:, None] < config.force_sink) | (age_BTS < config.force_local)
        bits = (scores_BTS + 0.0).view(torch.int32)  # whole numbers in the order of the scores
        rank_BTS = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
        rank_BTS = rank_BTS.masked_fill(forced_BTS, torch.iinfo(torch.int32).max)
        key_BTS = (rank_BTS << 32) | torch.arange(length, device=rank_BTS.device)
        key_BTS = key_BTS.masked_fill(~past_BTS, torch.iinfo(torch.int64).min)
        ids_BTK = key_BTS.topk(min(config.index_topk, length), dim=-1).indices
        return torch.zeros_like(past_BTS).scatter(-1, ids_BTK, True) & past_BTS


def attend(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, kept_BTS: Tensor) -> Tensor:
    """[B, T, N * H]; `kept_BTS` says who may look where."""
    states = (q_BNTH, k_BNSH, v_BNSH)
    y_BNTH = F.scaled_dot_product_attention(*states, attn_mask=kept_BTS.unsqueeze(1))
    return y_BNTH.transpose(1, 2).flatten(-2)


class Block(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm and added to the stream."""

    def __init__(self, config: DsaSandboxConfig, layer: int) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.attention_norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.feedforward_norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        sizes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
        self.feedforward = nn.ModuleDict({name: linear(*size) for name, size in sizes.items()})

    def forward(self, x_BTD: Tensor, *where: Any) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), *where)
        ffn, normed_BTD = self.feedforward, self.feedforward_norm(x_BTD)
        return x_BTD + ffn["down"](F.silu(ffn["gate"](normed_BTD)) * ffn["up"](normed_BTD))


class DsaSandboxForCausalLM(PreTrainedModel, GenerationMixin):
    """Token ids [B, T] to logits [B, T, V]."""

    config_class = DsaSandboxConfig
    _supports_sdpa = True
    _supports_cache_class = True  # asked by releases before 4.56, as the next one is
    _supports_static_cache = False
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: DsaSandboxConfig) -> None:
        super().__init__(config)
        width, vocabulary = config.hidden_size, config.vocab_size
        self.embedding = nn.Embedding(vocabulary, width)
        self.output = None if config.tie_word_embeddings else linear(width, vocabulary)
        self.blocks = nn.ModuleList(Block(config, n) for n in range(config.num_hidden_layers))
        self.final_norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        return self.output

    def set_output_embeddings(self, value: nn.Linear | None) -> None:
        self.output = value

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """As transformers has it; before 4.45 each class brings its own."""
        try:
            return super().prepare_inputs_for_generation(input_ids, **kwargs)
        except NotImplementedError:
            cache = kwargs.get(CACHE)
            new = input_ids[:, 0 if cache is None else cache.get_seq_length() :]
            kept = {name: kwargs.get(name) for name in (CACHE, "attention_mask", "use_cache")}
            return {"input_ids": new, **kept}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any | None = None,
        past_key_values: Any | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where `labels` are given: of all targets, or by their number.

        `attention_mask` [B, S] is 0 at padding, of cached tokens too; positions are counted by it.
        """
        cache = past_key_values if cache is None else cache  # its name before transformers 5.24
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache()
        if cache is not None and not isinstance(cache, DynamicCache):
            raise ValueError(
                f"DsaSandboxForCausalLM keeps its tokens in a DynamicCache, not in a "
                f"{type(cache).__name__}: leave cache_implementation away"
            )
        (batch, num_new), device = input_ids.shape, input_ids.device
        length = num_new + (0 if cache is None else cache.get_seq_length())
        if attention_mask is None:
            attention_mask = torch.ones(batch, length, dtype=torch.long, device=device)
        slot_S = torch.arange(length, device=device)
        causal_TS = slot_S[length - num_new :, None] >= slot_S
        itself_TS = slot_S[length - num_new :, None] == slot_S  # padding sees itself: no NaN
        past_BTS = causal_TS & (attention_mask.bool()[:, None] | itself_TS)
        position_BS = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)

        x_BTD = self.embedding(input_ids) * self.config.hidden_size**0.5
        for block in self.blocks:
            x_BTD = block(x_BTD, position_BS, past_BTS, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        x_BTD = self.final_norm(x_BTD[:, kept])
        logits = F.linear(x_BTD, (self.output or self.embedding).weight)
        loss = None
        if labels is not None:
            targets_BT = F.pad(labels[:, 1:], (0, 1), value=-100).to(logits.device)
            how = "mean" if num_items_in_batch is None else "sum"
            loss = F.cross_entropy(
                logits.float().flatten(0, 1), targets_BT.flatten(), reduction=how
            ) / (1 if num_items_in_batch is None else num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
