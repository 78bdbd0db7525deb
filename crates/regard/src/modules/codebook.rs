//! Codewords that follow what they stand for by moving averages, for `vq` and `vq_qk`: [`crate::mechanism`] reads them, no gradient does.
//!
//! All that the averages consist of lies in untracked parameters, so that a record holds it and training goes on to the same bits. A forward
//! pass changes nothing; it leaves [`Statistics`], and [`Codebook::after_step`] takes them in. Codewords start at random numbers, and at the
//! first step of training at vectors drawn from its batch; a code that nobody has had for long starts again at a drawn one.
//! van den Oord et al. 2017; Lingle 2023, arXiv 2309.16354.

use crate::attention::Read;
use crate::{Attention, Error, door};
use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use regard_core::mechanism::{Pass, Trace};
use regard_core::quantise;

pub use regard_core::quantise::Statistics;

/// The codebook of some heads, of their keys or of their queries.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use regard::mechanism::Vq;
/// use regard::modules::Codebook;
/// use regard::{Attention, Pass, attention_traced};
///
/// let device = Device::flex();
/// let normal = |heads| Tensor::<4>::random([2, heads, 20, 8], Distribution::Normal(0.0, 1.0), &device);
/// let (q, k, v) = (normal(4), normal(2), normal(2));
/// let mut codebook = Codebook::of_keys([2, 16, 8], &device);
/// let how = Attention::causal().mechanism(Vq::default()).pass(Pass { training: true, seed: 1, step: 0 });
/// let how = codebook.attention([&q, &k], how)?;
/// let (o, traces) = attention_traced(q.clone(), k.clone(), v, &how)?;
/// let statistics = codebook.statistics([&q, &k], &traces, &how)?;
/// codebook.after_step(&statistics)?; // behind the optimiser's
/// assert!(o.dims() == [2, 4, 20, 8] && statistics.perplexity(0) <= 16.0);
/// # Ok::<(), regard::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct Codebook {
    /// Codewords, `[heads, S, D]`.
    pub rows: Param<Tensor<3>>,
    /// How many vectors a code has had, averaged, `[heads, S]`; all are 0 as long as nothing was drawn.
    pub sizes: Param<Tensor<2>>,
    /// Sums of those vectors, averaged, `[heads, S, D]`.
    pub sums: Param<Tensor<3>>,
    #[module(skip)]
    side: Side,
}

/// What is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Keys,
    Queries,
}

impl Codebook {
    /// Of keys: for G kv heads, codewords of each, and their width.
    pub fn of_keys(shape: [usize; 3], device: &Device) -> Self {
        Self::new(shape, Side::Keys, device)
    }

    /// Of queries: for H query heads, codewords of each, and their width.
    pub fn of_queries(shape: [usize; 3], device: &Device) -> Self {
        Self::new(shape, Side::Queries, device)
    }

