//! Random attention problems as Burn tensors, and their definition in f64 with its budgets.

#![allow(dead_code, reason = "each suite uses a part")]

pub mod factored;
pub mod learned;

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use regard::{Alignment, Attention, Dropout};
use regard_core::oracle::{self, Definition, Dense, Forward, Gradients, Storage, Weights, plain, plain_gradients};
use regard_core::{bf16, f16};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seeds the device and keeps it to one test of its program: all threads draw from one generator, and parameters are drawn when they are first read.
pub fn seeded(device: &Device, seed: u64) -> MutexGuard<'static, ()> {
    static DRAWING: Mutex<()> = Mutex::new(());
    let alone = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    device.seed(seed);
    alone
}

/// Burn's devices on GPUs, as many as there are features for.
pub fn gpus() -> Vec<Device> {
    vec![
        #[cfg(feature = "wgpu")]
        Device::wgpu(Default::default()).autodiff(),
        #[cfg(feature = "vulkan")]
        Device::vulkan(Default::default()).autodiff(),
        #[cfg(feature = "cuda")]
        Device::cuda(0).autodiff(),
    ]
}

/// A small generator with a printed seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn bits(&mut self) -> u64 {
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

    pub fn normal(&mut self) -> f64 {
        let (a, b) = (self.unit().max(1e-300), self.unit());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    /// Normal numbers that the storage type holds exactly.
    pub fn normals(&mut self, storage: Storage, count: usize) -> Vec<f64> {
        (0..count).map(|_| round_to(storage, self.normal())).collect()
    }
}

pub fn round_to(storage: Storage, x: f64) -> f64 {
    match storage {
        Storage::F32 => f64::from(x as f32),
        Storage::Bf16 => bf16::from_f32(x as f32).to_f64(),
        Storage::F16 => f16::from_f32(x as f32).to_f64(),
    }
}

pub fn dtype(storage: Storage) -> DType {
    match storage {
        Storage::F32 => DType::F32,
        Storage::Bf16 => DType::BF16,
        Storage::F16 => DType::F16,
    }
}

/// How a tensor lies in memory before it is brought into its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Contiguous,
    /// Stored `[B, N, H, D]`.
    Transposed,
    /// Stored backwards along tokens and features.
    Flipped,
    /// Stored with room around: a slice of something larger.
    Sliced,
}

impl Layout {
    pub const ALL: [Layout; 4] = [Layout::Contiguous, Layout::Transposed, Layout::Flipped, Layout::Sliced];

    /// From what is stored to what is meant.
    pub fn apply(self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Layout::Contiguous => x,
            Layout::Transposed => x.swap_dims(1, 2),
            Layout::Flipped => x.flip([2, 3]),
            Layout::Sliced => {
                let [_, _, n, d] = x.dims();
                x.narrow(2, 1, n - 2).narrow(3, 1, d - 1)
            }
        }
    }

    /// From what is meant to what is stored.
    fn store(self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Layout::Sliced => {
                let [b, h, n, d] = x.dims();
                let device = x.device();
                let row = Tensor::full([b, h, 1, d], 7.0, (&device, x.dtype()));
                let x = Tensor::cat(vec![row.clone(), x, row], 2);
                Tensor::cat(vec![Tensor::full([b, h, n + 2, 1], 7.0, (&device, x.dtype())), x], 3)
            }
            // The others are their own inverse; a round trip through data makes them contiguous.
            layout => layout.apply(x),
        }
    }
}

/// A stored tensor and what is attended over.
#[derive(Debug, Clone)]
pub struct Leaf {
    pub stored: Tensor<4>,
    layout: Layout,
}

impl Leaf {
    pub fn new(values: &[f64], shape: [usize; 4], (dtype, device): (DType, &Device), layout: Layout) -> Self {
        let plain = tensor(values, shape, dtype, &device.clone().without_autodiff());
        let stored = Tensor::from_data(layout.store(plain).into_data(), (device, dtype));
        Leaf { stored: tracked(stored), layout }
    }

    pub fn meant(&self) -> Tensor<4> {
        self.layout.apply(self.stored.clone())
    }

    /// The same on a device without autodiff.
    pub fn constant(&self) -> Tensor<4> {
        self.meant().without_autodiff()
    }

