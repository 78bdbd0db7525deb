//! Random exact problems for the tests: every option, drawn from a seed.

#![allow(dead_code, reason = "each suite uses a part")]

pub mod data;
pub mod golden;
pub mod heads;
pub mod sample;
pub mod steps;

use regard_core::oracle::{Definition, Forward, Gradients as Exact, Storage, Weights, plain, plain_gradients};
use regard_core::simd::Level;
use regard_core::{
    Alignment, Dropout, Gradients, Output, Par, Problem, Saved, Scores, Sight, Strided, StridedMut, View, ViewMut, bf16, exact, f16,
};

/// A small generator with a printed seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn normal(&mut self) -> f32 {
        let (a, b) = (self.unit().max(1e-300), self.unit());
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }
}

/// Values in the storage type under test.
#[derive(Debug, Clone)]
pub enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Stored {
    fn normal(random: &mut Random, storage: Storage, count: usize, factor: f32) -> Self {
        let values = (0..count).map(|_| random.normal() * factor);
        match storage {
            Storage::F32 => Stored::F32(values.collect()),
            Storage::Bf16 => Stored::Bf16(values.map(bf16::from_f32).collect()),
            Storage::F16 => Stored::F16(values.map(f16::from_f32).collect()),
        }
    }

    fn zeros(storage: Storage, count: usize) -> Self {
        match storage {
            Storage::F32 => Stored::F32(vec![f32::NAN; count]),
            Storage::Bf16 => Stored::Bf16(vec![bf16::NAN; count]),
            Storage::F16 => Stored::F16(vec![f16::NAN; count]),
        }
    }

    fn view(&self, shape: [usize; 4], strides: [isize; 4]) -> View<'_> {
        match self {
            Stored::F32(x) => Strided::new(x, 0, shape, strides, "x").unwrap().into(),
            Stored::Bf16(x) => Strided::new(x, 0, shape, strides, "x").unwrap().into(),
            Stored::F16(x) => Strided::new(x, 0, shape, strides, "x").unwrap().into(),
        }
    }

    fn view_mut(&mut self, shape: [usize; 4], strides: [isize; 4]) -> ViewMut<'_> {
        let strides = strides.map(|s| s as usize);
        match self {
            Stored::F32(x) => ViewMut::F32(StridedMut::new(x, shape, strides, "x").unwrap()),
            Stored::Bf16(x) => ViewMut::Bf16(StridedMut::new(x, shape, strides, "x").unwrap()),
            Stored::F16(x) => ViewMut::F16(StridedMut::new(x, shape, strides, "x").unwrap()),
        }
    }
}

/// The options that pairs are counted over.
pub const OPTIONS: [&str; 22] = [
    "causal",
    "window_left",
    "window_right",
    "sinks",
    "until",
    "lengths",
    "lengths_q",
    "key_bias",
    "mask",
    "bias",
    "alibi",
    "softcap",
    "dropout",
    "packed",
    "spans",
    "positions",
    "top_left",
    "scale",
    "grouped",
    "strided",
    "bf16",
    "f16",
];

/// Pairs of options that exclude each other.
pub fn excluded(a: &str, b: &str) -> bool {
    let pair = |x: &str, y: &str| (a == x && b == y) || (a == y && b == x);
    ["lengths", "lengths_q", "spans", "positions"].iter().any(|x| pair("packed", x))
        || pair("spans", "lengths")
        || pair("top_left", "positions")
        || pair("bf16", "f16")
}

/// Sizes and options to draw a case from.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub options: Vec<&'static str>,
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub dk: usize,
    pub dv: usize,
}

impl Wish {
    pub fn has(&self, option: &str) -> bool {
        self.options.contains(&option)
    }

