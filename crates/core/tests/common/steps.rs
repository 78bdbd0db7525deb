//! One sequence, token after token.

use super::heads::{Heads, Tensor};
use super::sample::Sample;
use super::{levels, widen};
use regard_core::mechanism::{Inputs, Mechanism, Memory, Pass, Plan, State, Token, Tokens};
use regard_core::oracle::{Definition, Storage};
use regard_core::{Error, Output, Par, Sight, Strided, View};
use std::ops::Range;

/// One sequence with everything that may come with its tokens.
pub struct Sequence {
    pub heads: Heads,
    /// `[G, N]`.
    pub key_bias: Option<Vec<f32>>,
    /// `[G, N]`.
    pub until: Option<Vec<i64>>,
    /// A dense mask, `[1, H|1, N, N]`.
    pub mask: Option<([usize; 4], Vec<u8>)>,
}

impl Sequence {
    pub fn new(heads: Heads) -> Self {
        Sequence { heads, key_bias: None, until: None, mask: None }
    }

    fn tokens(&self) -> usize {
        self.heads.dims.keys
    }

    /// Its tensors as one causal problem.
    pub fn inputs(&self) -> Inputs<'_> {
        let mut sight = Sight::causal();
        if let Some((shape, mask)) = &self.mask {
            sight = sight.mask(Strided::contiguous(mask, *shape, "mask").unwrap());
        }
        Inputs {
            key_bias: self.key_bias.as_deref(),
            until: self.until.as_deref(),
            bias: self.heads.bias.as_ref().map(Tensor::view),
            ..Inputs::new(self.heads.q.view(), self.heads.k.view(), self.heads.v.view(), sight)
        }
    }

    /// Values `[G, count]` of some tokens from `[G, N]`.
    fn side<T: Copy>(&self, values: Option<&[T]>, tokens: Range<usize>) -> Option<Vec<T>> {
        Some(values?.chunks(self.tokens()).flat_map(|head| &head[tokens.clone()]).copied().collect())
    }

    pub fn prefill(&self, state: &mut State, tokens: Range<usize>) -> Result<(), Error> {
        let (k, v) = (rows(&self.heads.k, tokens.clone()), rows(&self.heads.v, tokens.clone()));
        let key_bias = self.side(self.key_bias.as_deref(), tokens.clone());
        let until = self.side(self.until.as_deref(), tokens);
        state.prefill(&Tokens { key_bias: key_bias.as_deref(), until: until.as_deref(), ..Tokens::new(k, v) })
    }

    /// Output `[H, Dv]` and log-sum-exp `[H]` of one token.
    pub fn step(&self, state: &mut State, t: usize, par: Par) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let dims = self.heads.dims;
        let key_bias = self.side(self.key_bias.as_deref(), t..t + 1);
        let until = self.side(self.until.as_deref(), t..t + 1);
        let token = Token {
            q: rows(&self.heads.q, t..t + 1),
            kept: Tokens {
                key_bias: key_bias.as_deref(),
                until: until.as_deref(),
                ..Tokens::new(rows(&self.heads.k, t..t + 1), rows(&self.heads.v, t..t + 1))
            },
            bias: self.heads.bias.as_ref().map(|bias| start_of_row(bias.floats(), bias.shape, t).into()),
            mask: self.mask.as_ref().map(|(shape, mask)| start_of_row(mask, *shape, t)),
        };
        let mut o = Tensor::unfilled(Storage::F32, [1, dims.heads, 1, dims.dv]);
        let mut lse = vec![f32::NAN; dims.heads];
        state.step(&token, &mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par)?;
        Ok((o.floats().to_vec(), lse))
    }

    /// Prefills `first` tokens and steps through the rest; `each` sees the state after every token.
    pub fn run(&self, mechanism: &Mechanism, first: usize, par: Par, mut each: impl FnMut(&State)) -> (Vec<f64>, Vec<f64>) {
        let (dims, tokens) = (self.heads.dims, self.tokens());
        let (mut o, mut lse) = (vec![f64::NAN; dims.heads * tokens * dims.dv], vec![f64::NAN; dims.heads * tokens]);
        let mut state = mechanism.start().unwrap();
        self.prefill(&mut state, 0..first).unwrap();
        for t in first..tokens {
            let (row, row_lse) = self.step(&mut state, t, par).unwrap();
            each(&state);
            for (h, (row, row_lse)) in row.chunks(dims.dv).zip(row_lse).enumerate() {
                o[(h * tokens + t) * dims.dv..][..dims.dv].copy_from_slice(&widen(row));
                lse[h * tokens + t] = row_lse.into();
            }
        }
        (o, lse)
    }

    /// Checks every step after the first tokens against the definition of the whole, at every level.
    pub fn verify(&self, mechanism: &Mechanism, first: usize) {
        self.verify_some(mechanism, first, &(first..self.tokens()).collect::<Vec<_>>());
    }

    /// Checks the steps of some tokens after the first ones.
    pub fn verify_some(&self, mechanism: &Mechanism, first: usize, tokens: &[usize]) {
        let definition = definition(mechanism, &self.inputs());
        let sample = Sample::new(&definition, Storage::F32, tokens);
        for level in levels() {
            let (o, lse) = self.run(mechanism, first, Par::serial().level(level), |_| ());
            sample.check((&o, &lse), &format!("{mechanism:?} after {first} tokens at {level}"));
        }
    }
}

/// The exact problem that a mechanism comes to, as a definition.
pub fn definition(mechanism: &Mechanism, inputs: &Inputs<'_>) -> Definition {
    let choices = mechanism.choose(inputs, Pass::default(), Par::default()).unwrap();
    let plan = mechanism.plan(inputs, &choices, Pass::default()).unwrap();
    plan.problem().expect("it comes to one").definition()
}

/// Some tokens of every head.
pub fn rows(tensor: &Tensor, tokens: Range<usize>) -> View<'_> {
    let [_, heads, n, width] = tensor.shape;
    let strides = [heads * n * width, n * width, width, 1].map(|stride| stride as isize);
    Strided::new(tensor.floats(), tokens.start * width, [1, heads, tokens.len(), width], strides, "tokens").unwrap().into()
}

/// Row `t` of a dense table up to its diagonal, `[1, H|1, 1, t + 1]`.
fn start_of_row<T>(table: &[T], [_, heads, n, m]: [usize; 4], t: usize) -> Strided<'_, T> {
    let strides = [0, n * m, m, 1].map(|stride| stride as isize);
    Strided::new(table, t * m, [1, heads, 1, t + 1], strides, "row").unwrap()
}
