//! Mechanisms that choose, each with what it learns from: fused, composed in f32, and composed in f64, which is the truth.

use super::{Random, tensor, values};
use burn::tensor::{DType, Device, Gradients, Tensor};
use regard::mechanism::clustered::{Metric, Representative, Rule};
use regard::mechanism::{Clustered, Nats};
use regard::{Attention, Pass, attention};
use regard_core::oracle::Storage;

/// Sizes: batch, query heads, kv heads, queries, keys, widths of keys, values and hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub b: usize,
    pub h: usize,
    pub g: usize,
    pub n: usize,
    pub m: usize,
    pub dk: usize,
    pub dv: usize,
    pub e: usize,
}

const SIZES: Sizes = Sizes { b: 2, h: 4, g: 2, n: 33, m: 33, dk: 6, dv: 5, e: 7 };

/// What a mechanism may learn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    Nothing,
    Hidden,
    Thresholds,
    HiddenAndThresholds,
    Logits,
}

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: &'static str,
    pub sizes: Sizes,
    pub given: Given,
    /// Of q: large ones make scores sharp.
    pub factor: f64,
    pub how: Attention,
}

fn clustered(name: &'static str, given: Given, causal: bool, config: Clustered) -> Case {
    let how = if causal { Attention::causal() } else { Attention::full() };
    Case { name, sizes: SIZES, given, factor: 1.0, how: how.mechanism(config) }
}

fn nats(name: &'static str, sizes: Sizes, window: usize) -> Case {
    let how = Attention::causal().mechanism(Nats { window: Some(window), ..Nats::default() });
    Case { name, sizes, given: Given::Logits, factor: 0.5, how }
}

impl Case {
    /// Every one.
    pub fn all() -> Vec<Self> {
        let base = || Clustered { threshold: 0.8, ..Clustered::default() };
        let training = Pass { training: true, seed: 3, step: 5 };
        let packed = |case: Case| {
            let offsets = [0, 14, 14, 15, 33];
            let sizes = Sizes { b: 1, ..case.sizes };
            Case { sizes, how: case.how.offsets(offsets, offsets), ..case }
        };
        let padded = |case: Case| Case { how: case.how.lengths([33, 20]), ..case };
        let in_training = |case: Case| Case { how: case.how.pass(training), ..case };
        let soft = Clustered { soft: 3, temperature: 0.5, ..base() };
        let leaders = Clustered { representative: Representative::Leader, log_size: false, ..base() };
        let by_keys = Clustered { metric: Metric::Keys, soft: 2, temperature: 0.3, ..base() };
        let matching = Clustered { rule: Rule::Matching, target: Some(0.4), ..base() };
        let blocks = |config: Clustered| Clustered { block: 7, ..config };
        vec![
            padded(clustered("clusters, padded", Given::Hidden, false, base())),
            clustered("leaders without log_size", Given::Hidden, false, leaders.clone()),
            clustered("soft", Given::Hidden, false, soft.clone()),
            packed(clustered("soft, packed", Given::Hidden, false, soft.clone())),
            clustered("by keys, soft", Given::Nothing, false, by_keys.clone()),
            in_training(clustered("gates", Given::HiddenAndThresholds, false, base())),
            padded(in_training(clustered("gates, soft, padded", Given::HiddenAndThresholds, false, soft))),
            in_training(clustered("gates by keys", Given::Thresholds, false, by_keys)),
            clustered("thresholds without gates", Given::HiddenAndThresholds, false, base()),
            clustered("matching", Given::Hidden, false, matching),
            clustered("causal", Given::Hidden, true, blocks(base())),
            packed(clustered("causal, packed, thresholds", Given::HiddenAndThresholds, true, blocks(base()))),
            clustered("causal, leaders by keys", Given::Nothing, true, blocks(Clustered { metric: Metric::Keys, ..leaders })),
            padded(nats("types, padded", SIZES, 3)),
            packed(nats("types, packed", SIZES, 2)),
            nats("types, more keys", Sizes { n: 9, ..SIZES }, 0),
            in_training(nats("types, training", Sizes { h: 2, ..SIZES }, 1)),
            Case { factor: 8.0, ..nats("types, sharp", Sizes { b: 1, ..SIZES }, 1) },
        ]
    }
}

/// Numbers of one draw of a case.
pub struct Draw {
    case: Case,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    x: Vec<f64>,
    thresholds: Vec<f64>,
    logits: Vec<f64>,
    d_o: Vec<f64>,
}

/// Names of results: the output and gradients.
pub const NAMES: [&str; 7] = ["o", "dq", "dk", "dv", "dx", "dthreshold", "dtype_logits"];

