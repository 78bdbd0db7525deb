//! Problems with names: tensors that own their values, and everything the kernel computes of them.

use super::{Judge, Outcome, Random, Stored, siblings, strides, values, ways, widen};
use regard_core::oracle::{Definition, Storage};
use regard_core::{Dims, Gradients, Output, Par, Problem, Saved, Scores, Sight, View, ViewMut, exact};

/// A contiguous tensor.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub shape: [usize; 4],
    stored: Stored,
}

impl Tensor {
    /// Of f32.
    pub fn new(shape: [usize; 4], values: Vec<f32>) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>());
        Tensor { shape, stored: Stored::F32(values) }
    }

    /// Of normal numbers.
    pub fn normal(random: &mut Random, storage: Storage, shape: [usize; 4]) -> Self {
        Tensor { shape, stored: Stored::normal(random, storage, shape.iter().product(), 1.0) }
    }

    /// Of values that are not numbers: whoever fills it fills everything.
    pub fn unfilled(storage: Storage, shape: [usize; 4]) -> Self {
        Tensor { shape, stored: Stored::zeros(storage, shape.iter().product()) }
    }

    pub fn view(&self) -> View<'_> {
        self.stored.view(self.shape, strides(self.shape, false))
    }

    pub fn view_mut(&mut self) -> ViewMut<'_> {
        self.stored.view_mut(self.shape, strides(self.shape, false))
    }

    /// The values of a tensor of f32.
    pub fn floats(&self) -> &[f32] {
        let Stored::F32(values) = &self.stored else { panic!("stored in 16 bits") };
        values
    }

    pub fn floats_mut(&mut self) -> &mut [f32] {
        let Stored::F32(values) = &mut self.stored else { panic!("stored in 16 bits") };
        values
    }

    /// Row `n` of every head of a tensor of f32.
    pub fn row_mut(&mut self, n: usize) -> impl Iterator<Item = &mut [f32]> {
        let [_, _, rows, width] = self.shape;
        self.floats_mut().chunks_mut(width).skip(n).step_by(rows)
    }
}

/// Sizes of a problem with one batch row: query and kv heads, queries and keys, widths of keys and values.
pub fn sizes([heads, kv_heads]: [usize; 2], [queries, keys]: [usize; 2], [dk, dv]: [usize; 2]) -> Dims {
    Dims { batch: 1, heads, kv_heads, queries, keys, dk, dv }
}

/// What attention reads, and the gradient of its output.
#[derive(Debug, Clone)]
pub struct Heads {
    pub dims: Dims,
    pub storage: Storage,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub d_o: Tensor,
    /// A dense bias.
    pub bias: Option<Tensor>,
}

impl Heads {
    /// Normal numbers.
    pub fn draw(dims: Dims, storage: Storage, seed: u64) -> Self {
        let Dims { batch, heads, kv_heads, queries, keys, dk, dv } = dims;
        let random = &mut Random::new(seed);
        let mut normal = |shape| Tensor::normal(random, storage, shape);
        Heads {
            dims,
            storage,
            q: normal([batch, heads, queries, dk]),
            k: normal([batch, kv_heads, keys, dk]),
            v: normal([batch, kv_heads, keys, dv]),
            d_o: normal([batch, heads, queries, dv]),
            bias: None,
        }
    }

    /// Given tensors of f32; the gradient of the output is normal numbers.
    pub fn given([q, k, v]: [Tensor; 3]) -> Self {
        let ([batch, heads, queries, dk], [_, kv_heads, keys, _], dv) = (q.shape, k.shape, v.shape[3]);
        let dims = Dims { batch, heads, kv_heads, queries, keys, dk, dv };
        let d_o = Tensor::normal(&mut Random::new(1), Storage::F32, [batch, heads, queries, dv]);
        Heads { dims, storage: Storage::F32, q, k, v, d_o, bias: None }
    }

    /// Normal numbers in f32.
    pub fn single(dims: Dims, seed: u64) -> Self {
        Self::draw(dims, Storage::F32, seed)
    }

    /// With a dense bias of normal numbers.
    pub fn with_bias(self, [batch, heads]: [usize; 2], seed: u64) -> Self {
        let shape = [batch, heads, self.dims.queries, self.dims.keys];
        Heads { bias: Some(Tensor::normal(&mut Random::new(seed), Storage::F32, shape)), ..self }
    }