    pub fn gradient(&self, gradients: &burn::tensor::Gradients) -> Vec<f64> {
        let found = self.stored.grad(gradients).expect("a gradient");
        assert_eq!(found.dims(), self.stored.dims());
        values(self.layout.apply(found))
    }
}

/// A leaf of the graph, where the device has one.
fn tracked<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.is_autodiff() { x.require_grad() } else { x }
}

pub fn tensor<const D: usize>(values: &[f64], shape: [usize; D], dtype: DType, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, dtype))
}

pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

/// Options that a case may have.
pub const OPTIONS: [&str; 18] = [
    "causal",
    "window",
    "reach",
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
];

fn excluded(a: &str, b: &str) -> bool {
    let pair = |x: &str, y: &str| (a == x && b == y) || (a == y && b == x);
    ["lengths", "lengths_q", "spans", "positions"].iter().any(|x| pair("packed", x))
        || pair("spans", "lengths")
        || pair("top_left", "positions")
        || pair("window", "reach")
}

/// One problem.
#[derive(Debug, Clone)]
pub struct Case {
    pub seed: u64,
    pub options: Vec<&'static str>,
    pub storage: Storage,
    pub definition: Definition,
    pub d_o: Vec<f64>,
    window: usize,
}

/// Sizes and options of a draw.
#[derive(Debug, Clone)]
pub struct Wish {
    pub options: Vec<&'static str>,
    pub storage: Storage,
    pub queries: usize,
    pub keys: usize,
}

impl Wish {
    pub fn draw(random: &mut Random, storages: &[Storage]) -> Self {
        let mut options: Vec<&'static str> = Vec::new();
        for option in OPTIONS {
            if random.chance(0.22) && !options.iter().any(|other| excluded(option, other)) {
                options.push(option);
            }
        }
        let queries = random.pick(&[1, 2, 7, 16, 33, 65]);
        let keys = if random.chance(0.5) { queries } else { random.pick(&[1, 3, 8, 17, 40, 70]) };
        Wish { options, storage: random.pick(storages), queries, keys }
    }

    fn has(&self, option: &str) -> bool {
        self.options.contains(&option)
    }
}

impl Case {
    pub fn draw(wish: &Wish, seed: u64) -> Self {
        let r = &mut Random::new(seed);
        let kv_heads = 1 + r.below(2);
        let (heads, batch) = (kv_heads * (1 + r.below(3)), if wish.has("packed") { 1 } else { 1 + r.below(2) });
        let (dk, dv) = (r.pick(&[2, 8, 24, 33]), r.pick(&[2, 8, 24, 33]));
        let &Wish { queries, keys, storage, .. } = wish;
        let mut d = Definition { batch, heads, kv_heads, queries, keys, dk, dv, ..Definition::default() };
        d.q = r.normals(storage, batch * heads * queries * dk);
        d.k = r.normals(storage, batch * kv_heads * keys * dk);
        d.v = r.normals(storage, batch * kv_heads * keys * dv);
        let d_o = r.normals(storage, batch * heads * queries * dv);
        let window = 1 + r.below(keys);
        let mut case = Case { seed, options: wish.options.clone(), storage, definition: d, d_o, window };
        case.add_scores(r);
        case.add_sight(r);
        case.add_ragged(r);
        case
    }

    fn has(&self, option: &str) -> bool {
        self.options.contains(&option)
    }

    fn add_scores(&mut self, r: &mut Random) {
        let dense = [if r.chance(0.5) { 1 } else { self.definition.batch }, if r.chance(0.5) { 1 } else { self.definition.heads }];
        let Definition { batch, kv_heads, queries, keys, .. } = self.definition;
        let count = dense[0] * dense[1] * queries * keys;
        if self.has("key_bias") {
            let hide = |x: f64| if x > 1.3 { f64::NEG_INFINITY } else { x };
            self.definition.key_bias = Some(r.normals(self.storage, batch * kv_heads * keys).into_iter().map(hide).collect());
        }
        if self.has("bias") {
            self.definition.bias = Some(Dense { batch: dense[0], heads: dense[1], values: r.normals(self.storage, count) });
        }
        if self.has("mask") {
            let values = (0..count).map(|_| r.chance(0.7)).collect();
            self.definition.mask = Some(Dense { batch: dense[0], heads: dense[1], values });
        }
        self.definition.scale = self.has("scale").then_some(0.25);
        self.definition.alibi = self.has("alibi");
        self.definition.softcap = self.has("softcap").then_some(1.5);
        self.definition.dropout = self.has("dropout").then_some(oracle::Dropout { probability: 0.5, seed: self.seed, step: 3 });
    }