    fn new(shape: [usize; 3], side: Side, device: &Device) -> Self {
        let [heads, count, _] = shape;
        Codebook {
            side,
            rows: Param::from_tensor(Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)).set_require_grad(false),
            sizes: Param::from_tensor(Tensor::zeros([heads, count], device)).set_require_grad(false),
            sums: Param::from_tensor(Tensor::zeros(shape, device)).set_require_grad(false),
        }
    }

    /// Whether the first step of training is behind it.
    pub fn is_drawn(&self) -> bool {
        self.sizes.val().into_data().iter::<f32>().any(|size| size > 0.0)
    }

    /// Attention that reads these codewords; in the first step of training, some of its keys or queries instead: q `[B, H, N, D]`, k
    /// `[B, G, M, D]`.
    ///
    /// # Errors
    /// If the codewords do not fit them.
    pub fn attention(&self, heads: [&Tensor<4>; 2], how: Attention) -> Result<Attention, Error> {
        let (vectors, valid) = (self.vectors(heads), self.valid(heads, &how));
        let [_, heads, _, width] = vectors.dims();
        door::expect("codebook", &self.rows.dims(), &[heads, self.rows.dims()[1], width])?;
        let pass = how.rules.pass();
        let rows = if !pass.training || vectors.dims().contains(&0) || self.is_drawn() {
            self.rows.val()
        } else {
            let found = self.of(vectors, &valid, pass)?;
            Tensor::from_data(TensorData::new(found.drawn, self.rows.dims()), &vectors.device())
        };
        Ok(match self.side {
            Side::Keys => how.codebook(rows),
            Side::Queries => how.codebook_q(rows),
        })
    }

    fn vectors<'a>(&self, [q, k]: [&'a Tensor<4>; 2]) -> &'a Tensor<4> {
        match self.side {
            Side::Keys => k,
            Side::Queries => q,
        }
    }

    /// 0 for rows that a call takes into account, -1 for padding.
    fn valid(&self, heads: [&Tensor<4>; 2], how: &Attention) -> Vec<i64> {
        let [batch, rows, tokens, _] = self.vectors(heads).dims();
        let lengths = match self.side {
            Side::Keys => how.rules.key_lengths(),
            Side::Queries => how.rules.query_lengths(heads.map(|x| x.dims()[2])),
        };
        let length = |b: usize| lengths.and_then(|lengths| lengths.get(b)).copied().unwrap_or(tokens);
        (0..batch * rows * tokens).map(|at| if at % tokens < length(at / tokens / rows) { 0 } else { -1 }).collect()
    }

    fn codes<'a>(&self, traces: &'a [Trace]) -> Result<&'a Trace, Error> {
        let name = match self.side {
            Side::Keys => "codes",
            Side::Queries => "codes_q",
        };
        let missing = || regard_core::Error::Combination(format!("the traces hold no {name}"));
        Ok(traces.iter().find(|trace| trace.name == name).ok_or_else(missing)?)
    }

    /// What a training step says of the codes of its queries or keys, from the traces of its attention.
    ///
    /// # Errors
    /// If there are no codes, or they do not fit.
    pub fn statistics(&self, heads: [&Tensor<4>; 2], traces: &[Trace], how: &Attention) -> Result<Statistics, Error> {
        self.of(self.vectors(heads), &self.codes(traces)?.values, how.rules.pass())
    }

    fn of(&self, vectors: &Tensor<4>, codes: &[i64], pass: Pass) -> Result<Statistics, Error> {
        let read = Read::new(vectors);
        let view = read.view(vectors.dims(), "vectors")?;
        // Another draw in every step; the multiplier is odd, so that no two steps of a run share one.
        let seed = pass.seed ^ pass.step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Ok(Statistics::of(&view, codes, self.rows.dims()[1], seed)?)
    }

    /// One step of the averages, behind the step of the optimiser. Returns how many codes started again.
    ///
    /// # Errors
    /// If the statistics are those of another shape.
    pub fn after_step(&mut self, statistics: &Statistics) -> Result<u64, Error> {
        let mut next = self.read(statistics);
        next.after_step(statistics)?;
        let [heads, count, width] = next.shape;
        let device = self.rows.val().device();
        let whole = |values| TensorData::new(values, [heads, count, width]);
        set(&mut self.rows, Tensor::from_data(whole(next.rows), (&device, DType::F32)));
        set(&mut self.sums, Tensor::from_data(whole(next.sums), (&device, DType::F32)));
        set(&mut self.sizes, Tensor::from_data(TensorData::new(next.sizes, [heads, count]), (&device, DType::F32)));
        Ok(next.restarts)
    }

    fn read(&self, statistics: &Statistics) -> quantise::Codebook {
        let drawn = self.is_drawn();
        let all = |x: &Param<Tensor<3>>| if drawn { x.val().into_data().iter().collect() } else { statistics.drawn.clone() };
        let sizes: Vec<f32> = self.sizes.val().into_data().iter().collect();
        quantise::Codebook {
            shape: self.rows.dims(),
            rows: all(&self.rows),
            sums: all(&self.sums),
            sizes: if drawn { sizes } else { vec![1.0; sizes.len()] },
            decay: quantise::Codebook::DECAY,
            floor: quantise::Codebook::FLOOR,
            restarts: 0,
        }
    }

    /// The commitment `Σ ‖x - C_c(x)‖² / count` over queries or keys that have a code, `[1]` in f32, with the gradient by them; the codewords
    /// are those of the call.
    ///
    /// # Errors
    /// If there are no codes.
    pub fn commitment(&self, heads: [&Tensor<4>; 2], traces: &[Trace], how: &Attention) -> Result<Tensor<1>, Error> {
        let (codes, vectors) = (&self.codes(traces)?.values, self.vectors(heads));
        let [batch, heads, tokens, width] = vectors.dims();
        let words = match self.side {
            Side::Keys => how.rules.codebook.as_ref(),
            Side::Queries => how.rules.codebook_q.as_ref(),
        };
        let count = codes.iter().filter(|code| **code >= 0).count();
        let (Some(words), true) = (words, count > 0) else {
            return Ok(Tensor::zeros([1], (&vectors.device(), DType::F32)));
        };
        let upload = |values: Vec<f32>, width: usize| {
            Tensor::<4>::from_data(TensorData::new(values, [batch, heads, tokens, width]), (&vectors.device(), DType::F32))
        };
        let nearest = codes.iter().enumerate().flat_map(|(at, &code)| words.row(at / tokens % heads, code.max(0) as usize)).copied();
        let there = upload(codes.iter().map(|&code| f32::from(u8::from(code >= 0))).collect(), 1);
        let away = (vectors.clone().cast(DType::F32) - upload(nearest.collect(), width)) * there;
        Ok(away.powi_scalar(2).sum() * (1.0 / count as f64))
    }
}

fn set<const D: usize>(param: &mut Param<Tensor<D>>, value: Tensor<D>) {
    *param = param.clone().map(|_| value);
}