/// Rows `[heads, rows, width]` of few kinds, some of them alike, one of them zeros.
fn kinds(random: &mut Random, [heads, rows, width]: [usize; 3]) -> Vec<f64> {
    let mut all = Vec::new();
    for _ in 0..heads {
        let centres: Vec<f64> = (0..5 * width).map(|_| random.normal()).collect();
        for row in 0..rows {
            let (kind, noise) = (random.below(5), random.pick(&[0.0, 0.15, 0.5]));
            let centre = &centres[kind * width..][..width];
            all.extend(centre.iter().map(|x| if row == 4 { 0.0 } else { f64::from((x + noise * random.normal()) as f32) }));
        }
    }
    all
}

impl Draw {
    pub fn new(case: &Case, seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let Sizes { b, h, g, n, m, dk, dv, e } = case.sizes;
        let q = random.normals(Storage::F32, b * h * n * dk).into_iter().map(|x| case.factor * x).collect();
        Draw {
            case: case.clone(),
            q,
            k: kinds(random, [b * g, m, dk]),
            v: random.normals(Storage::F32, b * g * m * dv),
            x: kinds(random, [b, n, e]),
            thresholds: (0..h).map(|head| f64::from(0.5 + 0.13 * head as f32)).collect(),
            logits: random.normals(Storage::F32, b * g * m * 3),
            d_o: random.normals(Storage::F32, b * h * n * dv),
        }
    }

    /// The output and the gradients of everything; zeros where there is none.
    pub fn run(&self, device: &Device, dtype: DType, unfused: bool) -> [Vec<f64>; 7] {
        let Sizes { b, h, g, n, m, dk, dv, e } = self.case.sizes;
        let leaf = |values: &[f64], shape| tensor::<4>(values, shape, dtype, device).require_grad();
        let (q, k, v) = (leaf(&self.q, [b, h, n, dk]), leaf(&self.k, [b, g, m, dk]), leaf(&self.v, [b, g, m, dv]));
        let x = tensor::<3>(&self.x, [b, n, e], dtype, device).require_grad();
        let thresholds = tensor::<1>(&self.thresholds, [h], dtype, device).require_grad();
        let logits = leaf(&self.logits, [b, g, m, 3]);
        let mut how = self.case.how.clone();
        if unfused {
            how = how.unfused();
        }
        if matches!(self.case.given, Given::Hidden | Given::HiddenAndThresholds) {
            how = how.hidden_states(x.clone());
        }
        if matches!(self.case.given, Given::Thresholds | Given::HiddenAndThresholds) {
            how = how.threshold(thresholds.clone());
        }
        if self.case.given == Given::Logits {
            how = how.type_logits(logits.clone());
        }
        let o = attention(q.clone(), k.clone(), v.clone(), &how).unwrap_or_else(|error| panic!("{}: {error}", self.case.name));
        let gradients = (o.clone() * tensor::<4>(&self.d_o, [b, h, n, dv], dtype, device)).sum().backward();
        [
            values(o),
            gradient(&q, &gradients),
            gradient(&k, &gradients),
            gradient(&v, &gradients),
            gradient(&x, &gradients),
            gradient(&thresholds, &gradients),
            gradient(&logits, &gradients),
        ]
    }
}

fn gradient<const D: usize>(x: &Tensor<D>, gradients: &Gradients) -> Vec<f64> {
    x.grad(gradients).map_or_else(|| vec![0.0; x.dims().iter().product()], values)
}

pub fn apart(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

pub fn largest(a: &[f64]) -> f64 {
    a.iter().fold(0.0, |most, x| most.max(x.abs()))
}

/// Compares `run` with the composite in f64: at most twice the largest error of the composite in f32 over some draws, and 1e-6 of the
/// largest number.
pub fn compare(case: &Case, seeds: std::ops::Range<u64>, run: impl Fn(&Draw) -> [Vec<f64>; 7]) {
    let device = Device::flex().autodiff();
    let draws: Vec<Draw> = seeds.map(|seed| Draw::new(case, seed)).collect();
    let truths: Vec<_> = draws.iter().map(|draw| draw.run(&device, DType::F64, true)).collect();
    let mut plain = [0.0f64; 7];
    for (draw, truth) in draws.iter().zip(&truths) {
        let found = draw.run(&device, DType::F32, true);
        found.iter().zip(truth).zip(&mut plain).for_each(|((found, truth), plain)| *plain = plain.max(apart(found, truth)));
    }
    for (draw, truth) in draws.iter().zip(&truths) {
        for (at, found) in run(draw).iter().enumerate() {
            let (error, budget) = (apart(found, &truth[at]), 2.0 * plain[at] + 1e-6 * largest(&truth[at]));
            assert!(error <= budget, "{} of {}: {error:e} off, {budget:e} allowed", NAMES[at], case.name);
        }
    }
    let learned = largest(&truths[0][4]) + largest(&truths[0][5]) + largest(&truths[0][6]);
    assert!(largest(&truths[0][1]) > 1e-3 && learned >= 0.0, "{}: the numbers are not sensitive", case.name);
}
