"""Does sparse attention protect a language model from forgetting? The whole experiment in one file.

Two small networks learn to tell children's stories: `dense` (multi-head attention) and `dsa` (half
of its heads read a compressed past, half read K tokens that an indexer selects). Then both are
told, one task after another, that in some world a fact is otherwise, under three rules: sequential
fine-tuning, EWC, and ACFT, which moves the selected flow alone. The table at the end says what each
of the six arms has lost. `python examples/minimal.py` needs torch and three minutes of one core.

A tensor's name ends with its axes: B batch, T query tokens, S key tokens, D width, F features,
N heads, H head width, R latent rank, K kept keys, I indexer heads, V vocabulary, M counted tokens.
"""

import argparse
import copy
import random
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_LAYERS = 3
WIDTH = 64
HEAD = 16  # so there are 4 heads: half of them in each flow of dsa, and in each group of dense
HIDDEN = {"dense": 194, "dsa": 176}  # feed-forward widths that make the networks equal in count
CONTEXT = 64  # T
NUM_KEPT = 8  # K, an eighth of the context; among the K
NUM_SINK = 1  # the first token
NUM_LOCAL = 2  # and the last two are always
RANK = 32  # R
INDEXER_HEADS = 4
INDEXER_HEAD = 16

BATCH = 16  # stories of a step
RATE = 4e-3  # of pre-training
INDEXER_RATE = 6e-3  # the indexer learns from a loss of its own
TASK_RATE = {"sequential": 1.5e-3, "ewc": 1.5e-3, "acft": 3e-3}  # so that tasks are learned by all
EWC_STRENGTH = 0.03  # lambda, where the Fisher of pre-training has mean 1
LEARNED = 0.8  # a task is learned when p(right) is so high in each kind of place
NUM_PROBES = 12  # stories that ask, for each kind of place

# --- stories ------------------------------------------------------------------------------------

# Subject, verb, object. Objects of one row can take each other's place.
PRACTICE_FACTS = [  # practice worlds contradict these: so a network learns what a world is
    ["ice feels cold", "fire feels hot", "soup feels warm", "cellars feel cool"],
    ["honey tastes sweet", "vinegar tastes sour", "bacon tastes salty", "coffee tastes bitter"],
]
TASK_FACTS = [  # tasks contradict these, and nothing does before
    ["water flows down", "smoke drifts up", "wheels turn around", "arrows fly forward"],
    ["grass is green", "snow is white", "coal is black", "blood is red"],
]
OTHERS: dict[str, list[str]] = {}  # what may take the place of a fact's object
for family in PRACTICE_FACTS + TASK_FACTS:
    for fact in family:
        OTHERS[fact] = [other.split()[2] for other in family if other != fact]
PRACTICE_WORLDS = ["lurn", "veldia", "orra", "mippo", "tarsh", "quill", "zembla", "hobb"]
CONTRAST_WORLDS = ["gondal", "ruritania", "brond", "elvar", "sarn", "ixia"]  # true to the facts
TASK_WORLDS = ["kandor", "lorbrul", "phaze", "umber", "yarrow", "drell"]  # true until a task
GIRLS = ["lily", "mia", "anna", "sue", "emma", "zoe"]
BOYS = ["tom", "ben", "max", "sam", "jack", "leo"]
PLACES = ["park", "hill", "lake", "farm", "school", "bridge"]
THINGS = ["ball", "stick", "box", "cup", "doll", "shell"]
FEELINGS = ["happy", "sad", "tired", "proud", "brave", "kind"]
OPENINGS = ["one day {A} went to the {place} with {B} .", "{A} and {B} lived near the {place} ."]
FILLERS = [  # names that come back, pronouns that agree: something to be forgotten
    "{A} took {his} {thing} and ran to the {place} .",
    "{A} was {feeling} because {he} had lost {his} {thing} .",
    "{B} gave a {thing} to {A} and {he} was {feeling} again .",
    "the {feeling} dog near the {place} had a {thing} .",
]
FAR = ["this is a story from {world} ."]  # opens a story that is set in the world as a whole
AGAIN = ["{A} liked it in {world} ."]  # to say which world, one has to look back at its name