    fn add_sight(&mut self, r: &mut Random) {
        let Definition { batch, kv_heads, keys, .. } = self.definition;
        self.definition.causal = self.has("causal");
        self.definition.top_left = self.has("top_left");
        self.definition.sinks = if self.has("sinks") { 2 } else { 0 };
        if self.has("window") {
            (self.definition.window_left, self.definition.window_right) = (Some(self.window - 1), Some(self.window - 1));
        }
        if self.has("reach") {
            (self.definition.window_left, self.definition.window_right) = (Some(keys / 3), r.chance(0.5).then_some(keys / 6));
        }
        if self.has("until") {
            let until = |r: &mut Random| if r.chance(0.2) { i64::MAX } else { r.below(keys + 2) as i64 };
            self.definition.until = Some((0..batch * kv_heads * keys).map(|_| until(r)).collect());
        }
    }

    fn add_ragged(&mut self, r: &mut Random) {
        let Definition { batch, kv_heads, queries, keys, .. } = self.definition;
        let cut = |r: &mut Random, total: usize| vec![0, r.below(total + 1), total];
        if self.has("lengths") {
            self.definition.lengths = Some((0..batch).map(|_| r.below(keys + 1)).collect());
        }
        if self.has("lengths_q") {
            self.definition.lengths_q = Some((0..batch).map(|_| r.below(queries + 1)).collect());
        }
        if self.has("packed") {
            (self.definition.offsets_q, self.definition.offsets_k) = (Some(cut(r, queries)), Some(cut(r, keys)));
        }
        if self.has("spans") {
            let span = |r: &mut Random| {
                let start = r.below(keys + 1);
                [start, r.below(keys - start + 1)]
            };
            self.definition.key_spans = Some((0..batch * kv_heads).map(|_| span(r)).collect());
        }
        if self.has("positions") {
            self.definition.query_positions = Some((0..batch * queries).map(|i| (i % queries + keys / 2 + r.below(3)) as i64).collect());
            self.definition.key_positions = Some((0..batch * kv_heads * keys).map(|j| (j % keys + r.below(4)) as i64).collect());
        }
    }

    /// q, k, v and o.
    pub fn shapes(&self) -> [[usize; 4]; 4] {
        let Definition { batch, heads, kv_heads, queries, keys, dk, dv, .. } = self.definition;
        [[batch, heads, queries, dk], [batch, kv_heads, keys, dk], [batch, kv_heads, keys, dv], [batch, heads, queries, dv]]
    }

    /// The options without tensors.
    fn rules(&self) -> Attention {
        let d = &self.definition;
        let mut how = if d.causal { Attention::causal() } else { Attention::full() }.sinks(d.sinks);
        if self.has("window") {
            how = how.window(self.window);
        } else {
            how = how.reach(d.window_left, d.window_right);
        }
        if d.top_left {
            how = how.alignment(Alignment::TopLeft);
        }
        if d.alibi {
            how = how.alibi();
        }
        if let Some(scale) = d.scale {
            how = how.scale(scale as f32);
        }
        if let Some(cap) = d.softcap {
            how = how.softcap(cap as f32);
        }
        if let Some(x) = d.dropout {
            how = how.dropout(Dropout { probability: x.probability as f32, seed: x.seed, step: x.step });
        }
        self.ragged(how)
    }

    fn ragged(&self, mut how: Attention) -> Attention {
        let d = &self.definition;
        if let Some(until) = &d.until {
            how = how.until(&until[..]);
        }
        if let Some(lengths) = &d.lengths {
            how = how.lengths(&lengths[..]);
        }
        if let Some(lengths) = &d.lengths_q {
            how = how.lengths_q(&lengths[..]);
        }
        if let (Some(queries), Some(keys)) = (&d.offsets_q, &d.offsets_k) {
            how = how.offsets(&queries[..], &keys[..]);
        }
        if let Some(spans) = &d.key_spans {
            how = how.key_spans(&spans[..]);
        }
        if let (Some(queries), Some(keys)) = (&d.query_positions, &d.key_positions) {
            how = how.positions(&queries[..], &keys[..]);
        }
        how
    }

