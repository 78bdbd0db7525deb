//! Every mechanism of the list.

use super::cases::{Case, Found, Setting, everyone, plain_settings, settings, settings_of};
use super::common::heads::Tensor;
use super::common::{Random, levels, values};
use regard_core::mechanism::{Causality, Mechanism, Memory, Pass, Plan, Token, Tokens};
use regard_core::oracle::Storage;
use regard_core::{Dims, Output, Par};
use std::collections::BTreeMap;
use std::io::Write as _;

/// Lengths around the sizes of registers, tiles and blocks.
const LENGTHS: [usize; 9] = [0, 1, 2, 15, 16, 17, 63, 64, 65];

fn dims(batch: usize, [heads, kv_heads]: [usize; 2], [queries, keys]: [usize; 2], [dk, dv]: [usize; 2]) -> Dims {
    Dims { batch, heads, kv_heads, queries, keys, dk, dv }
}

/// How many cases of each mechanism were checked, and how near the worst came to its budget.
#[derive(Default)]
struct Tally(BTreeMap<&'static str, (usize, f64)>);

impl Tally {
    fn add(&mut self, setting: &Setting, worst: f64) {
        let (count, share) = self.0.entry(setting.about().name).or_default();
        (*count, *share) = (*count + 1, share.max(worst));
    }

    /// Says what was counted past the capture of the test runner; every mechanism of `expected` must be there.
    fn report(&self, what: &str, expected: impl Iterator<Item = &'static str>) {
        for name in expected {
            assert!(self.0.contains_key(name), "{what}: no case of {name}");
        }
        let said: Vec<String> = self.0.iter().map(|(name, (count, worst))| format!("{name} {count} ({worst:.2})")).collect();
        writeln!(std::io::stderr(), "{what}: cases (worst error/budget): {}", said.join(", ")).expect("stderr is open");
    }
}

fn causal() -> impl Iterator<Item = &'static str> {
    let has_the_form = |name: &&str| Mechanism::by_name(name).is_some_and(|mechanism| mechanism.about().causality != Causality::Never);
    everyone().filter(has_the_form)
}

/// Equal and unequal lengths; the mechanism says whether it takes the latter.
fn lengths(setting: &Setting, random: &mut Random) -> [usize; 2] {
    let queries = random.pick(&LENGTHS);
    let keys = if setting.about().square || random.chance(0.6) { queries } else { random.pick(&LENGTHS) };
    [queries, keys]
}

#[test]
fn kernels_are_as_defined_forward_and_backward_at_every_level() {
    let mut tally = Tally::default();
    for setting in settings() {
        let seed = setting.seed("as defined");
        let random = &mut Random::new(seed);
        for round in 0..3 {
            let setting =
                Setting { storage: if round == 2 { random.pick(&[Storage::Bf16, Storage::F16]) } else { Storage::F32 }, ..setting.clone() };
            let kv_heads = 1 + random.below(2);
            let heads = [kv_heads * (1 + random.below(2)), kv_heads];
            let size = dims(1 + random.below(2), heads, lengths(&setting, random), [random.pick(&[3, 8, 16]), random.pick(&[5, 8, 16])]);
            let mut case = Case::draw(&setting, size, seed + round);
            if random.chance(0.3) {
                case.lengths = Some((0..size.batch).map(|_| random.below(size.keys + 1)).collect());
            }
            let choices = case.choose();
            let judge = case.judge(&choices);
            for level in levels() {
                let worst = judge.check(&case.run(&choices, Par::default().level(level)), &format!("at {level}, {}", case.name()));
                tally.add(&setting, worst);
            }
        }
    }
    tally.report("as defined", everyone());
}

/// Pairs that share what single mechanisms have: types, thresholds, hidden states, gates, codebooks of both sides, in either place.
const PAIRS: [&str; 9] = [
    "vq+local",
    "exact/clustered",
    "clustered/nats",
    "nats/gated_linear",
    "gated_linear/vq_qk",
    "nats~clustered",
    "vq_qk~gated_linear",
    "vq~vq_qk",
    "hyper/vq",
];