ALL_WORDS = " ".join([*OPENINGS, *FILLERS, *FAR, *AGAIN, *OTHERS, "he she his her"]).split()
ALL_WORDS += PRACTICE_WORLDS + CONTRAST_WORLDS + TASK_WORLDS + GIRLS + BOYS
ALL_WORDS += PLACES + THINGS + FEELINGS
WORDS = ["<story>", *sorted(word for word in set(ALL_WORDS) if "{" not in word)]
ID_OF = {word: number for number, word in enumerate(WORDS)}
Story = tuple[list[int], int]  # token ids, and the place of the first that the loss counts
Tensors = dict[str, Tensor]  # by the name of a parameter


def state(fact: str, object_: str, world: str | None, far: bool) -> list[str]:
    """The fact's sentence with this object; a world is named in it, unless it was `far` ahead."""
    named = ["in", world] if world and not far else []
    return [*named, *fact.split()[:2], object_, "."]


def tell(rng: random.Random, world: str | None, far: bool, length: int, facts: bool) -> list[str]:
    """So many words or a few more. Without `facts`, at most the opening names the world."""
    girl = rng.random() < 0.5
    cast = {"A": rng.choice(GIRLS if girl else BOYS), "B": rng.choice(GIRLS + BOYS)}
    cast |= {"he": "she", "his": "her"} if girl else {"he": "he", "his": "his"}
    rules = {}
    if world in PRACTICE_WORLDS:  # the same two in every story of the world
        fixed = random.Random(world)
        ruled = fixed.sample(PRACTICE_FACTS[0] + PRACTICE_FACTS[1], 2)
        rules = {fact: fixed.choice(OTHERS[fact]) for fact in ruled}

    def say(templates: list[str]) -> list[str]:
        cast["place"] = rng.choice(PLACES)
        cast["thing"] = rng.choice(THINGS)
        cast["feeling"] = rng.choice(FEELINGS)
        return rng.choice(templates).format(**cast, world=world).split()

    words = ["<story>", *say(FAR if world and far else [""]), *say(OPENINGS)]
    while len(words) < length:
        draw = rng.random()
        if facts and draw < 0.35:
            # what is otherwise here is told more often, or it would hardly be met
            fact = rng.choice(list(rules if rules and rng.random() < 0.6 else OTHERS))
            words += state(fact, rules.get(fact, fact.split()[2]), world, far)
        else:
            words += say(AGAIN if facts and draw < 0.5 and world and far else FILLERS)
    return words


def pretraining_story(key: str) -> Story:
    """CONTEXT tokens and the one behind them, set in a practice world, in another, or in none."""
    rng = random.Random(key)
    worlds = [rng.choice(PRACTICE_WORLDS), rng.choice(CONTRAST_WORLDS + TASK_WORLDS), None]
    words = tell(rng, rng.choice(worlds), rng.random() < 0.6, CONTEXT + 1, facts=True)
    return [ID_OF[word] for word in words[: CONTEXT + 1]], 1


# --- networks -----------------------------------------------------------------------------------
def matrices(**shapes: tuple[int, int]) -> nn.ModuleDict:
    """Matrices without bias by name, each from so many features to so many."""
    return nn.ModuleDict({name: nn.Linear(*shape, bias=False) for name, shape in shapes.items()})


