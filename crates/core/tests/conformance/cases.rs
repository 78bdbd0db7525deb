//! Inputs for any mechanism, drawn from a seed by what its entry in the list says, and everything that comes of them.

use super::common::heads::{Heads, Tensor};
use super::common::{Random, siblings, values};
use regard_core::mechanism::{About, Causality, Choices, Gradients, Inputs, Mechanism, Pass, Plan};
use regard_core::oracle::{Defined, Oracle, Storage};
use regard_core::{Dims, Error, Output, Par, Saved, Sight};

/// Width of hidden states.
const E: usize = 12;
/// Codewords of a head.
const CODES: usize = 11;
/// Hyperplanes, unless an option says how many.
const BITS: usize = 3;

/// A mechanism with some options, and what it is given.
#[derive(Debug, Clone)]
pub struct Setting {
    pub mechanism: Mechanism,
    pub options: Vec<(&'static str, &'static str)>,
    pub causal: bool,
    /// Tensors beside q, k, v.
    pub tensors: Vec<&'static str>,
    pub storage: Storage,
}

impl Setting {
    pub fn about(&self) -> &'static About {
        self.mechanism.about()
    }

    pub fn with(&self, name: &'static str, value: &'static str) -> Self {
        let mut setting = self.clone();
        setting.mechanism.set(name, value).unwrap_or_else(|error| panic!("{error}"));
        setting.options.push((name, value));
        setting
    }

    /// Whether it drops weights.
    pub fn drops(&self) -> bool {
        self.options.iter().any(|(name, _)| *name == "dropout")
    }

    pub fn reads(&self, tensor: &str) -> bool {
        self.tensors.contains(&tensor)
    }

    /// A number that follows from the setting and from what it is drawn for alone, so that other entries of the list change nothing
    /// here (FNV-1a, 32 bits of it).
    pub fn seed(&self, purpose: &str) -> u64 {
        let Setting { options, causal, tensors, .. } = self;
        let text = format!("{purpose} {} {causal} {options:?} {tensors:?}", self.about().name);
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)) >> 32
    }

    /// Where heads are split there are at least two kv heads.
    fn fitting(&self, dims: Dims) -> Dims {
        let splits = self.about().options.iter().any(|option| option.name == "split");
        if splits && dims.kv_heads == 1 { Dims { kv_heads: 2, heads: dims.heads.max(2), ..dims } } else { dims }
    }

    /// The value of an option that was set, if it is an integer.
    fn integer(&self, name: &str) -> Option<usize> {
        self.options.iter().rev().find(|(option, _)| *option == name)?.1.parse().ok()
    }
}

/// Every mechanism in every form with its options of trial, on each set of tensors that it runs with.
pub fn plain_settings() -> Vec<Setting> {
    everyone().flat_map(settings_of).collect()
}

/// Those of one name.
pub fn settings_of(name: &str) -> Vec<Setting> {
    let of = |mechanism: Mechanism| {
        let about = mechanism.about();
        let forms: &[bool] = match about.causality {
            Causality::Optional => &[false, true],
            Causality::Required => &[true],
            Causality::Never => &[false],
        };
        forms.iter().flat_map(move |&causal| {
            let mechanism = mechanism.clone();
            about.needs.iter().map(move |set| {
                let plain =
                    Setting { mechanism: mechanism.clone(), options: Vec::new(), causal, tensors: set.to_vec(), storage: Storage::F32 };
                about.trial.iter().fold(plain, |setting, &(name, value)| setting.with(name, value))
            })
        })
    };
    of(Mechanism::by_name(name).unwrap_or_else(|| panic!("no mechanism {name}"))).collect()
}

/// Two mechanisms together, joined in every way.
const JOINED: [&str; 3] = ["local+vq", "local/linear", "local~linear"];

/// The names of the list, and of some joined ones.
pub fn everyone() -> impl Iterator<Item = &'static str> {
    Mechanism::ALL.iter().map(|about| about.name).chain(JOINED)
}

