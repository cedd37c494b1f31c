"""The `dsa` network of dsa-sandbox as a model of transformers, in one file.

Some heads attend to every past token through a low-rank latent (`compressed`: multi-head latent
attention, arXiv 2405.04434); the others attend to the K tokens that a lightning indexer selects
(`selected`: DeepSeek-V3.2-Exp report, section 2). Tensors have the names of dsa-sandbox.

B batch, T query tokens, S key tokens, D width, N heads, H head width, R latent rank, K selected
keys, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

OUTPUTS = CausalLMOutputWithPast.__dataclass_fields__
CACHE = "cache" if "cache" in OUTPUTS else "past_key_values"  # renamed in transformers 5.24


class DsaSandboxConfig(PretrainedConfig):
    """The sizes of a network; defaults are those of the `smoke` preset."""

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
    rope_theta: float | None = None  # for releases before 5, instead of rope_parameters
    tie_word_embeddings: bool = True
    use_cache: bool = True


def rope_base(config: DsaSandboxConfig) -> float:
    """The base of the rotary embedding, from either of its names."""
    return (config.rope_parameters or {}).get("rope_theta") or config.rope_theta or 10_000.0


def linear(num_in: int, num_out: int) -> nn.Linear:
    return nn.Linear(num_in, num_out, bias=False)


def split_heads(x_BTF: Tensor, head_width: int) -> Tensor:
    """[B, T, N * H] to [B, N, T, H]."""
    return x_BTF.unflatten(-1, (-1, head_width)).transpose(1, 2)


def rotate(x_BNTH: Tensor, position_BT: Tensor, base: float) -> Tensor:
    """RoPE on half-split pairs: features i and i + H / 2 are rotated by their position."""
    width = x_BNTH.shape[-1]
    frequency_H = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle_B1TH = position_BT.cpu().double()[:, None, :, None] * frequency_H
    cos = angle_B1TH.cos().to(x_BNTH)
    sin = angle_B1TH.sin().to(x_BNTH)
    first, second = x_BNTH.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def rotate_half(x_BNTH: Tensor, position_BT: Tensor, base: float, last: bool) -> Tensor:
    """RoPE on the first half of each head's features, or on the last half."""
    first, second = x_BNTH.chunk(2, dim=-1)
    if last:
        return torch.cat([first, rotate(second, position_BT, base)], dim=-1)
    return torch.cat([rotate(first, position_BT, base), second], dim=-1)


class Attention(nn.Module):
    """A compressed flow and a selected flow, whose outputs are added."""

    def __init__(self, config: DsaSandboxConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.base = rope_base(config)
        width = config.hidden_size
        rank = config.kv_lora_rank
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
        """Output [B, T, D]; `past_BTS` is False at padding and at keys later than the query."""
        compressed = self.compressed
        selected = self.selected
        head = self.head_width
        base = self.base
        now_BT = position_BS[:, -x_BTD.shape[1] :]
        new = [  # the cached states of each token, [B, 1, T, ..] each
            compressed["norm"](compressed["down"](x_BTD)).unsqueeze(1),
            rotate(compressed["k_rope"](x_BTD).unsqueeze(1), now_BT, base),
            rotate(selected["k"](x_BTD).unsqueeze(1), now_BT, base),
            selected["v"](x_BTD).unsqueeze(1),
            rotate_half(self.index_key(x_BTD).unsqueeze(1), now_BT, base, last=False),
        ]
        if cache is not None:
            # the cache of transformers has one key and one value: all states as key, no value
            joined = torch.cat(new, dim=-1)
            joined, _ = cache.update(joined, joined[..., :0], self.layer)
            new = list(joined.split([part.shape[-1] for part in new], dim=-1))
        latent_B1SR, k_rope_B1SH, k_B1SH, v_B1SH, index_B1SH = new

        k_BNSH = split_heads(compressed["k_up"](latent_B1SR.squeeze(1)), head // 2)
        k_BNSH = torch.cat([k_BNSH, k_rope_B1SH.expand_as(k_BNSH)], dim=-1)
        v_BNSH = split_heads(compressed["v_up"](latent_B1SR.squeeze(1)), head)
        q_BNTH = rotate_half(split_heads(compressed["q"](x_BTD), head), now_BT, base, last=True)
        y_BTD = compressed["o"](attend(q_BNTH, k_BNSH, v_BNSH, past_BTS))

        scores_BTS = self.scores(x_BTD, index_B1SH, now_BT)
        selected_BTS = self.select(scores_BTS, position_BS, past_BTS)
        q_BNTH = rotate(split_heads(selected["q"](x_BTD), head), now_BT, base)
        k_BNSH = k_B1SH.expand(-1, q_BNTH.shape[1], -1, -1)
        v_BNSH = v_B1SH.expand(-1, q_BNTH.shape[1], -1, -1)
        return y_BTD + selected["o"](attend(q_BNTH, k_BNSH, v_BNSH, selected_BTS))

    def index_key(self, x_BTD: Tensor) -> Tensor:
        """The indexer's keys [B, T, H], before RoPE."""
        return self.indexer["k_norm"](self.indexer["k"](x_BTD))

    def scores(self, x_BTD: Tensor, k_B1SH: Tensor, now_BT: Tensor) -> Tensor:
        """Scores [B, T, S], fp32: sum_j w[t,j] relu(q[t,j] . k[s]) (DeepSeek-V3.2-Exp, eq. 1)."""
        q_BNTH = split_heads(self.indexer["q"](x_BTD), self.config.index_head_dim)
        q_BNTH = rotate_half(q_BNTH, now_BT, self.base, last=False).float()
        num_index = self.config.index_n_heads * self.config.index_head_dim
        w_BTN = self.indexer["w"](x_BTD).float() * num_index**-0.5
        relu_BNTS = F.relu(q_BNTH @ k_B1SH.float().transpose(-1, -2))
        return (w_BTN.transpose(1, 2).unsqueeze(-1) * relu_BNTS).sum(1)

    def select(self, scores_BTS: Tensor, position_BS: Tensor, past_BTS: Tensor) -> Tensor:
        """[B, T, S] bool, True at the K best past keys of each query; of equal ones, at the later.

        The first `force_sink` and the last `force_local` past tokens are always selected, within K.
        """
        config = self.config
        num_queries, length = scores_BTS.shape[-2:]
        age_BTS = position_BS[:, -num_queries:, None] - position_BS[:, None]
        forced_BTS = (position_BS[:, None] < config.force_sink) | (age_BTS < config.force_local)
        # One int64 per key: its score, as an integer in the order of floats (in negative ones all
        # bits but the sign are inverted), then its position. So no two keys are equal.
        bits = (scores_BTS + 0.0).view(torch.int32)
        rank_BTS = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
        rank_BTS = rank_BTS.masked_fill(forced_BTS, torch.iinfo(torch.int32).max)
        key_BTS = (rank_BTS << 32) | torch.arange(length, device=rank_BTS.device)
        key_BTS = key_BTS.masked_fill(~past_BTS, torch.iinfo(torch.int64).min)
        ids_BTK = key_BTS.topk(min(config.index_topk, length), dim=-1).indices
        return torch.zeros_like(past_BTS).scatter(-1, ids_BTK, True) & past_BTS


def attend(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, mask_BTS: Tensor) -> Tensor:
    """Attention output [B, T, N * H] over the keys where `mask_BTS` [B, T, S] is True."""
    y_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, mask_BTS.unsqueeze(1))
    return y_BNTH.transpose(1, 2).flatten(-2)


class Block(nn.Module):
    """One layer: attention and SwiGLU, each behind an RMSNorm, added to the residual stream."""

    def __init__(self, config: DsaSandboxConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        hidden = config.intermediate_size
        self.attention_norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.feedforward_norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.feedforward = nn.ModuleDict(
            {
                "gate": linear(width, hidden),
                "up": linear(width, hidden),
                "down": linear(hidden, width),
            }
        )

    def forward(self, x_BTD: Tensor, *where: Any) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), *where)
        ffn = self.feedforward
        normed_BTD = self.feedforward_norm(x_BTD)
        return x_BTD + ffn["down"](F.silu(ffn["gate"](normed_BTD)) * ffn["up"](normed_BTD))


