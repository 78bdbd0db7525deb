//! What is attended to: random q, k, v with a few large logits, or those of a file, cut or tiled to a length; and what
//! mechanisms read beside them.

use super::draw::Draw;
use crate::failure::{Failure, warn};
use crate::files::Archive;
use crate::memory;
use crate::tensor::{Data, Float, Tensor};
use rayon::prelude::*;
use regard_core::{Dims, Element, Error, Problem, Scores, Sight};

/// Every so many keys one is long, so that its logits are large.
const LARGE_EVERY: usize = 97;
/// How much longer.
const LARGE: f32 = 6.0;
/// Spread of the noise on repeated rows, as a fraction of the tensor's own.
const NOISE: f64 = 0.1;

/// Tokens that share a centre of hidden states.
const TOKENS_PER_CENTRE: usize = 8;
/// Gated linear attention divides the logarithms of its gates by it.
const GATE_TEMPERATURE: f32 = 16.0;
/// A normal number is larger with a probability of one in ten.
const ONE_IN_TEN: f32 = 1.281_551_6;

/// Sizes that do not depend on the length.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// B.
    pub batch: usize,
    /// H.
    pub heads: usize,
    /// G.
    pub kv_heads: usize,
    /// Width of q and k.
    pub dk: usize,
    /// Width of v.
    pub dv: usize,
}

impl Sizes {
    /// With as many queries as keys.
    pub fn dims(self, length: usize) -> Dims {
        let Sizes { batch, heads, kv_heads, dk, dv } = self;
        Dims { batch, heads, kv_heads, queries: length, keys: length, dk, dv }
    }
}

/// Inputs of one length.
pub struct Heads {
    /// `[B, H, N, Dk]`.
    pub q: Tensor,
    /// `[B, G, N, Dk]`.
    pub k: Tensor,
    /// `[B, G, N, Dv]`.
    pub v: Tensor,
    /// `[B, H, N, Dv]`.
    pub d_o: Tensor,
    /// Of the mechanisms that read more.
    pub beside: Beside,
    /// Their sizes.
    pub dims: Dims,
}

/// What single mechanisms read, where one of them is measured.
#[derive(Default)]
pub struct Beside {
    /// Hidden states `[B, 1, N, E]`: the file's, or around one centre for every 8 tokens, with a little noise.
    pub x: Option<Tensor>,
    /// Types of keys `[B, G, N]`: one in ten global, the others window keys.
    pub types: Option<Vec<i64>>,
    /// Logarithms of gates `[B, H, N, Dk]`: those of a sigmoid of normal numbers, over 16.
    pub gates: Option<Tensor>,
    /// Codewords `[1, G, S, Dk]`: keys of the first batch row, evenly spaced.
    pub codebook: Option<Tensor>,
    /// Codewords `[1, H, S, Dk]`: queries likewise.
    pub codebook_q: Option<Tensor>,
    /// Shares of heads before a sigmoid `[H]`: normal numbers.
    pub mix: Option<Vec<f32>>,
}

/// Tensors beside q, k and v that are to be made, and how many codewords a codebook has.
#[derive(Clone, Default)]
pub struct Wanted {
    /// Their names.
    pub tensors: Vec<&'static str>,
    /// Of keys and of queries.
    pub codewords: [usize; 2],
}

/// Where inputs come from.
pub struct Source {
    /// Of every length.
    pub sizes: Sizes,
    /// Their type.
    pub float: Float,
    /// What they are made from if not from chance alone.
    pub captured: Option<Captured>,
    /// What is made beside q, k and v.
    pub wanted: Wanted,
    /// Of whatever is random.
    pub seed: u64,
}

impl Source {
    /// Random inputs.
    pub fn random(sizes: Sizes, float: Float, seed: u64) -> Self {
        Source { sizes, float, captured: None, wanted: Wanted::default(), seed }
    }

    /// A file's.
    pub fn captured(captured: Captured, float: Option<Float>, seed: u64) -> Self {
        let float = float.unwrap_or(captured.float);
        Source { sizes: captured.sizes, float, captured: Some(captured), wanted: Wanted::default(), seed }
    }

    /// The file that inputs are made from.
    pub fn file(&self) -> Option<String> {
        self.captured.as_ref().map(|captured| captured.path.clone())
    }

    /// Says at which lengths a file's rows are repeated.
    pub fn warn_of_repeats(&self, lengths: &[usize]) {
        for length in lengths.iter().filter(|&&length| self.captured.as_ref().is_some_and(|captured| captured.is_repeated_at(length))) {
            warn(&format!("length {length} is longer than the file: its rows are repeated, with noise"));
        }
    }

    /// Inputs of this length.
    pub fn heads(&self, length: usize) -> Heads {
        self.heads_of(self.sizes, length)
    }

    /// The same of fewer heads or batch rows.
    pub fn heads_of(&self, sizes: Sizes, length: usize) -> Heads {
        match &self.captured {
            None => self.random_heads_of(sizes, length),
            Some(captured) => self.captured_heads(captured, sizes, length),
        }
    }