/// The same, and each with every sample of every option in turn, and with a few drawn pairs of them.
pub fn settings() -> Vec<Setting> {
    let mut all = Vec::new();
    for setting in plain_settings() {
        let samples: Vec<_> =
            setting.about().options.iter().flat_map(|option| option.samples.iter().map(|value| (option.name, *value))).collect();
        all.extend(samples.iter().map(|&(name, value)| setting.with(name, value)));
        let random = &mut Random::new(samples.len() as u64);
        for _ in 0..samples.len() / 2 {
            let [first, second] = [random.pick(&samples), random.pick(&samples)];
            if first.0 != second.0 {
                all.push(setting.with(first.0, first.1).with(second.0, second.1));
            }
        }
        all.push(setting);
    }
    all
}

/// One call with everything that it borrows.
#[derive(Debug, Clone)]
pub struct Case {
    pub setting: Setting,
    pub heads: Heads,
    pub seed: u64,
    pub x: Tensor,
    pub types: Vec<i64>,
    pub type_logits: Vec<f32>,
    pub threshold: Vec<f32>,
    /// From hardly any decay to almost all of it in one step.
    pub gates: Tensor,
    pub codebook: Tensor,
    pub codebook_q: Tensor,
    pub hyperplanes: Tensor,
    pub mix: Vec<f32>,
    pub key_bias: Vec<f32>,
    pub until: Vec<i64>,
    pub lengths: Option<Vec<usize>>,
    pub offsets: Option<Vec<usize>>,
    /// Some tokens are zero and some equal one another.
    pub degenerate: bool,
}

/// Forward and backward of one call, by name.
pub struct Found {
    pub tensors: Vec<(&'static str, Vec<f64>)>,
}

impl Found {
    pub fn get(&self, name: &str) -> &[f64] {
        &self.tensors.iter().find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no {name}")).1
    }
}

impl Case {
    pub fn draw(setting: &Setting, dims: Dims, seed: u64) -> Self {
        let dims = setting.fitting(dims);
        let random = &mut Random::new(seed + 7919);
        let typed = if setting.options.contains(&("query_typed", "true")) { dims.heads * dims.queries } else { dims.kv_heads * dims.keys };
        let caches = dims.batch * dims.kv_heads * dims.keys;
        Case {
            heads: Heads::draw(dims, setting.storage, seed),
            x: hidden_states(random, dims.batch, dims.queries),
            types: (0..dims.batch * typed).map(|_| random.below(3) as i64).collect(),
            type_logits: (0..dims.batch * typed * 3).map(|_| random.normal()).collect(),
            threshold: (0..dims.heads).map(|_| 0.5 + 0.4 * random.unit() as f32).collect(),
            gates: log_gates(random, [dims.batch, dims.heads, dims.queries, dims.dk]),
            codebook: Tensor::normal(random, Storage::F32, [1, dims.kv_heads, CODES, dims.dk]),
            codebook_q: Tensor::normal(random, Storage::F32, [1, dims.heads, CODES, dims.dk]),
            hyperplanes: Tensor::normal(random, Storage::F32, [1, 1, dims.dk, setting.integer("bits").unwrap_or(BITS)]),
            mix: (0..dims.heads).map(|_| random.normal()).collect(),
            key_bias: (0..caches).map(|_| random.normal()).collect(),
            until: (0..caches).map(|_| random.below(dims.keys + 2) as i64).collect(),
            lengths: None,
            offsets: None,
            degenerate: false,
            setting: setting.clone(),
            seed,
        }
    }

    pub fn dims(&self) -> Dims {
        self.heads.dims
    }

    pub fn inputs(&self) -> Inputs<'_> {
        let mut sight = if self.setting.causal { Sight::causal() } else { Sight::full() };
        if let Some(lengths) = &self.lengths {
            sight = sight.lengths(lengths);
        }
        if let Some(offsets) = &self.offsets {
            sight = sight.offsets(offsets, offsets);
        }
        let reads = |tensor| self.setting.reads(tensor);
        Inputs {
            x: reads("x").then(|| self.x.view()),
            types: reads("types").then_some(&self.types[..]),
            type_logits: reads("type_logits").then_some(&self.type_logits[..]),
            threshold: reads("threshold").then_some(&self.threshold[..]),
            gates: reads("gates").then(|| self.gates.view()),
            codebook: reads("codebook").then(|| self.codebook.view()),
            codebook_q: reads("codebook_q").then(|| self.codebook_q.view()),
            hyperplanes: reads("hyperplanes").then(|| self.hyperplanes.view()),
            mix: reads("mix").then_some(&self.mix[..]),
            key_bias: reads("key_bias").then_some(&self.key_bias[..]),
            until: reads("until").then_some(&self.until[..]),
            ..Inputs::new(self.heads.q.view(), self.heads.k.view(), self.heads.v.view(), sight)
        }
    }