class DsaSandboxForCausalLM(PreTrainedModel, GenerationMixin):
    """Token ids [B, T] to logits [B, T, V]."""

    config_class = DsaSandboxConfig
    _supports_sdpa = True
    _supports_cache_class = True  # read by releases before 4.56
    _supports_static_cache = False  # read by releases before 4.56
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: DsaSandboxConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        vocabulary = config.vocab_size
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
        """The method of transformers; releases before 4.45 have none, so it is written out here."""
        try:
            return super().prepare_inputs_for_generation(input_ids, **kwargs)
        except NotImplementedError:
            cache = kwargs.get(CACHE)
            num_cached = 0 if cache is None else cache.get_seq_length()
            passed = {name: kwargs.get(name) for name in (CACHE, "attention_mask", "use_cache")}
            return {"input_ids": input_ids[:, num_cached:], **passed}

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
        """Logits [B, T, V], and with `labels` [B, T] the loss in nats.

        The loss is the mean over targets, or their sum over `num_items_in_batch`. `attention_mask`
        [B, S] is 0 at padding, also of cached tokens; positions count the other tokens.
        """
        cache = past_key_values if cache is None else cache  # the name before transformers 5.24
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache()
        if cache is not None and not isinstance(cache, DynamicCache):
            raise ValueError(
                f"DsaSandboxForCausalLM supports DynamicCache, not {type(cache).__name__}: leave "
                "out cache_implementation"
            )
        batch, num_new = input_ids.shape
        device = input_ids.device
        length = num_new + (0 if cache is None else cache.get_seq_length())
        if attention_mask is None:
            attention_mask = torch.ones(batch, length, dtype=torch.long, device=device)
        slot_S = torch.arange(length, device=device)
        causal_TS = slot_S[length - num_new :, None] >= slot_S
        # padding attends to itself, as a softmax over no key would be NaN
        itself_TS = slot_S[length - num_new :, None] == slot_S
        past_BTS = causal_TS & (attention_mask.bool()[:, None] | itself_TS)
        position_BS = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)

        x_BTD = self.embedding(input_ids) * self.config.hidden_size**0.5
        for block in self.blocks:
            x_BTD = block(x_BTD, position_BS, past_BTS, cache)
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        x_BTD = self.final_norm(x_BTD[:, rows])
        logits = F.linear(x_BTD, (self.output or self.embedding).weight)
        loss = None
        if labels is not None:
            targets_BT = F.pad(labels[:, 1:], (0, 1), value=-100).to(logits.device)
            reduction = "mean" if num_items_in_batch is None else "sum"
            logits_MV = logits.float().flatten(0, 1)
            loss = F.cross_entropy(logits_MV, targets_BT.flatten(), reduction=reduction)
            if num_items_in_batch is not None:
                loss = loss / num_items_in_batch
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