    /// Random inputs of this length.
    pub fn random_heads(&self, length: usize) -> Heads {
        self.random_heads_of(self.sizes, length)
    }

    fn random_heads_of(&self, sizes: Sizes, length: usize) -> Heads {
        let normals = |tensor, [bh, n]: [usize; 2], row: &mut [f32]| {
            row.fill(0.0);
            Draw::new(self.seed, [tensor, bh, n]).add_normals(1.0, row);
        };
        let keys = |at: [usize; 2], row: &mut [f32]| {
            normals(1, at, row);
            if at[1] % LARGE_EVERY == LARGE_EVERY / 2 {
                row.iter_mut().for_each(|x| *x *= LARGE);
            }
        };
        self.made(sizes.dims(length), |at, row| normals(0, at, row), keys, |at, row| normals(2, at, row))
    }

    fn captured_heads(&self, captured: &Captured, sizes: Sizes, length: usize) -> Heads {
        let rows = |which: usize| self.tiled(&captured.tensors[which], which);
        let mut heads = self.made(sizes.dims(length), rows(0), rows(1), rows(2));
        if let (Some(into), Some(x)) = (&mut heads.beside.x, &captured.x) {
            let [.., width] = x.tensor.shape4();
            *into = filled(self.float, [sizes.batch, 1, length, width], self.tiled(x, 4));
        }
        heads
    }

    /// Rows of a file, again and again, with noise from the second time on.
    fn tiled<'c>(&'c self, Recorded { tensor, spread }: &'c Recorded, name: usize) -> impl Row {
        let [.., tokens, width] = tensor.shape4();
        move |[bh, n]: [usize; 2], row: &mut [f32]| {
            let start = (bh * tokens + n % tokens) * width;
            row.copy_from_slice(&tensor.as_f32()[start..start + width]);
            if n >= tokens {
                Draw::new(self.seed, [name, bh, n]).add_normals(NOISE * spread, row);
            }
        }
    }

    fn made(&self, dims: Dims, q: impl Row, k: impl Row, v: impl Row) -> Heads {
        let Dims { batch, heads, kv_heads, keys: length, dk, dv, .. } = dims;
        let d_o = |[bh, n]: [usize; 2], row: &mut [f32]| {
            row.fill(0.0);
            Draw::new(self.seed, [3, bh, n]).add_normals(1.0, row);
        };
        let mut made = Heads {
            q: filled(self.float, [batch, heads, length, dk], q),
            k: filled(self.float, [batch, kv_heads, length, dk], k),
            v: filled(self.float, [batch, kv_heads, length, dv], v),
            d_o: filled(self.float, [batch, heads, length, dv], d_o),
            beside: Beside::default(),
            dims,
        };
        made.beside = self.beside(&made);
        made
    }

    fn beside(&self, heads: &Heads) -> Beside {
        let Dims { batch, heads: h, kv_heads, keys: length, dk, .. } = heads.dims;
        let centre = |[bh, n]: [usize; 2], row: &mut [f32]| {
            row.fill(0.0);
            Draw::new(self.seed, [4, bh, n % length.div_ceil(TOKENS_PER_CENTRE)]).add_normals(1.0, row);
            Draw::new(self.seed, [5, bh, n]).add_normals(NOISE, row);
        };
        let kind = |at: usize| {
            let mut chance = [0.0];
            Draw::new(self.seed, [6, at / length, at % length]).add_normals(1.0, &mut chance);
            if chance[0] > ONE_IN_TEN { 0 } else { 2 }
        };
        let gate = |[bh, n]: [usize; 2], row: &mut [f32]| {
            row.fill(0.0);
            Draw::new(self.seed, [7, bh, n]).add_normals(1.0, row);
            row.iter_mut().for_each(|x| *x = -(-*x).exp().ln_1p() / GATE_TEMPERATURE);
        };
        let shares = || {
            let mut shares = vec![0.0; h];
            Draw::new(self.seed, [8, 0, 0]).add_normals(1.0, &mut shares);
            shares
        };
        let wants = |tensor| self.wanted.tensors.contains(&tensor);
        let [codewords, codewords_q] = self.wanted.codewords;
        Beside {
            x: wants("x").then(|| filled(self.float, [batch, 1, length, h * dk], centre)),
            types: wants("types").then(|| (0..batch * kv_heads * length).map(kind).collect()),
            gates: wants("gates").then(|| filled(self.float, [batch, h, length, dk], gate)),
            codebook: wants("codebook").then(|| spaced(&heads.k, codewords)),
            codebook_q: wants("codebook_q").then(|| spaced(&heads.q, codewords_q)),
            mix: wants("mix").then(shares),
        }
    }
}