    /// The same with three tokens of zeros, and four that are equal bit for bit.
    pub fn degenerate(mut self) -> Self {
        for tensor in [&mut self.heads.q, &mut self.heads.k, &mut self.heads.v, &mut self.x] {
            for n in [0, 5, 32] {
                tensor.row_mut(n).for_each(|row| row.fill(0.0));
            }
            let [_, heads, tokens, width] = tensor.shape;
            for start in (0..heads).map(|h| h * tokens * width) {
                let row = tensor.floats()[start + 7 * width..start + 8 * width].to_vec();
                for n in [8, 20, 21] {
                    tensor.floats_mut()[start + n * width..start + (n + 1) * width].copy_from_slice(&row);
                }
            }
        }
        Case { degenerate: true, ..self }
    }

    /// A problem of the same kind, with other numbers.
    fn sibling(&self, seed: u64) -> Self {
        let Dims { queries, keys, .. } = self.dims();
        let wider = Dims { queries: queries.max(16), keys: keys.max(16), ..self.dims() };
        let sibling = Case::draw(&self.setting, wider, self.seed + 1_000_003 * seed);
        if self.degenerate { sibling.degenerate() } else { sibling }
    }

    /// Fills a codebook with all rows of a tensor, whatever their batch row.
    pub fn hold_every_row(&mut self, codebook: &str, rows: &str) {
        let from = if rows == "q" { &self.heads.q } else { &self.heads.k };
        let [batch, heads, count, width] = from.shape;
        let of = |h: usize, b: usize| &from.floats()[(b * heads + h) * count * width..][..count * width];
        let values = (0..heads).flat_map(|h| (0..batch).flat_map(move |b| of(h, b))).copied().collect();
        let filled = Tensor::new([1, heads, batch * count, width], values);
        *(if codebook == "codebook_q" { &mut self.codebook_q } else { &mut self.codebook }) = filled;
    }

    pub fn pass(&self) -> Pass {
        Pass { training: true, seed: self.seed, step: 1 }
    }

    pub fn choose(&self) -> Choices {
        self.try_choose().unwrap_or_else(|error| panic!("{error}: {}", self.name()))
    }

    pub fn try_choose(&self) -> Result<Choices, Error> {
        self.setting.mechanism.choose(&self.inputs(), self.pass(), Par::default())
    }

    pub fn oracle(&self, choices: &Choices) -> Box<dyn Oracle> {
        self.setting
            .mechanism
            .plan(&self.inputs(), choices, self.pass())
            .unwrap_or_else(|error| panic!("{error}: {}", self.name()))
            .oracle()
    }

    pub fn d_o(&self) -> Vec<f64> {
        values(self.heads.d_o.view())
    }

    pub fn name(&self) -> String {
        let Setting { options, causal, tensors, storage, .. } = &self.setting;
        let form = if *causal { "causal" } else { "bidirectional" };
        format!("{} {form} {options:?} {tensors:?} {storage:?} {:?} seed={}", self.setting.about().name, self.dims(), self.seed)
    }