    /// Every option with probability 1/5, lengths as the list of awkward ones.
    pub fn draw(random: &mut Random, lengths: &[usize]) -> Self {
        let mut options: Vec<&'static str> = Vec::new();
        for option in OPTIONS {
            if random.chance(0.22) && !options.iter().any(|other| excluded(option, other)) {
                options.push(option);
            }
        }
        let kv_heads = 1 + random.below(2);
        let group = if options.contains(&"grouped") { 2 + random.below(2) } else { 1 };
        let queries = random.pick(lengths);
        let keys = if random.chance(0.6) { queries } else { random.pick(lengths) };
        let widths = [1, 3, 8, 16, 24, 33, 40, 64];
        let dk = random.pick(&widths);
        Wish {
            batch: if options.contains(&"packed") { 1 } else { 1 + random.below(2) },
            heads: kv_heads * group,
            kv_heads,
            queries,
            keys,
            dk,
            dv: if random.chance(0.5) { dk } else { random.pick(&widths) },
            options,
        }
    }
}

/// One problem with everything it borrows.
#[derive(Debug, Clone)]
pub struct Case {
    pub wish: Wish,
    pub seed: u64,
    pub storage: Storage,
    q: Stored,
    k: Stored,
    v: Stored,
    d_o: Stored,
    key_bias: Vec<f32>,
    bias: Vec<f32>,
    bias_shape: [usize; 4],
    mask: Vec<u8>,
    until: Vec<i64>,
    lengths: Vec<usize>,
    lengths_q: Vec<usize>,
    offsets: [Vec<usize>; 2],
    spans: Vec<[usize; 2]>,
    query_positions: Vec<i64>,
    key_positions: Vec<i64>,
}

fn strides([_, h, n, d]: [usize; 4], strided: bool) -> [isize; 4] {
    let [h, n, d] = [h, n, d].map(|x| x as isize);
    if strided { [n * h * d, d, h * d, 1] } else { [h * n * d, n * d, d, 1] }
}

impl Case {
    pub fn draw(wish: Wish, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let r = &mut random;
        let storage = if wish.has("bf16") {
            Storage::Bf16
        } else if wish.has("f16") {
            Storage::F16
        } else {
            Storage::F32
        };
        let Wish { batch, heads, kv_heads, queries, keys, dk, dv, .. } = wish;
        let sharp = if r.chance(0.2) { 4.0 } else { 1.0 };
        let bias_shape = [if r.chance(0.5) { 1 } else { batch }, if r.chance(0.5) { 1 } else { heads }, queries, keys];
        let hide = |r: &mut Random, x: f32| if r.chance(0.1) { f32::NEG_INFINITY } else { x };
        let cut = |r: &mut Random, total: usize, count: usize| {
            let mut inner: Vec<usize> = (1..count).map(|_| r.below(total + 1)).collect();
            inner.sort_unstable();
            std::iter::once(0).chain(inner).chain([total]).collect::<Vec<_>>()
        };
        let sequences = 1 + r.below(4);
        let caches = batch * kv_heads;
        let lengths: Vec<usize> = (0..batch).map(|_| r.below(keys + 1)).collect();
        Case {
            seed,
            storage,
            q: Stored::normal(r, storage, batch * heads * queries * dk, sharp),
            k: Stored::normal(r, storage, caches * keys * dk, 1.0),
            v: Stored::normal(r, storage, caches * keys * dv, 1.0),
            d_o: Stored::normal(r, storage, batch * heads * queries * dv, 1.0),
            key_bias: (0..caches * keys).map(|_| r.normal()).map(|x| hide(&mut Random::new(x.to_bits().into()), x)).collect(),
            bias: (0..bias_shape.iter().product()).map(|_| r.normal()).collect(),
            mask: (0..bias_shape.iter().product()).map(|_| u8::from(r.chance(0.7))).collect(),
            until: (0..caches * keys).map(|_| if r.chance(0.2) { i64::MAX } else { r.below(keys + 2) as i64 }).collect(),
            lengths_q: (0..batch).map(|_| r.below(queries + 1)).collect(),
            lengths,
            offsets: [cut(r, queries, sequences), cut(r, keys, sequences)],
            spans: (0..caches)
                .map(|_| {
                    let start = r.below(keys + 1);
                    [start, r.below(keys - start + 1)]
                })
                .collect(),
            query_positions: (0..batch * queries).map(|i| (i % queries.max(1) + keys / 2 + r.below(3)) as i64).collect(),
            key_positions: (0..caches * keys).map(|j| (j % keys.max(1) + r.below(keys / 2 + 2)) as i64).collect(),
            bias_shape,
            wish,
        }
    }

