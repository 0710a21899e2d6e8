"""The layers of any module: each with its path, kind, depth and parameters; fused projections split by role."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hnf_offline.linalg.hessian import Part


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: a stretch of parameters that belong together.

    Attributes:
        path: module path; a fused projection's part has the role appended (`attn.c_attn.query`).
        kind: one of `table.KINDS`.
        depth: position in forward order, from 0.
        parts: its parameters, or the rows of them that are its own.
    """

    path: str
    kind: str
    depth: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(part.size for part in self.parts)


_KINDS_BY_NAME = (
    (r"(^|[._])(q_proj|query|q_lin|wq|to_q)$", "query"),
    (r"(^|[._])(k_proj|key|k_lin|wk|to_k)$", "key"),
    (r"(^|[._])(v_proj|value|v_lin|wv|to_v)$", "value"),
    (
        r"(attn|attention|self_attn|self_attention)[\w.]*\.(o_proj|out_proj|c_proj|out_lin|dense|wo|to_out)$",
        "out",
    ),
    (r"(^|[._])(o_proj|out_lin|wo|to_out)$", "out"),
    (
        r"(^|[._])(up_proj|gate_proj|gate_up_proj|c_fc|fc1|fc_in|lin1|linear1|w1|w3|dense_h_to_4h|ffn)$",
        "mlp_up",
    ),
    (r"intermediate\.dense$", "mlp_up"),
    (r"(^|[._])(down_proj|fc2|fc_out|lin2|linear2|w2|dense_4h_to_h|ffn_output)$", "mlp_down"),
    (r"(mlp|ffn|feed_forward)[\w.]*\.c_proj$", "mlp_down"),
    (r"output\.dense$", "mlp_down"),
    (r"^(lm_head|head|output|embed_out|cls|score|classifier|decoder)$|(^|\.)(lm_head|embed_out)$", "head"),
)
#: Query, key and value stacked one after another (GPT-2, Phi-3).
_FUSED = re.compile(r"(^|[._])(c_attn|qkv|qkv_proj|Wqkv|wqkv|in_proj|to_qkv)$")
#: Stacked anew for every key-value head (GPT-NeoX, BLOOM, Falcon).
_FUSED_BY_HEAD = re.compile(r"(^|[._])query_key_value$")
#: Names that other projections have too (Mamba's in_proj, GPT-2's cross-attention): fused only if 3 times as wide.
_FUSED_IF_SQUARE = re.compile(r"(^|[._])(c_attn|in_proj)$")
_ROLES = ("query", "key", "value")
#: PEFT's name for a module that is trained as a whole beside adapters.
_SAVED_WHOLE = ".modules_to_save.default"


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a LayerNorm or RMSNorm of any library.

    Returns:
        True for classes named ...Norm that normalise the last dimension.
    """
    name = type(module).__name__
    return name.endswith("Norm") and "Batch" not in name and "Group" not in name and "Instance" not in name


def centres(norm: nn.Module) -> bool:
    """Tell whether a norm subtracts the mean (LayerNorm) or not (RMSNorm).

    Returns:
        True for LayerNorm.
    """
    return "rms" not in type(norm).__name__.lower()


def kind_of(path: str, module: nn.Module) -> str:
    """Classify a leaf module by its class and the last part of its path.

    Returns:
        One of `table.KINDS`.
    """
    path = path.removesuffix(_SAVED_WHOLE)
    if isinstance(module, nn.Embedding):
        return "embedding"
    if is_norm(module):
        return "norm"
    if _FUSED_BY_HEAD.search(path):
        return "other"  # all three roles at once, where they could not be told apart
    for pattern, kind in _KINDS_BY_NAME:
        if re.search(pattern, path):
            return kind
    return "other"


def layers_of(module: nn.Module) -> tuple[Layer, ...]:
    """List the layers in the order in which the module registers them, which is forward order as a rule.

    A tied parameter belongs to the first layer that holds it; a layer left without parameters is not listed.
    A parameter of the root module itself is a layer under its own name.

    Returns:
        The layers; every parameter of the module is in exactly one.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    seen: set[int] = set()
    layers: list[Layer] = []
    for path, part in module.named_modules():
        own = {
            name: parameter
            for name, parameter in part.named_parameters(recurse=False)
            if id(parameter) not in seen
        }
        seen |= {id(parameter) for parameter in own.values()}
        if isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            fused = {name: value for name, value in own.items() if name.startswith("in_proj")}
            own = {name: value for name, value in own.items() if name not in fused}
            _append(layers, f"{path}.in_proj".lstrip("."), "query", part, fused, names, None)
        if path == "":
            # "" means the whole model: what hangs on the root (a position table, a class token) has its own name.
            for name, value in own.items():
                layers.append(Layer(name, "other", len(layers), (Part(name, tuple(value.shape)),)))
        elif own:
            _append(layers, path, kind_of(path, part), part, own, names, _heads(module, path))
    return tuple(layers)