    /// The gradients that its definition has, by name.
    fn leaves(&self, choices: &Choices) -> Vec<&'static str> {
        self.oracle(choices).leaves().into_iter().map(|(name, _)| name).collect()
    }

    /// Everything that the kernels compute with these choices, into memory that holds no numbers before.
    pub fn run(&self, choices: &Choices, par: Par) -> Found {
        let leaves = self.leaves(choices);
        let inputs = self.inputs();
        let plan = self.setting.mechanism.plan(&inputs, choices, self.pass()).unwrap_or_else(|error| panic!("{error}: {}", self.name()));
        let Dims { batch, heads, kv_heads, queries, keys, dk, dv } = self.dims();
        let fresh = |shape| Tensor::unfilled(self.setting.storage, shape);
        let mut o = fresh([batch, heads, queries, dv]);
        let mut lse = vec![f32::NAN; batch * heads * queries];
        plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap_or_else(|error| panic!("{error}: {}", self.name()));
        let mut dq = fresh([batch, heads, queries, dk]);
        let (mut d_k, mut d_v) = (fresh([batch, kv_heads, keys, dk]), fresh([batch, kv_heads, keys, dv]));
        let mut dx = Tensor::unfilled(Storage::F32, self.x.shape);
        let mut dkey_bias = vec![f32::NAN; self.key_bias.len()];
        let mut dtype_logits = vec![f32::NAN; self.type_logits.len()];
        let mut dthreshold = vec![f32::NAN; self.threshold.len()];
        let mut dmix = vec![f32::NAN; self.mix.len()];
        let mut dgates = Tensor::unfilled(Storage::F32, self.gates.shape);
        let wants = |leaf| leaves.contains(&leaf);
        let heads = regard_core::Gradients {
            dq: Some(dq.view_mut()),
            dk: Some(d_k.view_mut()),
            dv: Some(d_v.view_mut()),
            dkey_bias: wants("key_bias").then_some(&mut dkey_bias[..]),
            dbias: None,
        };
        let mut gradients = Gradients {
            heads,
            dx: wants("x").then(|| dx.view_mut()),
            dtype_logits: wants("type_logits").then_some(&mut dtype_logits[..]),
            dthreshold: wants("threshold").then_some(&mut dthreshold[..]),
            dgates: wants("gates").then(|| dgates.view_mut()),
            dmix: wants("mix").then_some(&mut dmix[..]),
        };
        let saved = Saved { o: o.view(), lse: &lse, d_o: self.heads.d_o.view() };
        plan.backward(&saved, &mut gradients, par).unwrap_or_else(|error| panic!("{error}: {}", self.name()));
        let wide = |flat: &[f32]| flat.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let mut tensors = vec![("o", values(o.view())), ("dq", values(dq.view())), ("dk", values(d_k.view())), ("dv", values(d_v.view()))];
        if self.setting.about().traces.contains(&"lse") {
            tensors.push(("lse", wide(&lse)));
        }
        for (leaf, name, flat) in [
            ("x", "dx", wide(dx.floats())),
            ("key_bias", "dkey_bias", wide(&dkey_bias)),
            ("type_logits", "dtype_logits", wide(&dtype_logits)),
            ("threshold", "dthreshold", wide(&dthreshold)),
            ("gates", "dgates", wide(dgates.floats())),
            ("mix", "dmix", wide(&dmix)),
        ] {
            if wants(leaf) {
                tensors.push((name, flat));
            }
        }
        Found { tensors }
    }

    /// What is right, and how far from it is still right.
    pub fn judge(&self, choices: &Choices) -> Judge {
        self.judge_of(choices, |case| Some(case.d_o()))
    }

    /// The same of the outputs alone.
    pub fn judge_outputs(&self, choices: &Choices) -> Judge {
        self.judge_of(choices, |_| None)
    }

    /// Gradients are judged where a case has an upstream one.
    fn judge_of(&self, choices: &Choices, upstream: fn(&Case) -> Option<Vec<f64>>) -> Judge {
        let mut judge = Judge::new(self.oracle(choices).as_ref(), upstream(self).as_deref(), self.setting.storage);
        let Dims { queries, keys, .. } = self.dims();
        // A small problem, or a tensor of a few numbers, has too few for its own rounding to say how large rounding is there.
        let few = judge.truth.iter().any(|defined| (1..16).contains(&defined.values.len()));
        for seed in 1..=siblings(if few { 1 } else { queries * keys }) / 2 {
            let sibling = self.sibling(seed);
            let oracle = sibling.oracle(&sibling.choose());
            judge.allow(&Judge::new(oracle.as_ref(), upstream(&sibling).as_deref(), self.setting.storage));
        }
        judge
    }
}