#[test]
fn any_two_mechanisms_together_are_as_defined() {
    for setting in PAIRS.into_iter().flat_map(settings_of) {
        for storage in [Storage::F32, Storage::Bf16] {
            let setting = Setting { storage, ..setting.clone() };
            let case = Case::draw(&setting, dims(2, [6, 3], [40, 40], [8, 5]), setting.seed("together"));
            let choices = case.choose();
            case.judge(&choices).check(&case.run(&choices, Par::default()), &case.name());
        }
    }
}

#[test]
fn parts_that_would_read_keys_twice_do_not_merge() {
    for (name, words) in [
        ("exact+local", "read twice"),
        ("nats+vq", "read twice"),
        ("linear+vq", "linear has no log-sum-exp"),
        ("local+gated_linear", "gated_linear has no log-sum-exp"),
    ] {
        let setting = &settings_of(name)[0];
        let error = Case::draw(setting, dims(1, [2, 1], [8, 8], [4, 4]), 1).try_choose().expect_err(name).to_string();
        assert!(error.contains(words), "{name}: {error}");
    }
    for name in ["local+local", "local+", "+", "local-vq", "local+vq/linear", "vq+nobody"] {
        assert!(Mechanism::by_name(name).is_none(), "{name}");
    }
    let mut both = Mechanism::by_name("local+vq").expect("it is there");
    for option in ["vq.recent", "vq.exclude_recent", "local.sinks", "window", "split"] {
        assert!(both.set(option, "3").is_err(), "{option}");
    }
    let error = both.set("local.window", "0").expect_err("a window has a key").to_string();
    assert_eq!(error, "local.window=0: expected an integer of at least 1");
}

/// Single rows of a large call are those of all of it.
#[test]
fn rows_of_definitions_are_those_of_the_whole() {
    for setting in plain_settings() {
        let case = Case::draw(&setting, dims(2, [4, 2], [33, 33], [8, 5]), setting.seed("rows"));
        let choices = case.choose();
        let oracle = case.oracle(&choices);
        let truth = oracle.truth(None);
        for head in 0..8 {
            let wanted = [0, 7, 20, 32];
            let Some(rows) = oracle.rows([head / 4, head % 4], &wanted) else { panic!("no rows: {}", case.name()) };
            for (row, n) in rows.iter().zip(wanted) {
                let whole = &truth[0].values[(head * 33 + n) * 5..][..5];
                assert!(row.o.iter().zip(whole).all(|(a, b)| (a - b).abs() < 1e-12), "row {n} of {head}: {}", case.name());
            }
        }
    }
}

