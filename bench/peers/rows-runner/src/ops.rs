//! The calls into Regard's row operations: the only file here that knows their interface.
//!
//! | operation | x | `out` |
//! |---|---|---|
//! | `gelu`, `gelu_tanh`, `silu`, `softmax`, `log_softmax`, `layer_norm`, `rms_norm`, `swiglu` | `[rows, width]` | unused |
//! | `cross_entropy` | logits `[rows, width]` | unused |
//! | `rotary` | `[1, rows/out, out, width]`, all dims turned | tokens |
//! | `embedding` | `rows` ids | vocabulary, of a table `[out, width]` |
//! | `linear`, `linear_gelu` | `[rows, width]`, weight `[out, width]` | outputs |

use crate::values::{ids, normal};
use crate::{Pass, Row};
use bytemuck::Pod;
use peer_protocol::{Aligned, Result};
use regard_core::rows::linear::{self, WeightGradient};
use regard_core::rows::{Activation, Labels, Linear, Matrix, MatrixMut, Norm, Rotary, Turns};
use regard_core::rows::{activation, cross_entropy, embedding, norm, softmax, swiglu};
use regard_core::{Element, Par, Strided, StridedMut};

const EPSILON: f32 = 1e-5;
/// Of the weights of linear maps, so that outputs are about as large as inputs.
const SPREAD: f32 = 1.0 / 16.0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Curve(Activation),
    Softmax,
    LogSoftmax,
    CrossEntropy,
    LayerNorm,
    RmsNorm,
    Swiglu,
    Rotary,
    Embedding,
    Linear(Activation),
}

impl Op {
    fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "gelu" => Op::Curve(Activation::Gelu),
            "gelu_tanh" => Op::Curve(Activation::GeluTanh),
            "silu" => Op::Curve(Activation::Silu),
            "softmax" => Op::Softmax,
            "log_softmax" => Op::LogSoftmax,
            "cross_entropy" => Op::CrossEntropy,
            "layer_norm" => Op::LayerNorm,
            "rms_norm" => Op::RmsNorm,
            "swiglu" => Op::Swiglu,
            "rotary" => Op::Rotary,
            "embedding" => Op::Embedding,
            "linear" => Op::Linear(Activation::None),
            "linear_gelu" => Op::Linear(Activation::Gelu),
            other => return Err(format!("there is no operation {other}").into()),
        })
    }

    /// Shapes of x, of the weight (in one of its two dims where it is a vector) and of y.
    fn shapes(self, row: &Row) -> [[usize; 2]; 3] {
        let Row { rows, width, out, .. } = *row;
        match self {
            Op::Embedding => [[0, width], [out, width], [rows, width]],
            Op::Linear(_) => [[rows, width], [out, width], [rows, out]],
            Op::LayerNorm | Op::RmsNorm => [[rows, width], [1, width], [rows, width]],
            Op::Swiglu => [[rows, width], [rows, width], [rows, width]],
            _ => [[rows, width], [0, 0], [rows, width]],
        }
    }
}

/// Everything that an operation reads and writes. What an operation does not use is empty.
pub struct Arrays<T> {
    op: Op,
    shapes: [[usize; 2]; 3],
    x: Aligned<T>,
    /// The table of an embedding; `up` of SwiGLU.
    weight: Aligned<T>,
    bias: Aligned<T>,
    dy: Aligned<T>,
    ids: Vec<i64>,
    turns: Turns,
    y: Aligned<T>,
    /// What the activation of a linear map was applied to.
    z: Aligned<T>,
    lse: Vec<f32>,
    loss: f32,
    dx: Aligned<T>,
    dweight: Aligned<T>,
    dbias: Aligned<T>,
}

impl<T: Element + Pod> Arrays<T> {
    /// The inputs, and the outputs of one forward pass.
    pub fn new(row: &Row) -> Result<Self> {
        let op = Op::named(&row.op)?;
        let [x, weight, y] = op.shapes(row).map(|shape| shape[0] * shape[1]);
        let tokens = if op == Op::Rotary { row.out } else { 0 };
        let bias = if matches!(op, Op::Linear(_)) { row.out } else { row.width };
        let bound = if op == Op::Embedding { row.out } else { row.width };
        let mut arrays = Arrays {
            op,
            shapes: op.shapes(row),
            x: normal(1, x, 1.0),
            weight: normal(3, weight, if matches!(op, Op::Linear(_)) { SPREAD } else { 1.0 }),
            bias: normal(4, bias, 1.0),
            dy: normal(2, y, 1.0),
            ids: ids(6, row.rows, bound),
            turns: Turns::new(&Rotary::new(row.width & !1), &(0..tokens as i64).collect::<Vec<_>>(), Par::default())?,
            y: Aligned::zeros(y),
            z: Aligned::zeros(if op == Op::Linear(Activation::Gelu) { y } else { 0 }),
            lse: vec![0.0; row.rows],
            loss: 0.0,
            dx: Aligned::zeros(x),
            dweight: Aligned::zeros(weight),
            dbias: Aligned::zeros(bias),
        };
        arrays.prepare()?;
        Ok(arrays)
    }

    /// One forward pass with everything that the backward pass reads.
    fn prepare(&mut self) -> Result<()> {
        self.forward()?;
        let [x, weight, y] = self.shapes;
        if let (Op::Linear(f), false) = (self.op, self.z.is_empty()) {
            let map = Linear::new(Matrix::new(&self.weight, weight, "weight")?, Some(&self.bias)).activation(f);
            let z = &mut MatrixMut::new(&mut self.z, y, "z")?;
            map.forward(&Matrix::new(&self.x, x, "x")?, &mut MatrixMut::new(&mut self.y, y, "y")?, Some(z), Par::default())?;
        }
        Ok(())
    }