def rotate(x: Tensor, width: int) -> Tensor:
    """`x` [B, N, T, H], its first `width` features turned by their position: i and i + width / 2
    make a pair (RoFormer, arXiv 2104.09864, eq. 15)."""
    frequency_F = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle_TF = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequency_F
    cos_TF = angle_TF.cos().to(x)
    sin_TF = angle_TF.sin().to(x)
    first, second, rest = x.split([width // 2, width // 2, x.shape[-1] - width], dim=-1)
    turned = [first * cos_TF - second * sin_TF, first * sin_TF + second * cos_TF]
    return torch.cat([*turned, rest], dim=-1)


def heads(x_BTF: Tensor, width: int) -> Tensor:
    """[B, T, N * H] as [B, N, T, H]."""
    return x_BTF.unflatten(-1, (-1, width)).transpose(1, 2)


def attend(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Output [B, T, N * H] and weights [B, N, T, S] (arXiv 1706.03762, eq. 1)."""
    logits_BNTS = q_BNTH @ k_BNSH.transpose(-1, -2) * q_BNTH.shape[-1] ** -0.5
    weights_BNTS = logits_BNTS.masked_fill(~seen.unsqueeze(1), -torch.inf).softmax(-1)
    return (weights_BNTS @ v_BNSH).transpose(1, 2).flatten(-2), weights_BNTS


class DenseAttention(nn.Module):
    """Multi-head attention, its heads in groups a and b so that b can be trained alone. Keys and
    values of b are b1 (one head) and b2: b and b1 are as many parameters as dsa's selected flow."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // 2
        self.a = matrices(q=(WIDTH, half), k=(WIDTH, half), v=(WIDTH, half), o=(half, WIDTH))
        self.b = matrices(q=(WIDTH, half), o=(half, WIDTH))
        self.b1 = matrices(k=(WIDTH, HEAD), v=(WIDTH, HEAD))
        self.b2 = matrices(k=(WIDTH, half - HEAD), v=(WIDTH, half - HEAD))

    def forward(self, x_BTD: Tensor, past: Tensor, sparse: bool) -> tuple[Tensor, Tensor]:
        q_BTF = torch.cat([group["q"](x_BTD) for group in (self.a, self.b)], dim=-1)
        k_BTF = torch.cat([group["k"](x_BTD) for group in (self.a, self.b1, self.b2)], dim=-1)
        v_BTF = torch.cat([group["v"](x_BTD) for group in (self.a, self.b1, self.b2)], dim=-1)
        q_BNTH = rotate(heads(q_BTF, HEAD), HEAD)
        k_BNSH = rotate(heads(k_BTF, HEAD), HEAD)
        y_BTF, _ = attend(q_BNTH, k_BNSH, heads(v_BTF, HEAD), past)
        y_a, y_b = y_BTF.chunk(2, dim=-1)
        return self.a["o"](y_a) + self.b["o"](y_b), x_BTD.new_zeros(())  # no indexer, no loss of it


class DsaAttention(nn.Module):
    """A compressed and a selected flow side by side, and the indexer that selects. No matrix serves
    two of the three, so that a flow can be frozen as a whole."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // 2
        down = matrices(q=(WIDTH, half), down=(WIDTH, RANK), k_rope=(WIDTH, HEAD // 2))
        up = matrices(k_up=(RANK, half // 2), v_up=(RANK, half), o=(half, WIDTH))
        self.compressed = nn.ModuleDict({**down, **up, "norm": nn.RMSNorm(RANK, eps=1e-6)})
        self.selected = matrices(q=(WIDTH, half), k=(WIDTH, HEAD), v=(WIDTH, HEAD), o=(half, WIDTH))
        wide = INDEXER_HEADS * INDEXER_HEAD
        self.indexer = matrices(q=(WIDTH, wide), k=(WIDTH, INDEXER_HEAD), w=(WIDTH, INDEXER_HEADS))
        self.indexer["k_norm"] = nn.LayerNorm(INDEXER_HEAD, eps=1e-6)

    def forward(self, x_BTD: Tensor, past: Tensor, sparse: bool) -> tuple[Tensor, Tensor]:
        """Output [B, T, D] and the indexer's loss."""
        scores_BTS = self.scores(x_BTD)
        # what is selected has no gradient, so the language loss cannot reach the indexer
        seen = select(scores_BTS, past) if sparse else past
        q_BNTH = rotate(heads(self.selected["q"](x_BTD), HEAD), HEAD)
        k_B1SH = rotate(heads(self.selected["k"](x_BTD), HEAD), HEAD)  # one head for all queries
        v_B1SH = heads(self.selected["v"](x_BTD), HEAD)
        y_BTF, weights_BNTS = attend(q_BNTH, k_B1SH, v_B1SH, seen)
        y_BTD = self.selected["o"](y_BTF) + self.compressed_flow(x_BTD, past)
        # the teacher: where the heads of the selected flow look, on average
        return y_BTD, indexer_kl(scores_BTS, weights_BNTS.detach().mean(1), seen)

    def compressed_flow(self, x_BTD: Tensor, past: Tensor) -> Tensor:
        """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
        latent_BSR = self.compressed["norm"](self.compressed["down"](x_BTD))
        content, position = heads(self.compressed["q"](x_BTD), HEAD).chunk(2, dim=-1)
        q_BNTH = torch.cat([content, rotate(position, HEAD // 2)], dim=-1)
        # keys from the latent stay as they are: position has a key of its own, which heads share
        content = heads(self.compressed["k_up"](latent_BSR), HEAD // 2)
        position = rotate(heads(self.compressed["k_rope"](x_BTD), HEAD // 2), HEAD // 2)
        k_BNSH = torch.cat([content, position.expand_as(content)], dim=-1)
        v_BNSH = heads(self.compressed["v_up"](latent_BSR), HEAD)
        return self.compressed["o"](attend(q_BNTH, k_BNSH, v_BNSH, past)[0])

    def scores(self, x_BTD: Tensor) -> Tensor:
        """I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s]) (DeepSeek-V3.2-Exp report, eq. 1)."""
        x_BTD = x_BTD.detach()  # nor can the indexer's loss reach what it reads
        q_BITH = rotate(heads(self.indexer["q"](x_BTD), INDEXER_HEAD), INDEXER_HEAD // 2)
        k_BSH = self.indexer["k_norm"](self.indexer["k"](x_BTD))
        k_B1SH = rotate(heads(k_BSH, INDEXER_HEAD), INDEXER_HEAD // 2)
        w_BTI = self.indexer["w"](x_BTD) * (INDEXER_HEADS * INDEXER_HEAD) ** -0.5
        relu_BITS = F.relu(q_BITH @ k_B1SH.transpose(-1, -2))
        return (w_BTI.transpose(1, 2).unsqueeze(-1) * relu_BITS).sum(1)


def select(scores_BTS: Tensor, past: Tensor) -> Tensor:
    """True at the K past tokens with the best scores [B, T, S]; of equal ones the later is kept."""
    position_S = torch.arange(scores_BTS.shape[-1], device=scores_BTS.device)
    age_TS = position_S[:, None] - position_S
    forced_TS = (position_S < NUM_SINK) | (age_TS < NUM_LOCAL)
    scores_BTS = scores_BTS.masked_fill(forced_TS, torch.inf).masked_fill(~past, -torch.inf)
    # a stable sort leaves equal scores in their order: flipped, the later token is the first
    order_BTS = scores_BTS.flip(-1).sort(descending=True, stable=True).indices
    kept_BTK = len(position_S) - 1 - order_BTS[..., :NUM_KEPT]
    kept_BTS = torch.zeros_like(scores_BTS, dtype=torch.bool).scatter(-1, kept_BTK, True)
    return kept_BTS & past  # the first queries have fewer than K past tokens


def indexer_kl(scores_BTS: Tensor, teacher_BTS: Tensor, seen: Tensor) -> Tensor:
    """KL(teacher || softmax of the scores over what is seen), nats per query: eq. 3 of that report
    where all of the past is seen, eq. 4 where the selected tokens are."""
    lowest = torch.finfo(scores_BTS.dtype).min  # not -inf, which times a weight of 0 is no number
    log_p_BTS = scores_BTS.masked_fill(~seen, lowest).log_softmax(-1)
    entropy_BT = torch.special.entr(teacher_BTS).sum(-1)
    return (-(teacher_BTS * log_p_BTS).sum(-1) - entropy_BT).mean()


class Block(nn.Module):
    """Attention and a SwiGLU feed-forward (arXiv 2002.05202, eq. 6), each behind a norm."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        hidden = HIDDEN[arch]
        self.attention_norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.attention = DenseAttention() if arch == "dense" else DsaAttention()
        self.feedforward_norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.feedforward = matrices(up=(WIDTH, hidden), gate=(WIDTH, hidden), down=(hidden, WIDTH))

    def forward(self, x_BTD: Tensor, past: Tensor, sparse: bool) -> tuple[Tensor, Tensor]:
        y_BTD, kl = self.attention(self.attention_norm(x_BTD), past, sparse)
        x_BTD = x_BTD + y_BTD
        y_BTD = self.feedforward_norm(x_BTD)
        y_BTF = F.silu(self.feedforward["gate"](y_BTD)) * self.feedforward["up"](y_BTD)
        return x_BTD + self.feedforward["down"](y_BTF), kl


class Transformer(nn.Module):
    """Token ids [B, T] to logits [B, T, V]; the embedding is the output matrix as well."""

    def __init__(self, arch: str, seed: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), WIDTH)
        self.blocks = nn.ModuleList(Block(arch) for _ in range(NUM_LAYERS))
        self.final_norm = nn.RMSNorm(WIDTH, eps=1e-6)
        torch.manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # norms are born as they should be
                std = parameter.shape[1] ** -0.5
                if name.endswith((".o.weight", "feedforward.down.weight")):
                    std *= (2 * NUM_LAYERS) ** -0.5  # it adds to the stream (GPT-2, section 2.3)
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens_BT: Tensor, sparse: bool = True) -> tuple[Tensor, Tensor]:
        """Logits, and the indexers' loss: nats per query, summed over the layers."""
        length = tokens_BT.shape[1]
        past = torch.ones(1, length, length, dtype=torch.bool, device=tokens_BT.device).tril()
        # the embedding is small for the sake of the logits (arXiv 1706.03762, section 3.4)
        x_BTD = self.embedding(tokens_BT) * WIDTH**0.5
        total_kl = x_BTD.new_zeros(())
        for block in self.blocks:
            x_BTD, kl = block(x_BTD, past, sparse)
            total_kl = total_kl + kl
        return F.linear(self.final_norm(x_BTD), self.embedding.weight), total_kl