#[test]
fn gradients_of_definitions_are_their_differences() {
    let mut tally = Tally::default();
    for setting in settings() {
        if setting.drops() {
            continue;
        }
        let mut case = Case::draw(&setting, dims(1, [2, 1], [9, 9], [3, 2]), setting.seed("differences"));
        // Feature maps have a kink at 0, from which every difference is far beside its step.
        for x in case.heads.q.floats_mut().iter_mut().chain(case.heads.k.floats_mut()).filter(|x| x.abs() < 2e-2) {
            *x = 2e-2f32.copysign(*x);
        }
        let choices = case.choose();
        let d_o = case.d_o();
        let truth = case.oracle(&choices).truth(Some(&d_o));
        let mut worst = 0.0f64;
        let leaves: Vec<(&'static str, usize)> =
            case.oracle(&choices).leaves().into_iter().map(|(name, leaf)| (name, leaf.len())).collect();
        for (leaf, count) in leaves {
            let gradient = &truth
                .iter()
                .find(|defined| defined.name[1..] == *leaf && defined.name.starts_with('d'))
                .expect("every leaf has one")
                .values;
            let straight_through = leaf == "type_logits";
            for i in (0..count).filter(|_| !straight_through) {
                let loss = |step: f64| {
                    let mut oracle = case.oracle(&choices);
                    oracle.leaves().into_iter().find(|(name, _)| *name == leaf).expect("the same leaves").1[i] += step;
                    let o = oracle.truth(None);
                    o[0].values.iter().zip(&d_o).map(|(o, d)| o * d).sum::<f64>()
                };
                let h = 1e-4;
                let difference = (8.0 * (loss(h) - loss(-h)) - (loss(2.0 * h) - loss(-2.0 * h))) / (12.0 * h);
                let share = (difference - gradient[i]).abs() / (1e-8 * gradient[i].abs().max(1.0));
                assert!(share <= 1.0, "d{leaf}[{i}] is {}, differences say {difference}: {}", gradient[i], case.name());
                worst = worst.max(share);
            }
        }
        tally.add(&setting, worst);
    }
    tally.report("differences", everyone());
}

/// The same call of exact attention.
fn as_exact(case: &Case) -> Case {
    let exact = Mechanism::by_name("exact").expect("it is there");
    let scaled = case.setting.options.iter().find(|(name, _)| *name == "scale");
    let setting = Setting { mechanism: exact, tensors: Vec::new(), options: Vec::new(), ..case.setting.clone() };
    Case { setting: scaled.iter().fold(setting, |setting, (name, value)| setting.with(name, value)), ..case.clone() }
}

#[test]
fn at_its_limit_every_mechanism_is_exact_attention() {
    let mut tally = Tally::default();
    for setting in plain_settings() {
        let Some(limit) = setting.about().limit else { continue };
        if limit.tensors.iter().any(|(tensor, _)| !setting.tensors.contains(tensor)) {
            continue;
        }
        let setting = limit.options.iter().fold(setting, |setting, &(name, value)| setting.with(name, value));
        let mut case = Case::draw(&setting, dims(2, [4, 2], [65, 65], [16, 8]), 40);
        for (tensor, value) in limit.tensors {
            assert_eq!(*tensor, "types", "a tensor of integers that this suite can fill");
            case.types.fill(*value);
        }
        for &(codebook, rows) in limit.codebooks {
            case.hold_every_row(codebook, rows);
        }
        let judged = as_exact(&case);
        let judge = judged.judge(&judged.choose());
        let found = case.run(&case.choose(), Par::default());
        let kept = Found { tensors: found.tensors.into_iter().filter(|(name, _)| ["o", "lse", "dq", "dk", "dv"].contains(name)).collect() };
        tally.add(&setting, judge.check(&kept, &case.name()));
    }
    let with_a_limit = |name: &&str| Mechanism::by_name(name).is_some_and(|mechanism| mechanism.about().limit.is_some());
    tally.report("exact limit", everyone().filter(with_a_limit));
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for setting in plain_settings() {
        let case = Case::draw(&setting, dims(1, [4, 2], [300, 300], [16, 16]), setting.seed("threads"));
        let bits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
            let found = pool.install(|| {
                let choices = case.setting.mechanism.choose(&case.inputs(), case.pass(), Par::default()).expect("it chose before");
                case.run(&choices, Par::default())
            });
            found
                .tensors
                .into_iter()
                .map(|(name, values)| (name, values.into_iter().map(f64::to_bits).collect::<Vec<_>>()))
                .collect::<Vec<_>>()
        };
        let one = bits(1);
        assert!(one == bits(2) && one == bits(3), "{}", case.name());
    }
}

/// Changes everything that belongs to tokens from `first` on in batch row `b`.
fn disturb(case: &mut Case, b: usize, first: usize) {
    let random = &mut Random::new(99);
    for tensor in [&mut case.heads.q, &mut case.heads.k, &mut case.heads.v, &mut case.x, &mut case.gates] {
        let [_, heads, tokens, width] = tensor.shape;
        for h in 0..heads {
            let start = (b * heads + h) * tokens;
            tensor.floats_mut()[(start + first.min(tokens)) * width..(start + tokens) * width]
                .iter_mut()
                .for_each(|x| *x = 3.0 * random.normal());
        }
    }
    case.gates.floats_mut().iter_mut().for_each(|gate| *gate = -gate.abs());
    let tokens = case.dims().keys;
    let batch = case.dims().batch;
    let of_row = |count: usize| b * count / batch..(b + 1) * count / batch;
    let (types, logits) = (of_row(case.types.len()), of_row(case.type_logits.len()));
    for head in case.types[types].chunks_mut(tokens) {
        head[first..].iter_mut().for_each(|kind| *kind = random.below(3) as i64);
    }
    for head in case.type_logits[logits].chunks_mut(tokens * 3) {
        head[first * 3..].iter_mut().for_each(|x| *x = random.normal());
    }
}