    /// Attention over these tensors.
    pub fn problem<'a>(&'a self, sight: Sight<'a>, scores: Scores<'a>) -> Problem<'a> {
        let scores = match &self.bias {
            Some(bias) => scores.bias(bias.view()),
            None => scores,
        };
        Problem::new(self.q.view(), self.k.view(), self.v.view(), sight, scores).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Everything the kernel computes of [`Heads::problem`].
    pub fn run(&self, problem: &Problem<'_>, par: Par) -> Outcome {
        run(problem, self.d_o.view(), self.bias.as_ref().map(|bias| bias.shape), par)
    }

    /// Truth and tolerance of [`Heads::problem`].
    pub fn judge(&self, problem: &Problem<'_>) -> Judge {
        Judge::new(problem.definition(), values(self.d_o.view()), self.storage)
    }

    /// Checks a problem at every level; gives the outcome of the last.
    pub fn verify(&self, problem: &Problem<'_>, name: &str) -> Outcome {
        let judge = self.judge(problem);
        let run = |(way, par)| {
            let outcome = self.run(problem, par);
            judge.weigh(&outcome, &format!("at {way} in {name}"));
            outcome
        };
        ways(self.storage).map(run).last().expect("some level is there")
    }
}

/// Forward, received attention and every gradient, in fresh tensors that hold no numbers before.
pub fn run(problem: &Problem<'_>, d_o: View<'_>, bias: Option<[usize; 4]>, par: Par) -> Outcome {
    let Dims { batch, heads, kv_heads, queries, keys, dk, dv } = *problem.dims();
    let storage = storage_of(&d_o);
    let fresh = |shape| Tensor::unfilled(storage, shape);
    let (mut o, mut dq) = (fresh([batch, heads, queries, dv]), fresh([batch, heads, queries, dk]));
    let (mut d_k, mut d_v) = (fresh([batch, kv_heads, keys, dk]), fresh([batch, kv_heads, keys, dv]));
    let mut lse = vec![f32::NAN; batch * heads * queries];
    let mut received = vec![f32::NAN; batch * heads * keys];
    let mut dkey_bias = vec![f32::NAN; batch * kv_heads * keys];
    let mut dbias = vec![f32::NAN; bias.map_or(0, |shape| shape.iter().product())];
    exact::forward(problem, &mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap();
    exact::received(problem, &lse, &mut received, par).unwrap();
    let mut gradients = Gradients {
        dq: Some(dq.view_mut()),
        dk: Some(d_k.view_mut()),
        dv: Some(d_v.view_mut()),
        dkey_bias: Some(&mut dkey_bias),
        dbias: bias.is_some().then_some(&mut dbias),
    };
    exact::backward(problem, &Saved { o: o.view(), lse: &lse, d_o }, &mut gradients, par).unwrap();
    let [o, dq, d_k, d_v] = [o, dq, d_k, d_v].map(|tensor| values(tensor.view()));
    let [lse, received, dkey_bias, dbias] = [lse, received, dkey_bias, dbias].map(|flat| widen(&flat));
    let (ours, theirs) = ([("o", o), ("lse", lse), ("received", received), ("dq", dq)], [("dk", d_k), ("dv", d_v)]);
    Outcome { tensors: ours.into_iter().chain(theirs).chain([("dkey_bias", dkey_bias), ("dbias", dbias)]).collect() }
}

fn storage_of(view: &View<'_>) -> Storage {
    match view {
        View::F32(_) => Storage::F32,
        View::Bf16(_) => Storage::Bf16,
        View::F16(_) => Storage::F16,
    }
}

impl Outcome {
    pub fn get(&self, name: &str) -> &[f64] {
        let found = self.tensors.iter().find(|(tensor, _)| *tensor == name);
        &found.unwrap_or_else(|| panic!("no {name}")).1
    }
}

impl Judge {
    /// Of one problem, with the rounding that it and its siblings have in a plain implementation: a sibling has the same
    /// rules, and the same rows in another order with other signs.
    pub fn new(definition: Definition, d_o: Vec<f64>, storage: Storage) -> Self {
        let mut judge = Judge::alone(definition, d_o, storage);
        for seed in 0..siblings(judge.definition.queries * judge.definition.keys) {
            let (definition, d_o) = dealt_anew(&judge.definition, &judge.d_o, seed);
            judge.allow(&Judge::alone(definition, d_o, storage));
        }
        judge
    }
}

fn dealt_anew(definition: &Definition, d_o: &[f64], seed: u64) -> (Definition, Vec<f64>) {
    let (mut sibling, mut d_o) = (definition.clone(), d_o.to_vec());
    let random = &mut Random::new(seed + 77);
    shuffle(random, &mut sibling.q, definition.dk);
    shuffle(random, &mut sibling.k, definition.dk);
    shuffle(random, &mut sibling.v, definition.dv);
    shuffle(random, &mut d_o, definition.dv);
    (sibling, d_o)
}

/// Puts rows of `width` into another order and turns the signs of half of the values.
pub fn shuffle(random: &mut Random, values: &mut [f64], width: usize) {
    for last in (1..values.len() / width).rev() {
        let other = random.below(last + 1);
        (0..width).for_each(|d| values.swap(last * width + d, other * width + d));
    }
    for x in values.iter_mut().filter(|_| random.chance(0.5)) {
        *x = -*x;
    }
}