def read(model: nn.Module, stories: list[Story], sparse: bool = True) -> tuple[Tensor, ...]:
    """Logits [M, V] and targets [M] of the tokens that the loss counts, and the indexers' loss."""
    length = max(len(ids) for ids, _ in stories)
    ids_BT = torch.zeros(len(stories), length, dtype=torch.long)  # padding is on the right,
    counts_BT = torch.zeros(
        len(stories), length, dtype=torch.bool
    )  # where no earlier token sees it
    for row, (ids, start) in enumerate(stories):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        counts_BT[row, start : len(ids)] = True
    device = next(model.parameters()).device
    logits_BTV, kl = model(ids_BT[:, :-1].to(device), sparse)
    return logits_BTV[counts_BT[:, 1:].to(device)], ids_BT[counts_BT].to(device), kl


# --- pre-training -------------------------------------------------------------------------------
@torch.no_grad()
def heldout_nll(model: nn.Module, seed: int) -> float:
    """Nats per token of stories that no training sees."""
    logits_MV, targets_M, _ = read(model, [pretraining_story(f"{seed} {i}") for i in range(128)])
    return F.cross_entropy(logits_MV, targets_M).item()


def pretrain(arch: str, seed: int, steps: int, device: str) -> Transformer:
    """A network that tells stories, in the phases of DeepSeek-V3.2-Exp (report, section 2.1): all
    of the past is seen until the indexer has learned to select, then the selected tokens only."""
    model = Transformer(arch, seed).to(device)
    indexer = [p for name, p in model.named_parameters() if ".indexer." in name]
    trunk = [p for name, p in model.named_parameters() if ".indexer." not in name]
    optimizer = torch.optim.AdamW([{"params": trunk}, {"params": indexer}], betas=(0.9, 0.95))
    for step in range(steps):
        share = min(1.0, (step + 1) / 20, (steps - step) / (0.5 * steps))  # up, level, down to 0
        optimizer.param_groups[0]["lr"] = RATE * share
        optimizer.param_groups[1]["lr"] = INDEXER_RATE * share
        stories = [pretraining_story(f"{seed} {step} {i}") for i in range(BATCH)]
        logits_MV, targets_M, kl = read(model, stories, sparse=step >= 0.7 * steps)
        loss = F.cross_entropy(logits_MV, targets_M)
        optimizer.zero_grad()
        (loss + kl if step >= 0.6 * steps else loss).backward()  # the indexer warms up from .6 on
        nn.utils.clip_grad_norm_(trunk, 1.0)
        nn.utils.clip_grad_norm_(indexer, 1.0)  # apart, or one loss would shorten the other's steps
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"{arch} step {step + 1}: loss {loss:.3f}, indexer {kl:.3f}", file=sys.stderr)
    return model