#[test]
fn no_row_knows_later_tokens() {
    let mut tally = Tally::default();
    for setting in settings().into_iter().filter(|setting| setting.causal) {
        let case = Case::draw(&setting, dims(1, [2, 1], [97, 97], [8, 8]), setting.seed("no leak"));
        let judge = case.judge_outputs(&case.choose());
        for first in [1, 40, 64, 96] {
            let mut disturbed = case.clone();
            disturb(&mut disturbed, 0, first);
            let found = disturbed.run(&disturbed.choose(), Par::default());
            let rows = Found { tensors: found.tensors.into_iter().filter(|(name, _)| ["o", "lse"].contains(name)).collect() };
            let early = |name: &str, i: usize| i / if name == "o" { 8 } else { 1 } % 97 < first;
            tally.add(&setting, judge.check_where(&rows, &format!("from {first} on, {}", case.name()), early));
        }
    }
    tally.report("no leak", causal());
}

#[test]
fn batch_rows_do_not_know_each_other() {
    let mut tally = Tally::default();
    for setting in settings() {
        let case = Case::draw(&setting, dims(2, [2, 1], [40, 40], [8, 8]), setting.seed("rows apart"));
        let judge = case.judge_outputs(&case.choose());
        let mut disturbed = case.clone();
        disturb(&mut disturbed, 1, 0);
        let found = disturbed.run(&disturbed.choose(), Par::default());
        let rows = Found { tensors: found.tensors.into_iter().filter(|(name, _)| ["o", "lse"].contains(name)).collect() };
        let first_row = |name: &str, i: usize| i < 2 * 40 * if name == "o" { 8 } else { 1 };
        tally.add(&setting, judge.check_where(&rows, &case.name(), first_row));
    }
    tally.report("rows independent", everyone());
}

/// Packed sequences of these lengths, and each of them alone.
fn packed(setting: &Setting, lengths: &[usize], seed: u64) -> (Case, Vec<Case>) {
    let total: usize = lengths.iter().sum();
    let size = |tokens| dims(1, [4, 2], [tokens, tokens], [8, 5]);
    let mut whole = Case::draw(setting, size(total), seed);
    whole.offsets = Some(lengths.iter().scan(0, |end, n| Some(std::mem::replace(end, *end + n))).chain([total]).collect());
    let mut start = 0;
    let alone = lengths.iter().map(|&n| {
        let mut case = Case::draw(setting, size(n), seed);
        let from = [&whole.heads.q, &whole.heads.k, &whole.heads.v, &whole.heads.d_o, &whole.x, &whole.gates];
        let cut: Vec<Tensor> = from.into_iter().map(|tensor| cut(tensor, start, n)).collect();
        let [q, k, v, d_o, x, gates] = cut.try_into().expect("six");
        (case.heads.q, case.heads.k, case.heads.v, case.heads.d_o, case.x, case.gates) = (q, k, v, d_o, x, gates);
        let constant = [&whole.codebook, &whole.codebook_q, &whole.hyperplanes].map(Tensor::clone);
        [case.codebook, case.codebook_q, case.hyperplanes] = constant;
        case.types = whole.types.chunks(total).flat_map(|head| &head[start..start + n]).copied().collect();
        case.type_logits = whole.type_logits.chunks(total * 3).flat_map(|head| &head[start * 3..(start + n) * 3]).copied().collect();
        case.threshold.clone_from(&whole.threshold);
        case.mix.clone_from(&whole.mix);
        start += n;
        case
    });
    let alone = alone.collect();
    (whole, alone)
}

/// Some tokens of every head.
fn cut(tensor: &Tensor, start: usize, count: usize) -> Tensor {
    let [batch, heads, tokens, width] = tensor.shape;
    let rows = tensor.floats().chunks(tokens * width).flat_map(|head| &head[start * width..(start + count) * width]);
    Tensor::new([batch, heads, count, width], rows.copied().collect())
}