    /// Tensors on a device (with autodiff), every one tracked.
    pub fn on(&self, device: &Device, layout: Layout) -> Held {
        self.stored_as(dtype(self.storage), device, layout)
    }

    pub fn stored_as(&self, dtype: DType, device: &Device, layout: Layout) -> Held {
        let d = &self.definition;
        let [q, k, v, o] = self.shapes();
        let leaf = |values: &[f64], shape| Leaf::new(values, shape, (dtype, device), layout);
        let dense = |x: &Dense<f64>| Leaf::new(&x.values, [x.batch, x.heads, d.queries, d.keys], (dtype, device), Layout::Contiguous);
        let key_bias = |x: &Vec<f64>| tracked(tensor(x, [d.batch, d.kv_heads, d.keys], dtype, device));
        let mask = |x: &Dense<bool>| {
            let data = TensorData::new(x.values.clone(), [x.batch, x.heads, d.queries, d.keys]);
            Tensor::<4, Bool>::from_data(data, device)
        };
        let mut held = Held {
            q: leaf(&d.q, q),
            k: leaf(&d.k, k),
            v: leaf(&d.v, v),
            key_bias: d.key_bias.as_ref().map(key_bias),
            bias: d.bias.as_ref().map(dense),
            d_o: tensor(&self.d_o, o, dtype, device),
            how: self.rules(),
        };
        if let Some(bias) = &held.key_bias {
            held.how = held.how.key_bias(bias.clone());
        }
        if let Some(bias) = &held.bias {
            held.how = held.how.bias(bias.meant());
        }
        if let Some(mask) = d.mask.as_ref().map(mask) {
            held.how = held.how.mask(mask);
        }
        held
    }

    pub fn judge(&self) -> Judge {
        Judge::new(self)
    }
}

/// A problem's tensors on a device.
#[derive(Debug, Clone)]
pub struct Held {
    pub q: Leaf,
    pub k: Leaf,
    pub v: Leaf,
    pub key_bias: Option<Tensor<3>>,
    pub bias: Option<Leaf>,
    pub d_o: Tensor<4>,
    pub how: Attention,
}

/// Named results in the order o, dq, dk, dv, dkey_bias, dbias; the last two may be empty.
pub type Outcome = [Vec<f64>; 6];

impl Held {
    /// Value and every gradient; the gradient of the output arrives transposed.
    pub fn run(&self) -> Outcome {
        let o = regard::attention(self.q.meant(), self.k.meant(), self.v.meant(), &self.how).unwrap_or_else(|error| panic!("{error}"));
        let loss = (o.clone().swap_dims(1, 2) * self.d_o.clone().swap_dims(1, 2)).sum();
        let gradients = loss.backward();
        [
            values(o),
            self.q.gradient(&gradients),
            self.k.gradient(&gradients),
            self.v.gradient(&gradients),
            self.key_bias.as_ref().map_or_else(Vec::new, |x| values(x.grad(&gradients).expect("a gradient"))),
            self.bias.as_ref().map_or_else(Vec::new, |x| x.gradient(&gradients)),
        ]
    }
}

/// Truth and tolerance.
pub struct Judge {
    case: Case,
    pub forward: Forward,
    pub gradients: Gradients,
    plain: [f64; 6],
}

type Named<'a> = (&'static str, &'a [f64], &'a [f64]);

fn named<'a>(forward: &'a Forward, gradients: &'a Gradients) -> [Named<'a>; 6] {
    [
        ("o", &forward.o, &forward.largest_term_o),
        ("dq", &gradients.dq, &gradients.largest_term_dq),
        ("dk", &gradients.dk, &gradients.largest_term_dk),
        ("dv", &gradients.dv, &gradients.largest_term_dv),
        ("dkey_bias", &gradients.dkey_bias, &gradients.largest_term_dkey_bias),
        ("dbias", &gradients.dbias, &gradients.largest_term_dbias),
    ]
}

impl Judge {
    /// A small problem has too few numbers for its own rounding to say how large rounding is there: siblings from other
    /// seeds are counted too.
    fn new(case: &Case) -> Self {
        let Definition { queries, keys, .. } = case.definition;
        let wider = Wish { options: case.options.clone(), storage: case.storage, queries: queries.max(16), keys: keys.max(16) };
        let siblings = (1..=12).map(|i| Case::draw(&wider, case.seed + i * 1_000_003));
        let mut plain = [0.0; 6];
        for case in std::iter::once(case.clone()).chain(siblings) {
            case.add_plain_errors(&mut plain);
        }
        let (forward, gradients) = (case.definition.forward(), case.definition.backward(&case.d_o));
        Judge { case: case.clone(), forward, gradients, plain }
    }