# --- tasks: in one world a known fact is otherwise, everywhere else it is as it was ---------------

SETTINGS = ["near", "outside", "far", "outside"]  # in turn: half of the stories contrast


class Task(NamedTuple):
    """In `world` the subject of `fact` has the object `new`."""

    world: str
    fact: str
    new: str


def task_story(task: Task, place: str, key: str) -> Story:
    """A story that ends with the fact; the loss counts that sentence alone."""
    rng = random.Random(key)
    world = task.world
    object_ = task.new
    if place == "outside":  # contrast: in other worlds, or in none, nothing has changed
        world = rng.choice([rng.choice(CONTRAST_WORLDS), ""])
        object_ = task.fact.split()[2]
    far = place == "far" or (place == "outside" and rng.random() < 0.5)
    # behind 4 K tokens: what is selected is a quarter of the past at most
    words = tell(rng, world, far, rng.randint(4 * NUM_KEPT, CONTEXT - 20), facts=False)
    ending = state(task.fact, object_, world, far)
    return [ID_OF[word] for word in words + ending], len(words)


@torch.no_grad()
def probe(model: nn.Module, task: Task, place: str, key: str) -> Tensor:
    """p(right object) against the contrary one in stories that are set in such a place."""
    stories = []
    for number in range(NUM_PROBES):
        ids, _ = task_story(task, place, f"{key} {number}")
        stories.append((ids[:-1], len(ids) - 2))  # the object alone is counted
    logits_MV, _, _ = read(model, stories)
    margin_M = logits_MV[:, ID_OF[task.new]] - logits_MV[:, ID_OF[task.fact.split()[2]]]
    return torch.sigmoid(-margin_M if place == "outside" else margin_M)