#[test]
fn packed_sequences_are_those_alone() {
    let mut tally = Tally::default();
    for setting in settings() {
        if setting.drops() {
            continue; // drops other pairs in another sequence
        }
        let lengths = [17, 0, 1, 70, 33];
        let (whole, alone) = packed(&setting, &lengths, setting.seed("packed"));
        let found = whole.run(&whole.choose(), Par::default());
        let mut start = 0;
        for (case, n) in alone.iter().zip(lengths) {
            let judge = case.judge(&case.choose());
            let mut own = Vec::new();
            for (name, values) in &found.tensors {
                if ["dthreshold", "dmix"].contains(name) {
                    continue; // of all sequences together
                }
                let heads = match *name {
                    "o" | "lse" | "dq" | "dgates" => 4,
                    "dx" => 1,
                    "dtype_logits" if !setting.options.contains(&("query_typed", "true")) => 2,
                    "dtype_logits" => 4,
                    _ => 2,
                };
                let width = values.len() / heads / 121;
                let rows = values.chunks(121 * width).flat_map(|head| &head[start * width..(start + n) * width]);
                own.push((*name, rows.copied().collect()));
            }
            tally.add(&setting, judge.check_some(&Found { tensors: own }, &format!("from {start} on, {}", whole.name())));
            start += n;
        }
    }
    tally.report("packed", everyone());
}

/// Some tokens of one sequence as a state takes them in.
struct Slice {
    k: Tensor,
    v: Tensor,
    x: Tensor,
    types: Vec<i64>,
    type_logits: Vec<f32>,
    threshold: Vec<f32>,
    gates: Tensor,
    codebook: Tensor,
    codebook_q: Tensor,
    mix: Vec<f32>,
}

impl Slice {
    fn of(case: &Case, start: usize, count: usize) -> Self {
        let tokens = case.dims().keys;
        let side = |width: usize| move |head: usize| (head * tokens + start) * width..(head * tokens + start + count) * width;
        let typed = case.types.len() / tokens.max(1);
        Slice {
            k: cut(&case.heads.k, start, count),
            v: cut(&case.heads.v, start, count),
            x: cut(&case.x, start, count),
            threshold: case.threshold.clone(),
            gates: cut(&case.gates, start, count),
            codebook: case.codebook.clone(),
            codebook_q: case.codebook_q.clone(),
            mix: case.mix.clone(),
            types: (0..typed).flat_map(|head| &case.types[side(1)(head)]).copied().collect(),
            type_logits: (0..typed).flat_map(|head| &case.type_logits[side(3)(head)]).copied().collect(),
        }
    }

    fn tokens(&self, setting: &Setting) -> Tokens<'_> {
        let reads = |tensor| setting.reads(tensor);
        Tokens {
            types: reads("types").then_some(&self.types[..]),
            type_logits: reads("type_logits").then_some(&self.type_logits[..]),
            x: reads("x").then(|| self.x.view()),
            threshold: reads("threshold").then_some(&self.threshold[..]),
            gates: reads("gates").then(|| self.gates.view()),
            codebook: reads("codebook").then(|| self.codebook.view()),
            codebook_q: reads("codebook_q").then(|| self.codebook_q.view()),
            mix: reads("mix").then_some(&self.mix[..]),
            ..Tokens::new(self.k.view(), self.v.view())
        }
    }
}

