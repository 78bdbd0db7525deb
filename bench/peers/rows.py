"""What is measured: shapes in families, and who takes part in each."""

from dataclasses import dataclass, replace

FAMILIES = ("forward", "short", "backward", "decode", "options", "math", "threads", "layout")
BOTH = (False, True)
DTYPES = ("f32", "bf16")


@dataclass(frozen=True)
class Row:
    """One shape: q [batch, heads, queries, head_dim] on k, v [batch, kv_heads, keys, head_dim]."""

    family: str
    kind: str  # "forward", "backward" (forward and backward together) or "decode"
    dtype: str
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    queries: int
    keys: int
    causal: bool = False
    rule: str = "plain"  # or "key_bias", "window", "lifetimes", "segments"
    reach: int = 0  # keys of a window, mean lifetime, length of a segment
    tokens_first: bool = False  # tensors lie as [batch, tokens, heads, head_dim]

    @property
    def bytes(self):
        """K and V, which decoding has to read once."""
        return 2 * self.batch * self.kv_heads * self.keys * self.head_dim * (4 if self.dtype == "f32" else 2)

    def __str__(self):
        length = f"{self.queries}x{self.keys}" if self.queries != self.keys else str(self.keys)
        heads = str(self.heads) if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        mask = "causal" if self.causal else "full"
        if self.rule != "plain":
            mask += f" {self.rule} {self.reach or ''}".rstrip()
        if self.tokens_first:
            mask += ", tokens first"
        kind = self.kind if self.kind == self.family else f"{self.family} {self.kind}"
        return f"{kind} {self.dtype} {self.batch}x{heads} heads, D {self.head_dim}, {length} {mask}"


@dataclass(frozen=True)
class Contender:
    """A peer with the settings it runs under; `label` names it in the record."""

    label: str
    peer: str
    threads: int
    math: bool = False
    plain: bool = False  # leaves the row's rule out

    def measures(self, row):
        """The row as this contender runs it."""
        return replace(row, rule="plain", reach=0) if self.plain else row


def square(family, kind, dtype, head_dim, length, causal, batch=1, heads=8):
    """A row with as many queries as keys and as many key/value heads as query heads."""
    return Row(family, kind, dtype, batch, heads, heads, head_dim, length, length, causal)


def forward(quick):
    """The plain forward pass."""
    lengths, dims = ((128,), (64,)) if quick else ((512, 1024, 4096), (64, 128))
    return [
        square("forward", "forward", t, d, n, c)
        for t in DTYPES for d in dims for n in lengths for c in BOTH
    ]  # fmt: skip


def short(quick):
    """Short sequences, few and many at a time."""
    lengths, batches = ((16, 17), (1,)) if quick else ((16, 32, 64, 128, 256), (1, 8))
    return [
        square("short", "forward", t, 64, n, c, batch=b)
        for t in DTYPES for b in batches for n in lengths for c in BOTH
    ]  # fmt: skip


def backward(quick):
    """Forward and backward together."""
    lengths, dims = ((64,), (64,)) if quick else ((1024, 4096), (64, 128))
    return [
        square("backward", "backward", t, d, n, c)
        for t in DTYPES for d in dims for n in lengths for c in BOTH
    ]  # fmt: skip


def decode(quick):
    """One query on a long cache, with and without shared key/value heads."""
    keys = 512 if quick else 32768
    return [Row("decode", "decode", t, 1, h, 8, 128, 1, keys) for t in DTYPES for h in (32, 8)]


def options(quick):
    """Key biases, windows, lifetimes and packed sequences: time has to follow the visible pairs."""
    n, long, reaches = (128, 256, (32,)) if quick else (4096, 16384, (256, 1024))
    scattered = [(rule, reach) for rule in ("window", "lifetimes") for reach in reaches]
    kinds = ("forward", "backward")
    biased = [replace(square("options", k, "f32", 64, n, c), rule="key_bias") for k in kinds for c in BOTH]
    packed = [square("options", "forward", "f32", 64, 2 * n, c) for c in BOTH]
    return (
        biased
        + [replace(square("options", k, "f32", 64, n, True), rule=r, reach=w) for k in kinds for r, w in scattered]
        + [replace(square("options", "forward", "f32", 64, long, True), rule=r, reach=w) for r, w in scattered]
        + [replace(row, rule="segments", reach=n // 8) for row in packed]
    )


MATH_LENGTHS = (
    1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 64, 65, 100, 128, 200, 256, 384, 512, 777, 1000, 1024, 1536, 2048, 3000, 4096,
    5000, 8192, 10000, 16384,
)  # fmt: skip


def math(quick):
    """Lengths of every kind, against paths that store the scores: fused must never be slower."""
    lengths = (1, 17, 64) if quick else MATH_LENGTHS
    return [square("math", "forward", "f32", 64, n, False, heads=8 if n <= 4096 else 1) for n in lengths]


def threads(quick):
    """Regard alone, on one thread and on all."""
    lengths = (64,) if quick else (1024, 4096)
    return [square("threads", k, "f32", 64, n, c) for k in ("forward", "backward") for n in lengths for c in BOTH]


def layout(quick):
    """Tensors as projections leave them, a head's rows far apart."""
    lengths, dims = ((64,), (64,)) if quick else ((1024, 4096), (64, 128))
    kinds = ("forward", "backward")
    plain = [square("layout", k, "f32", d, n, c) for k in kinds for d in dims for n in lengths for c in BOTH]
    return [replace(row, tokens_first=True) for row in plain]


def rows(families, quick):
    """The rows of these families, in the order of FAMILIES."""
    makers = dict(zip(FAMILIES, (forward, short, backward, decode, options, math, threads, layout)))
    return [row for name in FAMILIES if name in families for row in makers[name](quick)]


def contenders(row, peers, count):
    """Who is measured in a row, in the order of their turns."""
    regard = Contender("regard", "regard", count)
    if row.family == "threads":
        return [regard, Contender("regard_one_thread", "regard", 1)]
    if row.family == "math":
        stored = Contender("materialised", "materialised", count)
        return [regard, stored] + [Contender("torch_math", "torch", count, math=True)] * ("torch" in peers)
    if row.family == "options":
        plain = Contender("regard_plain", "regard", count, plain=True)
        return [regard, plain] + [Contender("torch", "torch", count)] * ("torch" in peers and storable(row))
    return [regard] + [Contender(name, name, count) for name in peers if name == "torch" or few(row)]


def few(row):
    """The rows of Candle and Burn: f32 forward, 8 heads of 64, longer than 512."""
    return row.family == "forward" and row.dtype == "f32" and row.head_dim == 64 and row.keys != 512


def storable(row):
    """Whether PyTorch's mask of the row fits into a machine: a lifetime per head and key needs one mask per head."""
    return row.rule != "lifetimes" or row.keys <= 4096