    pub fn forward(&mut self) -> Result<()> {
        let ([xs, ws, ys], par) = (self.shapes, Par::default());
        let (x, weight) = (Matrix::new(&self.x, xs, "x")?, Matrix::new(&self.weight, ws, "weight")?);
        let mut y = MatrixMut::new(&mut self.y, ys, "y")?;
        match self.op {
            Op::Curve(f) => activation::forward(f, &x, &mut y, par)?,
            Op::Softmax => softmax::forward(&x, &mut y, par)?,
            Op::LogSoftmax => softmax::log_forward(&x, &mut y, par)?,
            Op::CrossEntropy => self.loss = cross_entropy::forward(&x, &Labels::new(&self.ids), &mut self.lse, par)?,
            Op::LayerNorm => norm::forward(&Norm::layer(&self.weight, Some(&self.bias), EPSILON), &x, &mut y, par)?,
            Op::RmsNorm => norm::forward(&Norm::rms(&self.weight, EPSILON), &x, &mut y, par)?,
            Op::Swiglu => swiglu::forward(&x, &weight, &mut y, par)?,
            Op::Embedding => embedding::forward(&weight, &self.ids, &mut y, par)?,
            Op::Linear(f) => Linear::new(weight, Some(&self.bias)).activation(f).forward(&x, &mut y, None, par)?,
            Op::Rotary => {
                let shape = heads(xs, self.turns.tokens());
                let mut y = StridedMut::contiguous(&mut self.y, shape, "y")?;
                self.turns.forward(&Strided::contiguous(&self.x, shape, "x")?, &mut y, par)?;
            }
        }
        Ok(())
    }

    pub fn backward(&mut self) -> Result<()> {
        if matches!(self.op, Op::LayerNorm | Op::RmsNorm) {
            return self.norm_backward();
        }
        let ([xs, ws, ys], par) = (self.shapes, Par::default());
        let (x, dy) = (Matrix::new(&self.x, xs, "x")?, Matrix::new(&self.dy, ys, "dy")?);
        let (weight, y) = (Matrix::new(&self.weight, ws, "weight")?, Matrix::new(&self.y, ys, "y")?);
        let mut dx = MatrixMut::new(&mut self.dx, xs, "dx")?;
        let mut dweight = MatrixMut::new(&mut self.dweight, ws, "dweight")?;
        match self.op {
            Op::Curve(f) => activation::backward(f, &x, &dy, &mut dx, par)?,
            Op::Softmax => softmax::backward(&y, &dy, &mut dx, par)?,
            Op::LogSoftmax => softmax::log_backward(&y, &dy, &mut dx, par)?,
            Op::CrossEntropy => cross_entropy::backward(&x, &Labels::new(&self.ids), (&self.lse, 1.0), &mut dx, par)?,
            Op::Swiglu => swiglu::backward([&x, &weight], &dy, [&mut dx, &mut dweight], par)?,
            Op::Embedding => embedding::backward(&self.ids, &dy, &mut dweight, par)?,
            Op::LayerNorm | Op::RmsNorm => unreachable!("norms have gradients of their own"),
            Op::Linear(f) => {
                let z = if self.z.is_empty() { None } else { Some(Matrix::new(&self.z, ys, "z")?) };
                let mut gradients = linear::Gradients {
                    dx: Some(&mut dx),
                    dweight: Some(WeightGradient::Straight(&mut dweight)),
                    dbias: Some(&mut self.dbias),
                };
                let map = Linear::new(weight, Some(&self.bias)).activation(f);
                map.backward(&x, (&dy, z.as_ref()), &mut gradients, par)?;
            }
            Op::Rotary => {
                let shape = heads(xs, self.turns.tokens());
                let mut dx = StridedMut::contiguous(&mut self.dx, shape, "dx")?;
                self.turns.backward(&Strided::contiguous(&self.dy, shape, "dy")?, &mut dx, par)?;
            }
        }
        Ok(())
    }

    fn norm_backward(&mut self) -> Result<()> {
        let (x, dy) = (Matrix::new(&self.x, self.shapes[0], "x")?, Matrix::new(&self.dy, self.shapes[2], "dy")?);
        let dx = &mut MatrixMut::new(&mut self.dx, self.shapes[0], "dx")?;
        let (norm, dbias) = match self.op {
            Op::LayerNorm => (Norm::layer(&self.weight, Some(&self.bias), EPSILON), Some(&mut self.dbias[..])),
            _ => (Norm::rms(&self.weight, EPSILON), None),
        };
        let mut gradients = norm::Gradients { dx, dweight: Some(&mut self.dweight), dbias };
        Ok(norm::backward(&norm, &x, (&dy, None), &mut gradients, Par::default())?)
    }

    /// What a pass wrote, one array behind the other: y or the loss; or the gradients of x, the weight and the bias.
    pub fn results(&self, pass: Pass) -> Vec<f32> {
        let biased = matches!(self.op, Op::Linear(_) | Op::LayerNorm);
        let arrays: &[&[T]] = match (pass, self.op) {
            (Pass::Forward, Op::CrossEntropy) => return vec![self.loss],
            (Pass::Forward, _) => &[&self.y],
            (Pass::Backward, _) => &[&self.dx, &self.dweight, if biased { &self.dbias } else { &[] }],
        };
        arrays.iter().flat_map(|array| array.iter().map(|x| x.to_f32())).collect()
    }
}

/// `[1, heads, tokens, width]`.
fn heads([rows, width]: [usize; 2], tokens: usize) -> [usize; 4] {
    [1, rows / tokens.max(1), tokens, width]
}