/// Evenly spaced rows of the first batch row's heads, at most as many as there are, in f32.
fn spaced(rows: &Tensor, count: usize) -> Tensor {
    let [_, heads, tokens, width] = rows.shape4();
    let count = count.min(tokens);
    let view = rows.view("rows").expect("a tensor has its own shape");
    let values: Vec<f64> = (0..heads * count * width)
        .map(|i| [0, i / (count * width), i / width % count * tokens / count, i % width])
        .map(|at| f64::from(view.at(at)))
        .collect();
    Tensor::rounded(Float::F32, &[1, heads, count, width], &values)
}

/// Writes the row of a head and token.
trait Row: Fn([usize; 2], &mut [f32]) + Sync {}
impl<F: Fn([usize; 2], &mut [f32]) + Sync> Row for F {}

fn filled(float: Float, shape: [usize; 4], row: impl Row) -> Tensor {
    let mut tensor = Tensor::zeros(float, &shape);
    match &mut tensor.data {
        Data::F32(x) => fill(x, shape, row),
        Data::Bf16(x) => fill(x, shape, row),
        Data::F16(x) => fill(x, shape, row),
        _ => {}
    }
    tensor
}

fn fill<T: Element>(values: &mut [T], [.., tokens, width]: [usize; 4], row: impl Row) {
    values.par_chunks_mut(width).enumerate().for_each_init(
        || vec![0.0; width],
        |buffer, (at, into)| {
            row([at / tokens, at % tokens], buffer);
            for (to, &from) in into.iter_mut().zip(buffer.iter()) {
                *to = T::from_f32(from);
            }
        },
    );
}

/// q, k, v of a file, and hidden states where it has them.
pub struct Captured {
    tensors: [Recorded; 3],
    /// `[B, 1, N, E]`.
    x: Option<Recorded>,
    sizes: Sizes,
    float: Float,
    path: String,
}

struct Recorded {
    /// In f32.
    tensor: Tensor,
    /// Standard deviation.
    spread: f64,
}

impl Captured {
    /// Reads q, k, v and x.
    pub fn read(archive: &Archive) -> Result<Self, Failure> {
        let path = archive.path().display().to_string();
        let names = ["q", "k", "v"];
        memory::check_room(4.0 * archive.bytes(&names) as f64, &path)?;
        let float = archive.float("q", &[Float::F32, Float::Bf16, Float::F16, Float::F64])?;
        let recorded = |name: &'static str| {
            archive.shape4(name)?;
            archive.float(name, &[float])?;
            archive.finite(name, false).map(Recorded::new)
        };
        let tensors = [recorded("q")?, recorded("k")?, recorded("v")?];
        let sizes = checked(&tensors).map_err(|error| Failure::Data(format!("{path}: {error}")))?;
        if let Some(name) = names.iter().zip(&tensors).find_map(|(name, recorded)| recorded.tensor.shape.contains(&0).then_some(name)) {
            return Err(archive.refuse(name, "is empty; there is nothing to measure on"));
        }
        let x = archive.entry("x").map(|_| hidden_states(archive, float, &tensors[1].tensor)).transpose()?;
        let float = if float == Float::F64 { Float::F32 } else { float };
        Ok(Captured { tensors, x, sizes, float, path })
    }

    /// Tokens it has.
    pub fn length(&self) -> usize {
        self.tensors[1].tensor.shape[2]
    }

    /// Whether inputs of this length repeat some of its rows.
    fn is_repeated_at(&self, length: usize) -> bool {
        self.tensors.iter().any(|recorded| recorded.tensor.shape[2] < length)
    }
}

/// x as `[B, 1, N, E]`.
fn hidden_states(archive: &Archive, float: Float, k: &Tensor) -> Result<Recorded, Failure> {
    archive.float("x", &[float, Float::F32])?;
    let mut x = archive.finite("x", false)?;
    let [batch, _, tokens, _] = k.shape4();
    match x.shape[..] {
        [b, n, width] if [b, n] == [batch, tokens] && width > 0 => x.shape = vec![b, 1, n, width],
        _ => return Err(archive.refuse("x", &format!("has shape {:?}, expected [{batch}, {tokens}, E]", x.shape))),
    }
    Ok(Recorded::new(x))
}

fn checked([q, k, v]: &[Recorded; 3]) -> Result<Sizes, Error> {
    let views = (q.tensor.view("q")?, k.tensor.view("k")?, v.tensor.view("v")?);
    let Dims { batch, heads, kv_heads, dk, dv, .. } = *Problem::new(views.0, views.1, views.2, Sight::full(), Scores::new())?.dims();
    Ok(Sizes { batch, heads, kv_heads, dk, dv })
}

impl Recorded {
    fn new(tensor: Tensor) -> Self {
        let values = tensor.to_f64();
        let mean = |sum: f64| sum / values.len() as f64;
        let centre = mean(values.iter().sum());
        let spread = mean(values.iter().map(|x| (x - centre).powi(2)).sum()).sqrt();
        Recorded { tensor: tensor.converted(Float::F32), spread }
    }
}