    fn strides(&self, shape: [usize; 4]) -> [isize; 4] {
        strides(shape, self.wish.has("strided"))
    }

    fn shapes(&self) -> [[usize; 4]; 4] {
        let w = &self.wish;
        let caches = [w.batch, w.kv_heads, w.keys];
        let rows = [w.batch, w.heads, w.queries];
        [
            [rows[0], rows[1], rows[2], w.dk],
            [caches[0], caches[1], caches[2], w.dk],
            [caches[0], caches[1], caches[2], w.dv],
            [rows[0], rows[1], rows[2], w.dv],
        ]
    }

    pub fn problem(&self) -> Problem<'_> {
        let has = |option| self.wish.has(option);
        let mut sight = if has("causal") { Sight::causal() } else { Sight::full() };
        let reach = self.wish.keys / 3;
        sight = sight.window(has("window_left").then_some(reach), has("window_right").then_some(reach / 2));
        if has("sinks") {
            sight = sight.sinks(2);
        }
        if has("top_left") {
            sight = sight.alignment(Alignment::TopLeft);
        }
        if has("until") {
            sight = sight.until(&self.until);
        }
        if has("lengths") {
            sight = sight.lengths(&self.lengths);
        }
        if has("lengths_q") {
            sight = sight.lengths_q(&self.lengths_q);
        }
        if has("packed") {
            sight = sight.offsets(&self.offsets[0], &self.offsets[1]);
        }
        if has("spans") {
            sight = sight.key_spans(&self.spans);
        }
        if has("positions") {
            sight = sight.positions(&self.query_positions, &self.key_positions);
        }
        if has("mask") {
            sight = sight.mask(Strided::contiguous(&self.mask, self.bias_shape, "mask").unwrap());
        }
        let [q, k, v, _] = self.shapes();
        let (q, k, v) = (self.q.view(q, self.strides(q)), self.k.view(k, self.strides(k)), self.v.view(v, self.strides(v)));
        Problem::new(q, k, v, sight, self.scores()).unwrap_or_else(|error| panic!("{error} in {:?} seed={}", self.wish, self.seed))
    }

    fn scores(&self) -> Scores<'_> {
        let has = |option| self.wish.has(option);
        let mut scores = Scores::new();
        if has("scale") {
            scores = scores.scale(0.3);
        }
        if has("softcap") {
            scores = scores.softcap(1.5);
        }
        if has("alibi") {
            scores = scores.alibi();
        }
        if has("key_bias") {
            scores = scores.key_bias(&self.key_bias);
        }
        if has("bias") {
            scores = scores.bias(Strided::contiguous(&self.bias, self.bias_shape, "bias").unwrap().into());
        }
        if has("dropout") {
            scores = scores.dropout(Dropout { probability: 0.2, seed: self.seed, step: 3 });
        }
        scores
    }

    /// The definition, and the errors that an honest plain implementation makes. A small problem has too few numbers for its own rounding
    /// to say how large rounding is there: siblings from other seeds are counted too.
    pub fn judge(&self) -> Judge {
        let mut judge = self.judge_alone();
        let wider = Wish { queries: self.wish.queries.max(16), keys: self.wish.keys.max(16), ..self.wish.clone() };
        for i in 1..=siblings(self.wish.queries * self.wish.keys) {
            judge.allow(&Case::draw(wider.clone(), self.seed + i * 1_000_003).judge_alone());
        }
        judge
    }

    fn judge_alone(&self) -> Judge {
        let [.., o] = self.shapes();
        Judge::alone(self.problem().definition(), values(self.d_o.view(o, self.strides(o))), self.storage)
    }

    /// Everything the kernel computes.
    pub fn run(&self, par: Par) -> Outcome {
        let problem = self.problem();
        let [q, k, v, o] = self.shapes();
        let count = |shape: [usize; 4]| shape.iter().product::<usize>();
        let fresh = |shape| Stored::zeros(self.storage, count(shape));
        let (mut out, mut dq, mut dk, mut dv) = (fresh(o), fresh(q), fresh(k), fresh(v));
        let rows = self.wish.batch * self.wish.heads;
        let mut lse = vec![f32::NAN; rows * self.wish.queries];
        let mut received = vec![f32::NAN; rows * self.wish.keys];
        let mut dkey_bias = vec![f32::NAN; self.key_bias.len()];
        let mut dbias = vec![f32::NAN; self.bias.len()];
        exact::forward(&problem, &mut Output { o: out.view_mut(o, self.strides(o)), lse: Some(&mut lse) }, par).unwrap();
        exact::received(&problem, &lse, &mut received, par).unwrap();
        let saved = Saved { o: out.view(o, self.strides(o)), lse: &lse, d_o: self.d_o.view(o, self.strides(o)) };
        let mut gradients = Gradients {
            dq: Some(dq.view_mut(q, self.strides(q))),
            dk: Some(dk.view_mut(k, self.strides(k))),
            dv: Some(dv.view_mut(v, self.strides(v))),
            dkey_bias: Some(&mut dkey_bias),
            dbias: self.wish.has("bias").then_some(&mut dbias),
        };
        exact::backward(&problem, &saved, &mut gradients, par).unwrap();
        if !self.wish.has("bias") {
            dbias.clear();
        }
        let tensors = vec![
            ("o", values(out.view(o, self.strides(o)))),
            ("lse", widen(&lse)),
            ("received", widen(&received)),
            ("dq", values(dq.view(q, self.strides(q)))),
            ("dk", values(dk.view(k, self.strides(k)))),
            ("dv", values(dv.view(v, self.strides(v)))),
            ("dkey_bias", widen(&dkey_bias)),
            ("dbias", widen(&dbias)),
        ];
        Outcome { tensors }
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

pub fn values(view: View<'_>) -> Vec<f64> {
    let [b, h, n, d] = view.shape();
    let mut out = Vec::with_capacity(b * h * n * d);
    for b in 0..b {
        for h in 0..h {
            for n in 0..n {
                out.extend((0..d).map(|d| f64::from(view.at([b, h, n, d]))));
            }
        }
    }
    out
}

/// Named results.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub tensors: Vec<(&'static str, Vec<f64>)>,
}