#[test]
fn step_by_step_is_the_parallel_form() {
    let mut tally = Tally::default();
    for setting in settings().into_iter().filter(|setting| setting.causal) {
        let Ok(start) = setting.mechanism.start() else { continue };
        if setting.drops() {
            continue;
        }
        let case = Case::draw(&setting, dims(1, [4, 2], [90, 90], [8, 5]), setting.seed("step by step"));
        let defined = if setting.about().steps_are_exact { as_exact(&case) } else { case.clone() };
        let judge = defined.judge_outputs(&defined.choose());
        for first in [0, 1, 40] {
            let mut state = start.clone();
            state.prefill(&Slice::of(&case, 0, first).tokens(&setting)).unwrap_or_else(|error| panic!("{error}: {}", case.name()));
            let (mut o, mut lse) = (vec![f64::NAN; 4 * 90 * 5], vec![f64::NAN; 4 * 90]);
            for t in first..90 {
                let kept = Slice::of(&case, t, 1);
                let q = cut(&case.heads.q, t, 1);
                let token = Token { q: q.view(), kept: kept.tokens(&setting), bias: None, mask: None };
                let (mut row, mut row_lse) = (Tensor::unfilled(Storage::F32, [1, 4, 1, 5]), [f32::NAN; 4]);
                let mut out = Output { o: row.view_mut(), lse: Some(&mut row_lse) };
                state.step(&token, &mut out, Par::default()).unwrap_or_else(|error| panic!("{error}: {}", case.name()));
                assert_eq!(state.tokens(), t + 1);
                for (h, row) in values(row.view()).chunks(5).enumerate() {
                    o[(h * 90 + t) * 5..][..5].copy_from_slice(row);
                    lse[h * 90 + t] = row_lse[h].into();
                }
            }
            let mut tensors = vec![("o", o)];
            if setting.about().traces.contains(&"lse") {
                tensors.push(("lse", lse));
            }
            let stepped = |name: &str, i: usize| i / if name == "o" { 5 } else { 1 } % 90 >= first;
            tally.add(&setting, judge.check_where(&Found { tensors }, &format!("after {first}, {}", case.name()), stepped));
        }
    }
    tally.report("step by step", causal());
}

#[test]
fn padding_gives_zeros_and_reaches_nobody() {
    for setting in settings() {
        let mut case = Case::draw(&setting, dims(2, [2, 1], [30, 30], [8, 8]), setting.seed("padding"));
        case.lengths = Some(vec![21, 0]);
        let clean = case.run(&case.choose(), Par::default());
        let mut spoilt = case.clone();
        disturb(&mut spoilt, 0, 21);
        disturb(&mut spoilt, 1, 0);
        let found = spoilt.run(&spoilt.choose(), Par::default());
        for (name, width) in [("o", 8), ("lse", 1)] {
            let Some((_, before)) = clean.tensors.iter().find(|(tensor, _)| *tensor == name) else { continue };
            for (i, (before, after)) in before.iter().zip(found.get(name)).enumerate() {
                let (row, token) = (i / width / 60, i / width % 30);
                assert!(before.to_bits() == after.to_bits(), "{name}[{i}] knows padding: {}", case.name());
                if row == 1 || token >= 21 {
                    let empty = if name == "o" { 0.0 } else { f64::NEG_INFINITY };
                    assert!(*after == empty, "{name}[{i}] of padding is {after}: {}", case.name());
                }
            }
        }
    }
}

#[test]
fn zero_vectors_and_equal_tokens_are_as_defined() {
    let mut tally = Tally::default();
    for setting in settings() {
        let case = Case::draw(&setting, dims(1, [2, 1], [33, 33], [8, 8]), setting.seed("zeros and duplicates")).degenerate();
        let choices = case.choose();
        tally.add(&setting, case.judge(&choices).check(&case.run(&choices, Par::default()), &case.name()));
    }
    tally.report("zeros and duplicates", everyone());
}

#[test]
fn traces_are_those_of_the_list() {
    for setting in plain_settings() {
        let case = Case::draw(&setting, dims(2, [4, 2], [20, 20], [8, 8]), 6000);
        let choices = case.choose();
        let inputs = case.inputs();
        let plan = setting.mechanism.plan(&inputs, &choices, case.pass()).expect("it was planned before");
        let listed: Vec<&str> = setting.about().traces.iter().copied().filter(|name| !["lse", "received"].contains(name)).collect();
        let traces = plan.traces();
        assert_eq!(traces.iter().map(|trace| trace.name).collect::<Vec<_>>(), listed, "{}", case.name());
        for trace in traces {
            assert_eq!(trace.values.len(), trace.shape.iter().product::<usize>(), "{} of {}", trace.name, case.name());
        }
    }
}

#[test]
fn another_mechanism_cannot_use_the_choices() {
    let case = Case::draw(&plain_settings()[0], dims(1, [1, 1], [4, 4], [4, 4]), 1);
    let choices = case.choose();
    for setting in plain_settings().into_iter().filter(|setting| setting.about().name != case.setting.about().name) {
        let other = Case { setting, ..case.clone() };
        assert!(other.setting.mechanism.plan(&other.inputs(), &choices, Pass::default()).is_err(), "{}", other.name());
    }
}