/// Hidden states of a few kinds, with noise; some tokens are alike bit for bit.
fn hidden_states(random: &mut Random, batch: usize, tokens: usize) -> Tensor {
    let kinds: Vec<Vec<f32>> = (0..5).map(|_| (0..E).map(|_| random.normal()).collect()).collect();
    let mut values = Vec::with_capacity(batch * tokens * E);
    for _ in 0..batch * tokens {
        let kind = &kinds[random.below(kinds.len())];
        let noise = random.pick(&[0.0, 0.1, 0.6]);
        values.extend(kind.iter().map(|x| x + noise * random.normal()));
    }
    Tensor::new([batch, 1, tokens, E], values)
}

/// Logarithms of gates: some close to 0, some strong, and some of e^-20 a step.
fn log_gates(random: &mut Random, shape: [usize; 4]) -> Tensor {
    let gate = |random: &mut Random| -random.pick(&[0.01, 0.1, 1.0, 20.0]) * random.unit() as f32;
    Tensor::new(shape, (0..shape.iter().product()).map(|_| gate(random)).collect())
}

/// The definition of one call and its budget.
pub struct Judge {
    pub truth: Vec<Defined>,
    plain: Vec<f64>,
}

impl Judge {
    /// Of one problem, with the errors of plain implementations on it.
    fn new(oracle: &dyn Oracle, d_o: Option<&[f64]>, storage: Storage) -> Self {
        let truth = oracle.truth(d_o);
        let mut plain = vec![0.0; truth.len()];
        for tensors in oracle.plain(d_o, storage) {
            for (worst, (found, defined)) in plain.iter_mut().zip(tensors.iter().zip(&truth)) {
                let errors = found.values.iter().zip(&defined.values).filter(|(x, y)| x != y).map(|(x, y)| (x - y).abs());
                *worst = errors.fold(*worst, f64::max);
            }
        }
        Judge { truth, plain }
    }

    /// Allows the errors that were allowed on another problem, too.
    fn allow(&mut self, other: &Judge) {
        for (worst, error) in self.plain.iter_mut().zip(&other.plain) {
            *worst = worst.max(*error);
        }
    }

    /// The worst error as a share of its budget; panics with the place where it is above 1.
    pub fn check(&self, found: &Found, how: &str) -> f64 {
        self.check_where(found, how, |_, _| true)
    }

    /// Of the tensors that were found.
    pub fn check_some(&self, found: &Found, how: &str) -> f64 {
        let there = |name: &str| found.tensors.iter().any(|(tensor, _)| *tensor == name);
        let known = self.truth.iter().zip(&self.plain).filter(|(defined, _)| there(defined.name));
        let (truth, plain): (Vec<_>, _) = known.map(|(defined, plain)| (defined.clone(), *plain)).unzip();
        assert_eq!(truth.len(), found.tensors.len(), "{how}");
        Judge { truth, plain }.check(found, how)
    }

    /// The same for some values of each tensor.
    pub fn check_where(&self, found: &Found, how: &str, looks: impl Fn(&str, usize) -> bool) -> f64 {
        let mut worst = 0.0f64;
        for (defined, plain) in self.truth.iter().zip(&self.plain) {
            let Some((_, values)) = found.tensors.iter().find(|(name, _)| *name == defined.name) else {
                assert_eq!(defined.name, "lse", "{how}");
                continue;
            };
            assert_eq!(values.len(), defined.values.len(), "{} {how}", defined.name);
            for (i, (&x, &y)) in values.iter().zip(&defined.values).enumerate().filter(|(i, _)| looks(defined.name, *i)) {
                if x == y {
                    continue;
                }
                let share = (x - y).abs() / (2.0 * plain + 1e-6 * defined.sizes[i]);
                assert!(share <= 1.0, "{}[{i}] is {x:e}, defined {y:e}, {share:.2} of the budget: {how}", defined.name);
                worst = worst.max(share);
            }
        }
        worst
    }
}
