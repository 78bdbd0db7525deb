//! Mechanisms whose time grows with length, and two mechanisms together: one draw of what they read, run on any device.

use super::learned::{apart, largest};
use super::{Random, tensor, values};
use burn::tensor::{DType, Device, Gradients, Tensor};
use regard::mechanism::Mechanism;
use regard::{Attention, attention};
use regard_core::oracle::Storage;

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const N: usize = 37;
const WIDTH: usize = 8;
const CODES: usize = 7;

fn named(name: &str, options: &[(&str, &str)]) -> Mechanism {
    let mut mechanism = Mechanism::by_name(name).unwrap();
    options.iter().for_each(|(option, value)| mechanism.set(option, value).unwrap());
    mechanism
}

/// Every one, in the forms that it has; few keys in windows and few codes, so that both parts count.
pub fn everything() -> Vec<Attention> {
    let mut all = vec![Attention::causal().mechanism(named("gated_linear", &[]))];
    for mechanism in [
        named("linear", &[]),
        named("linear", &[("window", "5"), ("feature_map", "softmax")]),
        named("linear", &[("feature_map", "squared_relu"), ("normalize", "false")]),
        named("vq", &[("block", "8")]),
        named("vq", &[("exclude_recent", "true"), ("recent", "6")]),
        named("vq_qk", &[]),
        named("hyper", &[("block", "4"), ("samples", "3"), ("min_len", "5")]),
        named("hyper", &[("block", "3"), ("samples", "4"), ("min_len", "9"), ("by_norm", "true"), ("scale", "0.5")]),
        named("hyper/vq", &[("hyper.block", "4"), ("hyper.samples", "3"), ("hyper.min_len", "5")]),
        named("local+vq", &[("local.window", "6")]),
        named("local/linear", &[("local.window", "6")]),
        named("vq~linear", &[("linear.feature_map", "relu")]),
        named("vq_qk/local", &[("local.window", "6")]),
    ] {
        all.extend([Attention::causal(), Attention::full()].map(|how| how.mechanism(mechanism.clone())));
    }
    all.push(Attention::causal().mechanism(named("gated_linear/vq", &[])));
    all.push(Attention::causal().mechanism(named("nats~gated_linear", &[])));
    all
}

/// Numbers of one draw: a padded batch of two, or one pack of four sequences, one of them empty.
pub struct Draw {
    batch: usize,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    gates: Vec<f64>,
    types: Vec<f64>,
    mix: Vec<f64>,
    words: [Vec<f64>; 2],
    d_o: Vec<f64>,
}

const NAMES: [&str; 7] = ["o", "dq", "dk", "dv", "dgates", "dtype_logits", "dmix"];

impl Draw {
    pub fn new(seed: u64) -> Self {
        let (random, batch) = (&mut Random::new(seed + 31), 1 + seed as usize % 2);
        let mut normals = |count: usize| random.normals(Storage::F32, count);
        let [of_queries, of_keys] = [HEADS, KV_HEADS].map(|heads| batch * heads * N * WIDTH);
        Draw {
            batch,
            q: normals(of_queries),
            k: normals(of_keys),
            v: normals(of_keys),
            gates: normals(of_queries).into_iter().map(|x| -3.0 * x.abs()).collect(),
            types: normals(batch * KV_HEADS * N * 3),
            mix: normals(HEADS),
            words: [normals(KV_HEADS * CODES * WIDTH), normals(HEADS * CODES * WIDTH)],
            d_o: normals(of_queries),
        }
    }

    /// The output and the gradients of everything; zeros where there is none.
    pub fn run(&self, device: &Device, how: &Attention) -> [Vec<f64>; 7] {
        let leaf = |values: &[f64], heads| tensor::<4>(values, [self.batch, heads, N, WIDTH], DType::F32, device).require_grad();
        let (q, k, v, gates) = (leaf(&self.q, HEADS), leaf(&self.k, KV_HEADS), leaf(&self.v, KV_HEADS), leaf(&self.gates, HEADS));
        let types = tensor::<4>(&self.types, [self.batch, KV_HEADS, N, 3], DType::F32, device).require_grad();
        let mix = tensor::<1>(&self.mix, [HEADS], DType::F32, device).require_grad();
        let words = |at: usize, heads| tensor::<3>(&self.words[at], [heads, CODES, WIDTH], DType::F32, device);
        let offsets = [0, 9, 9, 10, N];
        let mut how = if self.batch == 2 { how.clone().lengths([N, 20]) } else { how.clone().offsets(offsets, offsets) };
        if how.reads("gates") {
            how = how.gates(gates.clone());
        }
        if how.reads("type_logits") {
            how = how.type_logits(types.clone());
        }
        if how.reads("mix") {
            how = how.mix(mix.clone());
        }
        if how.reads("codebook") {
            how = how.codebook(words(0, KV_HEADS));
        }
        if how.reads("codebook_q") {
            how = how.codebook_q(words(1, HEADS));
        }
        let o = attention(q.clone(), k.clone(), v.clone(), &how).unwrap_or_else(|error| panic!("{error}: {how:?}"));
        let d_o = tensor::<4>(&self.d_o, [self.batch, HEADS, N, WIDTH], DType::F32, device);
        let found = (o.clone() * d_o).sum().backward();
        let of = |x: &Tensor<4>| gradient(x, &found);
        [values(o), of(&q), of(&k), of(&v), of(&gates), of(&types), gradient(&mix, &found)]
    }

    /// Fails where two runs are further apart than f32 makes them, or where there is nothing to compare.
    pub fn check(&self, found: &[Vec<f64>; 7], expected: &[Vec<f64>; 7], how: &str) {
        for ((name, found), expected) in NAMES.into_iter().zip(found).zip(expected) {
            let (error, most) = (apart(found, expected), largest(expected));
            assert!(error <= 2e-5 * most.max(1.0), "{name} is {error:e} of {most:e} off, {how}");
        }
        assert!(expected[..4].iter().all(|values| largest(values) > 1e-2), "the numbers are not sensitive, {how}");
    }
}

fn gradient<const D: usize>(x: &Tensor<D>, gradients: &Gradients) -> Vec<f64> {
    x.grad(gradients).map_or_else(|| vec![0.0; x.dims().iter().product()], values)
}