impl Outcome {
    pub fn bits(&self) -> Vec<u64> {
        self.tensors.iter().flat_map(|(_, values)| values.iter().map(|x| x.to_bits())).collect()
    }
}

/// Truth and tolerance.
pub struct Judge {
    pub definition: Definition,
    pub forward: Forward,
    pub gradients: Exact,
    d_o: Vec<f64>,
    plain: [f64; 8],
    storage: Storage,
}

/// Values and the largest summand of each, where the budget counts it.
type Tensor<'a> = (&'static str, &'a [f64], Option<&'a [f64]>);

fn tensors<'a>(forward: &'a Forward, gradients: &'a Exact) -> [Tensor<'a>; 8] {
    [
        ("o", &forward.o, Some(&forward.largest_term_o)),
        ("lse", &forward.lse, None),
        ("received", &forward.received, None),
        ("dq", &gradients.dq, Some(&gradients.largest_term_dq)),
        ("dk", &gradients.dk, Some(&gradients.largest_term_dk)),
        ("dv", &gradients.dv, Some(&gradients.largest_term_dv)),
        ("dkey_bias", &gradients.dkey_bias, Some(&gradients.largest_term_dkey_bias)),
        ("dbias", &gradients.dbias, Some(&gradients.largest_term_dbias)),
    ]
}

impl Judge {
    /// Of one problem, with the errors that the plain implementation makes on it alone.
    fn alone(definition: Definition, d_o: Vec<f64>, storage: Storage) -> Self {
        let (forward, gradients) = (definition.forward(), definition.backward(&d_o));
        let mut judge = Judge { definition, forward, gradients, d_o, plain: [0.0; 8], storage };
        for weights in [Weights::Normalised, Weights::FromLse] {
            let (forward, gradients) = plain(&judge.definition, Some(&judge.d_o), storage, weights);
            let errors = judge.errors(&forward, &gradients.expect("gradients were asked for"));
            judge.plain = largest(judge.plain, errors);
        }
        judge
    }

    /// Allows what is allowed on another problem, too.
    fn allow(&mut self, other: &Judge) {
        self.plain = largest(self.plain, other.plain);
    }