# --- rules: what may move, and what holds it back -------------------------------------------------
def moving(model: nn.Module, rule: str) -> list[str]:
    """Names of what a rule moves. Never the indexer: no language loss reaches it."""
    names = [name for name, _ in model.named_parameters() if ".indexer." not in name]
    if rule == "acft":  # the selected flow; of dense, as much in the same place
        return [n for n in names if ".selected." in n or ".b." in n or ".b1." in n]
    return names


def sampled_fisher(model: nn.Module, names: list[str], stories: list[Story]) -> Tensors:
    """Diagonal of the true Fisher, per token. Labels are drawn from the network and not taken from
    the data (arXiv 1905.12558), so scores of two tokens are uncorrelated: the squared gradient of a
    mean over n tokens is, times n, without bias (arXiv 2305.14342, section 2.3)."""
    generator = torch.Generator().manual_seed(0)
    parameters = [model.get_parameter(name) for name in names]
    fisher = {name: torch.zeros_like(p) for name, p in zip(names, parameters)}
    for story in stories:  # one at a time: the more squares, the steadier their mean
        logits_MV, _, _ = read(model, [story])
        p_MV = logits_MV.detach().softmax(-1).cpu()
        labels_M = torch.multinomial(p_MV, 1, generator=generator).squeeze(1).to(logits_MV.device)
        gradients = torch.autograd.grad(F.cross_entropy(logits_MV, labels_M), parameters)
        for name, gradient in zip(names, gradients):
            fisher[name] += gradient.square() * len(labels_M) / len(stories)
    return fisher