    /// In 16 bits `D = dO·O` inherits the rounding of the output that was saved, and biases round their gradients too.
    fn allowed(&self, outcome: &Outcome) -> [f64; 6] {
        let mut errors = self.plain;
        if self.case.storage == Storage::F32 {
            return errors;
        }
        let exact = named(&self.forward, &self.gradients);
        for weights in [Weights::Normalised, Weights::FromLse] {
            for storage in [self.case.storage, Storage::F32] {
                let mut gradients = plain_gradients(&self.case.definition, &self.case.d_o, &outcome[0], storage, weights);
                let Gradients { dq, dk, dv, dkey_bias, dbias, .. } = &mut gradients;
                for x in [dq, dk, dv, dkey_bias, dbias].into_iter().flatten() {
                    *x = round_to(self.case.storage, *x);
                }
                for (at, (_, found, _)) in named(&self.forward, &gradients).into_iter().enumerate() {
                    errors[at] = errors[at].max(max_error(found, exact[at].1));
                }
            }
        }
        errors
    }

    /// The worst error as a share of its budget; panics with the case where it is above 1.
    pub fn check(&self, outcome: &Outcome, how: &str) -> f64 {
        let allowed = self.allowed(outcome);
        let truth = named(&self.forward, &self.gradients);
        let mut worst = 0.0f64;
        for ((found, (name, expected, terms)), plain) in outcome.iter().zip(truth).zip(allowed) {
            if found.is_empty() {
                continue;
            }
            assert_eq!(found.len(), expected.len(), "{name} {how}");
            for (i, (x, y)) in found.iter().zip(expected).enumerate() {
                let share = if x == y { 0.0 } else { (x - y).abs() / (2.0 * plain + 1e-6 * terms[i]) };
                let place = || format!("{how} {:?} {:?} seed={}", self.case.options, self.case.storage, self.case.seed);
                assert!(share <= 1.0, "{name}[{i}] is {x:e}, defined {y:e}, {share:.2} of the budget: {}", place());
                worst = worst.max(share);
            }
        }
        worst
    }

    /// The same for results in f64, where nothing but the last digits may differ.
    pub fn check_f64(&self, outcome: &Outcome, how: &str) {
        for (found, (name, expected, terms)) in outcome.iter().zip(named(&self.forward, &self.gradients)) {
            for (i, (x, y)) in found.iter().zip(expected).enumerate() {
                let place = || format!("{how} {:?} seed={}", self.case.options, self.case.seed);
                assert!((x - y).abs() <= 1e-12 * (1.0 + terms[i]), "{name}[{i}] is {x:e}, defined {y:e}: {}", place());
            }
        }
    }
}

impl Case {
    fn add_plain_errors(&self, errors: &mut [f64; 6]) {
        let (forward, gradients) = (self.definition.forward(), self.definition.backward(&self.d_o));
        let exact = named(&forward, &gradients);
        for weights in [Weights::Normalised, Weights::FromLse] {
            let (forward, gradients) = plain(&self.definition, Some(&self.d_o), self.storage, weights);
            let gradients = gradients.expect("gradients were asked for");
            for (at, (_, found, _)) in named(&forward, &gradients).into_iter().enumerate() {
                errors[at] = errors[at].max(max_error(found, exact[at].1));
            }
        }
    }
}

fn max_error(found: &[f64], expected: &[f64]) -> f64 {
    found.iter().zip(expected).filter(|(x, y)| x != y).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

/// Draws cases and judges what `run` makes of them; gives the worst share of a budget.
pub fn draws(seeds: std::ops::Range<u64>, storages: &[Storage], run: impl Fn(&Case, &Judge) -> f64) -> f64 {
    let mut worst = (0.0f64, 0);
    for seed in seeds.clone() {
        let case = Case::draw(&Wish::draw(&mut Random::new(seed), storages), seed);
        let share = run(&case, &case.judge());
        worst = if share > worst.0 { (share, seed) } else { worst };
    }
    println!("seeds {seeds:?}: worst error/budget {:.2} (seed {})", worst.0, worst.1);
    worst.0
}