    /// The largest error of each tensor.
    fn errors(&self, forward: &Forward, gradients: &Exact) -> [f64; 8] {
        let (found, truth) = (tensors(forward, gradients), tensors(&self.forward, &self.gradients));
        std::array::from_fn(|at| max_error(found[at].1, truth[at].1))
    }

    /// Errors of the plain implementation in 16 bits, its gradients also from the output that the kernel saved (`D = dO·O`
    /// inherits the rounding of that output, whoever computes it), with inner values rounded and with results rounded only.
    fn plain_with(&self, outcome: &Outcome) -> [f64; 8] {
        let mut all = self.plain;
        for weights in [Weights::Normalised, Weights::FromLse] {
            let gradients = plain_gradients(&self.definition, &self.d_o, &outcome.tensors[0].1, self.storage, weights);
            let mut wide = plain_gradients(&self.definition, &self.d_o, &outcome.tensors[0].1, Storage::F32, weights);
            for x in wide.dq.iter_mut().chain(&mut wide.dk).chain(&mut wide.dv) {
                *x = round_to(self.storage, *x);
            }
            for gradients in [gradients, wide] {
                all = largest(all, self.errors(&self.forward, &gradients));
            }
        }
        all
    }

    /// The worst error as a share of its budget; panics with the case where it is above 1.
    pub fn check(&self, case: &Case, outcome: &Outcome, how: &str) -> f64 {
        self.weigh(outcome, &format!("{how} {:?} seed={}", case.wish, case.seed))
    }

    /// The same for a problem with a name. What the saved output allows takes long to find: it is asked for where the rest does not do.
    pub fn weigh(&self, outcome: &Outcome, how: &str) -> f64 {
        let share = self.share(outcome, self.plain);
        let share = if share.is_err() && self.storage != Storage::F32 { self.share(outcome, self.plain_with(outcome)) } else { share };
        share.unwrap_or_else(|message| panic!("{message} {how}"))
    }

    /// The worst error as a share of its budget, where none is above 1. An outcome may end early.
    fn share(&self, outcome: &Outcome, plain: [f64; 8]) -> Result<f64, String> {
        let truth = tensors(&self.forward, &self.gradients);
        assert!(outcome.tensors.len() <= truth.len());
        let mut worst = 0.0f64;
        for ((name, found), ((defined, expected, terms), plain)) in outcome.tensors.iter().zip(truth.into_iter().zip(plain)) {
            assert_eq!((*name, found.len()), (defined, expected.len()));
            for (i, (x, y)) in found.iter().zip(expected).enumerate().filter(|(_, (x, y))| x != y) {
                let term = terms.map_or(y.abs().max(1.0), |terms| terms[i]);
                let share = (x - y).abs() / (2.0 * plain + 1e-6 * term);
                if share.is_nan() || share > 1.0 {
                    return Err(format!("{name}[{i}] is {x:e}, defined {y:e}, {share:.2} of the budget"));
                }
                worst = worst.max(share);
            }
        }
        Ok(worst)
    }
}

/// The larger one of each two.
fn largest(a: [f64; 8], b: [f64; 8]) -> [f64; 8] {
    std::array::from_fn(|at| a[at].max(b[at]))
}

/// How many siblings a problem of so many pairs needs.
pub fn siblings(pairs: usize) -> u64 {
    match pairs {
        0..=512 => 24,
        513..=20_000 => 10,
        _ => 0,
    }
}

fn max_error(found: &[f64], expected: &[f64]) -> f64 {
    found.iter().zip(expected).filter(|(x, y)| x != y).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

/// Every level this processor has.
pub fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

/// Every way of computing with such tensors: all levels, and bf16 in pairs, by an instruction or in plain Rust.
pub fn ways(storage: Storage) -> impl Iterator<Item = (&'static str, Par)> {
    let pairs = (storage == Storage::Bf16).then(|| ("pairs", Par::default().in_pairs()));
    levels().map(|level| (level.name(), Par::default().level(level))).chain(pairs)
}

fn round_to(storage: Storage, x: f64) -> f64 {
    match storage {
        Storage::F32 => x,
        Storage::Bf16 => bf16::from_f32(x as f32).to_f64(),
        Storage::F16 => f16::from_f32(x as f32).to_f64(),
    }
}