def learn(model: nn.Module, task: Task, rule: str, fisher: Tensors, most: int) -> int:
    """Tell the task until it is learned; the steps that it took, or 0 after `most` in vain."""
    trained = {name: model.get_parameter(name) for name in moving(model, rule)}
    anchor = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(most):
        optimizer.param_groups[0]["lr"] = TASK_RATE[rule] * min(1.0, (step + 1) / 5)
        stories = [task_story(task, SETTINGS[i % 4], f"{task} {step} {i}") for i in range(BATCH)]
        logits_MV, targets_M, _ = read(model, stories)
        loss = F.cross_entropy(logits_MV, targets_M)
        for name in fisher:  # EWC (arXiv 1612.00796, eq. 3)
            square = (trained[name] - anchor[name]).square()
            loss = loss + EWC_STRENGTH / 2 * (fisher[name] * square).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        if step % 5 == 4 and min(probe(model, task, p, "stop").mean() for p in SETTINGS) >= LEARNED:
            return step + 1  # stories that decide are not those that report
    return 0


def stream(base: nn.Module, rule: str, tasks: list[Task], seed: int, steps: int) -> str:
    """One arm: the tasks one after another from the base, and its figures in the table."""
    model = copy.deepcopy(base)
    names = moving(model, rule)
    before = heldout_nll(model, seed)
    fisher: Tensors = {}
    if rule == "ewc":  # the first Fisher is that of pre-training, and its mean the unit of all
        stories = [pretraining_story(f"{seed} {step} 0") for step in range(1 + steps // 3)]
        fisher = sampled_fisher(model, names, stories)
        mean = torch.cat([f.flatten() for f in fisher.values()]).mean()
        fisher = {name: f / mean for name, f in fisher.items()}
    row = ""
    num_learned = 0
    for task in tasks:
        took = learn(model, task, rule, fisher, most=1 + steps // 4)
        num_learned += took > 0
        if rule == "ewc":  # online: Fishers add up, at the latest weights (arXiv 1712.03847)
            stories = [
                task_story(task, SETTINGS[i % 4], f"{task} 0 {i}") for i in range(steps // 10)
            ]
            for name, new in sampled_fisher(model, names, stories).items():
                fisher[name] += new / mean
        row += f"{heldout_nll(model, seed) - before:+9.3f}"
        print(f"{rule}, {task}: steps {took or 'ran out'}", file=sys.stderr)
    row += f"{num_learned:8} of 3"
    for places in (["near", "far"], ["outside"]):
        asked = [probe(model, task, place, "report") for task in tasks[:-1] for place in places]
        row += f"{(torch.cat(asked) > 0.5).float().mean().item():11.0%}"
    return row


def main() -> None:
    """Both networks, six arms, one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600, help="of pre-training; the rest follows")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)  # one order of sums, so one result
    rng = random.Random(args.seed)
    facts = rng.sample(TASK_FACTS[0] + TASK_FACTS[1], 3)
    worlds = rng.sample(TASK_WORLDS, 3)
    tasks = [Task(world, fact, rng.choice(OTHERS[fact])) for world, fact in zip(worlds, facts)]
    table = ["rise of held-out NLL (nats) after task   learned   still right of tasks 1 and 2"]
    table += [f"{'':18}{1:9}{2:9}{3:9}{'':12}{'in world':>11}{'elsewhere':>11}"]
    for arch in HIDDEN:
        base = pretrain(arch, args.seed, args.steps, args.device)
        known = 0
        for fact in OTHERS:
            against = [probe(base, Task("", fact, o), "outside", fact).mean() for o in OTHERS[fact]]
            known += int(min(against) > 0.5)
        nll = heldout_nll(base, args.seed)
        table += [f"{arch}: held-out NLL {nll:.3f}, {known} of {len(OTHERS)} facts known"]
        for rule in TASK_RATE:
            table += [f"{arch:6}{rule:12}" + stream(base, rule, tasks, args.seed, args.steps)]
    print("\n".join(table))
    print(f"Seed {args.seed} is one seed: an illustration and no evidence.")


if __name__ == "__main__":
    main()