def _append(
    layers: list[Layer],
    path: str,
    kind: str,
    module: nn.Module,
    own: dict[str, nn.Parameter],
    names: dict[int, str],
    heads: tuple[int, int] | None,
) -> None:
    pieces = _split_fused(path, module, own, heads)
    if pieces is None:
        parts = tuple(Part(names[id(value)], tuple(value.shape)) for value in own.values())
        layers.append(Layer(path, kind, len(layers), parts))
        return
    for role in _ROLES:
        parts = tuple(
            Part(names[id(own[name])], tuple(own[name].shape), index[role]) for name, index in pieces.items()
        )
        layers.append(Layer(f"{path}.{role}", role, len(layers), parts))


def _split_fused(
    path: str, module: nn.Module, own: dict[str, nn.Parameter], heads: tuple[int, int] | None
) -> dict[str, dict[str, Tensor]] | None:
    """Flat positions of query, key and value in each parameter of a fused projection; None where it is none."""
    by_head = _FUSED_BY_HEAD.search(path) is not None
    if (not by_head and not _FUSED.search(path)) or (by_head and heads is None):
        return None
    queries, keys = heads or (1, 1)
    pieces: dict[str, dict[str, Tensor]] = {}
    for name, value in own.items():
        # GPT-2's Conv1D stores its weight [in, out]; everything else has the outputs first.
        outputs_last = type(module).__name__ == "Conv1D" and value.ndim == 2
        outputs, inputs = value.shape[-1 if outputs_last else 0], value.shape[0 if outputs_last else -1]
        if _FUSED_IF_SQUARE.search(path) and value.ndim == 2 and queries == keys and outputs != 3 * inputs:
            return None
        rows = _rows_by_role(outputs, queries, keys, groups=keys if by_head else 1)
        if rows is None:
            return None
        positions = torch.arange(value.numel()).reshape(value.shape)
        pieces[name] = {
            role: (positions[:, own_rows] if outputs_last else positions[own_rows]).flatten()
            for role, own_rows in zip(_ROLES, rows, strict=True)
        }
    return pieces


def _rows_by_role(outputs: int, queries: int, keys: int, *, groups: int) -> tuple[Tensor, ...] | None:
    """Output rows of query, key and value: in every group first the query heads, then the keys', then the values'."""
    if queries % groups or outputs % (queries + 2 * keys):
        return None
    sizes = [queries // groups, keys // groups, keys // groups]
    rows = torch.arange(outputs).reshape(groups, sum(sizes), -1)
    return tuple(piece.flatten() for piece in torch.split(rows, sizes, dim=1))


def _heads(root: nn.Module, path: str) -> tuple[int, int] | None:
    """Query heads and key-value heads, from the nearest configuration at or above a module; None where none says."""
    while True:
        config = getattr(root.get_submodule(path), "config", None)
        queries = getattr(config, "num_attention_heads", None)
        if isinstance(queries, int) and queries > 0:
            keys = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
            grouped = getattr(config, "new_decoder_architecture", False)  # Falcon: then multi_query is void
            if getattr(config, "multi_query", False) and not grouped:
                keys = 1
            return queries, keys if isinstance(keys, int) and keys > 0 else queries
        if not path:
            return None
        path = path.rpartition(".")[0]


def blocks_of(module: nn.Module) -> tuple[str, ...]:
    """Find the paths of the transformer blocks: the items of the longest list of like modules.

    Returns:
        Paths in order; empty where no list of at least one module with children exists.
    """
    best: tuple[str, ...] = ()
    for path, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential):
            continue
        items = list(part.named_children())
        alike = len({type(item) for _, item in items}) == 1 and all(
            any(True for _ in item.children()) for _, item in items
        )
        if alike and len(items) > len(best):
            best = tuple(f"{path}.{name}".lstrip(".") for name, _ in items)
    return best


def depth_within(layers: tuple[Layer, ...], path: str) -> int:
    """Give the depth of something that is not a layer itself: that of the last layer inside it.

    Returns:
        The layer's depth, or that of the last layer whose path starts with `path`; 0 where there is none.
    """
    inside = [layer.depth for layer in layers if layer.path == path or layer.path.startswith(f"{path}.")]
    return max(inside, default=0)
