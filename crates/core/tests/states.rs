//! Step by step as in one go: what every mechanism gives token after token, and how much it remembers.

mod common;

use common::Random;
use common::heads::{Heads, sizes};
use common::sample::Sample;
use common::steps::{Sequence, definition, rows};
use regard_core::mechanism::{Exact, Inputs, Local, Mechanism, Memory, Pass, Plan, State, Token, Tokens};
use regard_core::oracle::Storage;
use regard_core::{Alignment, Output, Par, Sight, Strided, StridedMut, View, ViewMut};

/// Four query heads on two kv heads, 16 features in keys and 12 in values.
fn sequence(tokens: usize, seed: u64) -> Sequence {
    Sequence::new(Heads::single(sizes([4, 2], [tokens, tokens], [16, 12]), seed))
}

fn local(window: usize, sinks: usize) -> Mechanism {
    Mechanism::Local(Local { window, sinks, scale: None })
}

fn exact() -> Mechanism {
    Mechanism::Exact(Exact::default())
}

/// Biases with some keys hidden, `[2, tokens]`.
fn key_bias(tokens: usize, random: &mut Random) -> Vec<f32> {
    (0..2 * tokens).map(|_| if random.chance(0.1) { f32::NEG_INFINITY } else { random.normal() }).collect()
}

/// Lifetimes `[2, tokens]`: never, for a while, for ever.
fn lifetimes(tokens: usize, random: &mut Random) -> Vec<i64> {
    let ends = [0, -1, tokens as i64, i64::MAX];
    (0..2 * tokens).map(|j| if random.chance(0.2) { random.pick(&ends) } else { (j % tokens + random.below(30)) as i64 }).collect()
}

fn mask(heads: usize, tokens: usize, random: &mut Random) -> ([usize; 4], Vec<u8>) {
    let shape = [1, heads, tokens, tokens];
    (shape, (0..shape.iter().product()).map(|_| u8::from(random.chance(0.7))).collect())
}

#[test]
fn exact_steps_as_in_parallel() {
    let sequence = sequence(150, 1);
    for first in [0, 1, 63, 64, 65, 149] {
        sequence.verify(&exact(), first);
    }
}

#[test]
fn exact_steps_with_what_comes_with_each_token() {
    let random = &mut Random::new(2);
    let (biases, untils) = (key_bias(140, random), lifetimes(140, random));
    let plain = || sequence(140, 3);
    let with_bias = |heads| plain().heads.with_bias([1, heads], 4);
    let sequences = [
        Sequence { key_bias: Some(biases.clone()), ..plain() },
        Sequence { until: Some(untils.clone()), ..plain() },
        Sequence { heads: with_bias(1), ..plain() },
        Sequence { heads: with_bias(4), ..plain() },
        Sequence { mask: Some(mask(1, 140, random)), ..plain() },
        Sequence { mask: Some(mask(4, 140, random)), ..plain() },
        Sequence { heads: with_bias(4), key_bias: Some(biases), until: Some(untils), mask: Some(mask(4, 140, random)) },
    ];
    for (sequence, first) in sequences.iter().flat_map(|sequence| [0, 70].map(|first| (sequence, first))) {
        sequence.verify(&exact(), first);
    }
}

#[test]
fn exact_steps_with_every_option() {
    let options = [
        Exact { window_left: Some(20), ..Exact::default() },
        Exact { window_left: Some(20), window_right: Some(3), sinks: 3, ..Exact::default() },
        Exact { alibi: true, softcap: Some(5.0), scale: Some(0.4), ..Exact::default() },
        Exact { dropout: 0.5, ..Exact::default() },
    ];
    for options in options {
        sequence(100, 5).verify(&Mechanism::Exact(options), 30);
    }
}

#[test]
fn a_ring_with_sinks_steps_as_in_parallel() {
    for (window, sinks) in [(1, 0), (1, 2), (2, 1), (3, 5), (16, 0), (16, 4), (64, 4), (200, 3)] {
        for tokens in [1, 2, 15, 16, 17, 20, 21, 64, 65, 68, 69, 150] {
            sequence(tokens, tokens as u64).verify(&local(window, sinks), 0);
        }
        for first in [1, window, window + sinks, window + sinks + 1, 100] {
            sequence(150, first as u64).verify(&local(window, sinks), first.min(149));
        }
    }
}

/// How many keys each of 20 queries sees, by the log-sum-exp of scores that are all 0.
fn counts(mechanism: &Mechanism, sight: Sight<'_>) -> Vec<usize> {
    let mut heads = Heads::single(sizes([1, 1], [20, 20], [8, 8]), 14);
    heads.k.floats_mut().fill(0.0);
    let inputs = Inputs::new(heads.q.view(), heads.k.view(), heads.v.view(), sight);
    let choices = mechanism.choose(&inputs, Pass::default(), Par::serial()).unwrap();
    let plan = mechanism.plan(&inputs, &choices, Pass::default()).unwrap();
    let outcome = heads.run(plan.problem().unwrap(), Par::serial());
    outcome.get("lse").iter().map(|lse| lse.exp().round() as usize).collect()
}

#[test]
fn a_window_counts_the_query_itself() {
    let each = |count: &dyn Fn(usize) -> usize| (0..20).map(count).collect::<Vec<_>>();
    assert_eq!(counts(&local(1, 0), Sight::causal()), each(&|_| 1));
    assert_eq!(counts(&local(1, 0), Sight::full()), each(&|_| 1));
    assert_eq!(counts(&local(3, 0), Sight::causal()), each(&|i| 3.min(i + 1)));
    assert_eq!(counts(&local(3, 0), Sight::full()), each(&|i| 1 + 2.min(i) + 2.min(19 - i)));
    assert_eq!(counts(&local(3, 2), Sight::causal()), each(&|i| 5.min(i + 1)));
    assert_eq!(counts(&exact(), Sight::causal()), each(&|i| i + 1));
}

#[test]
fn a_window_as_long_as_the_sequence_is_exact_attention() {
    let sequence = sequence(90, 6);
    let par = Par::serial();
    let all = sequence.run(&exact(), 0, par, |_| ());
    let definition = definition(&exact(), &sequence.inputs());
    let sample = Sample::new(&definition, Storage::F32, &(0..90).collect::<Vec<_>>());
    for window in [90, 1000, usize::MAX] {
        let ring = sequence.run(&local(window, 0), 0, par, |_| ());
        sample.check((&ring.0, &ring.1), "a long window");
    }
    let short = sequence.run(&local(89, 0), 0, par, |_| ());
    let last = |lse: &[f64]| lse.chunks(90).map(|head| head[89]).collect::<Vec<_>>();
    assert_ne!(last(&all.1), last(&short.1), "a window one key short forgets the first key");
}

/// Bytes after every step.
fn bytes(mechanism: &Mechanism, tokens: usize) -> Vec<usize> {
    let mut all = Vec::new();
    sequence(tokens, 7).run(mechanism, 0, Par::serial(), |state| all.push(state.bytes()));
    all
}

/// Bytes of one key and one value on two kv heads.
const ENTRY: usize = 2 * (16 + 12) * 4;

#[test]
fn a_ring_stops_growing() {
    for (window, sinks) in [(1, 0), (16, 4), (100, 3)] {
        let bytes = bytes(&local(window, sinks), 400);
        assert!(bytes[window + sinks - 1..].iter().all(|&held| held == (window + sinks) * ENTRY), "{bytes:?}");
    }
}

/// A million tokens, one feature in keys, two in values; four of the codes are enough.
#[test]
fn sums_do_not_grow_in_a_million_steps() {
    for (name, option) in
        [("linear", None), ("gated_linear", None), ("vq", None), ("vq_qk", None), ("vq", Some(("exclude_recent", "true")))]
    {
        let mut mechanism = Mechanism::by_name(name).unwrap();
        if let Some((option, value)) = option {
            mechanism.set(option, value).unwrap();
            mechanism.set("recent", "8").unwrap();
        }
        let needs = mechanism.about().needs[0];
        let mut state = mechanism.start().unwrap();
        let (codewords, gate) = ([-1.0f32, -0.2, 0.3, 1.0], [-0.01f32]);
        let words = View::from(Strided::contiguous(&codewords, [1, 1, 4, 1], "codebook").unwrap());
        let gates = View::from(Strided::contiguous(&gate, [1, 1, 1, 1], "gates").unwrap());
        let (mut random, mut held, mut o) = (Random::new(21), 0, [0.0f32; 2]);
        for t in 0..1_000_000 {
            let (key, value) = ([random.normal()], [random.normal(), random.normal()]);
            let k = View::from(Strided::contiguous(&key, [1, 1, 1, 1], "k").unwrap());
            let v = View::from(Strided::contiguous(&value, [1, 1, 1, 2], "v").unwrap());
            let kept = Tokens {
                gates: needs.contains(&"gates").then_some(gates),
                codebook: needs.contains(&"codebook").then_some(words),
                codebook_q: needs.contains(&"codebook_q").then_some(words),
                ..Tokens::new(k, v)
            };
            let out = ViewMut::F32(StridedMut::contiguous(&mut o, [1, 1, 1, 2], "o").unwrap());
            state.step(&Token { q: k, kept, bias: None, mask: None }, &mut Output { o: out, lse: None }, Par::serial()).unwrap();
            if t == 1000 {
                held = state.bytes();
            }
        }
        assert!(held > 0 && state.bytes() == held && state.tokens() == 1_000_000, "{name}: {held}, then {}", state.bytes());
        assert!(o.iter().all(|x| x.is_finite()), "{name}: {o:?}");
    }
}

#[test]
fn exact_attention_remembers_everything() {
    let bytes = bytes(&exact(), 400);
    assert!(bytes.iter().enumerate().all(|(t, &held)| held >= (t + 1) * ENTRY), "{bytes:?}");
    assert!(bytes.iter().enumerate().all(|(t, &held)| held <= (2 * t).max(64) * ENTRY), "{bytes:?}");
}

#[test]
fn a_prefill_may_come_in_pieces() {
    let mut sequence = sequence(130, 8);
    let random = &mut Random::new(9);
    (sequence.key_bias, sequence.until) = (Some(key_bias(130, random)), Some(lifetimes(130, random)));
    for mechanism in [exact(), local(16, 3)] {
        if mechanism.about().name == "local" {
            (sequence.key_bias, sequence.until) = (None, None);
        }
        let (mut whole, mut pieces) = (mechanism.start().unwrap(), mechanism.start().unwrap());
        sequence.prefill(&mut whole, 0..120).unwrap();
        for piece in [0..0, 0..1, 1..70, 70..70, 70..120] {
            sequence.prefill(&mut pieces, piece).unwrap();
        }
        assert_eq!((whole.tokens(), pieces.tokens()), (120, 120));
        for t in 120..130 {
            let step = |state: &mut State| sequence.step(state, t, Par::serial()).unwrap();
            assert_eq!(step(&mut whole), step(&mut pieces));
        }
    }
}

#[test]
fn a_copy_of_a_state_goes_its_own_way() {
    let (sequence, other) = (sequence(100, 10), sequence(100, 11));
    for mechanism in [exact(), local(16, 3)] {
        let mut state = mechanism.start().unwrap();
        sequence.prefill(&mut state, 0..60).unwrap();
        let mut branch = state.clone();
        other.step(&mut branch, 60, Par::serial()).unwrap();
        let mut fresh = mechanism.start().unwrap();
        sequence.prefill(&mut fresh, 0..60).unwrap();
        let step = |state: &mut State| sequence.step(state, 60, Par::serial()).unwrap();
        assert_eq!(step(&mut state), step(&mut fresh));
        assert_eq!(branch.tokens(), 61);
    }
}

#[test]
fn steps_have_the_same_bits_on_any_number_of_threads() {
    let sequence = sequence(9000, 12);
    let steps = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
        pool.install(|| sequence.run(&exact(), 8995, Par::default(), |_| ()))
    };
    let bits = |(o, lse): (Vec<f64>, Vec<f64>)| o.into_iter().chain(lse).map(f64::to_bits).collect::<Vec<_>>();
    let one = bits(steps(1));
    assert!(one == bits(steps(2)) && one == bits(steps(3)));
}

#[test]
fn what_cannot_step_is_refused() {
    let refused = Mechanism::Exact(Exact { alignment: Alignment::TopLeft, ..Exact::default() }).start().unwrap_err();
    assert_eq!(refused.to_string(), "steps are aligned bottom_right: alignment=top_left does not step");
}

#[test]
fn tokens_that_do_not_fit_the_state_are_refused() {
    let sequence = sequence(10, 13);
    let mut state = exact().start().unwrap();
    sequence.prefill(&mut state, 0..5).unwrap();
    let (k, v) = (rows(&sequence.heads.k, 5..7), rows(&sequence.heads.v, 5..7));
    let mut refused = |k, v, bias, until| state.prefill(&Tokens { key_bias: bias, until, ..Tokens::new(k, v) }).unwrap_err().to_string();
    assert_eq!(refused(k, rows(&sequence.heads.v, 5..6), None, None), "v has shape [1, 2, 1, 12], expected [1, 2, 2, 12]");
    assert_eq!(refused(k, k, None, None), "heads, Dk, Dv has shape [2, 16, 16], expected [2, 16, 12]");
    assert_eq!(refused(k, v, Some(&[0.0; 3]), None), "key_bias has shape [3], expected [4]");
    assert_eq!(refused(k, v, None, Some(&[0; 5])), "until has shape [5], expected [4]");
    let every = "key_bias and until come with every token of a sequence or with none";
    assert_eq!(refused(k, v, Some(&[0.0; 4]), None), every);
    assert_eq!(refused(k, v, None, Some(&[0; 4])), every);
    assert_eq!(state.tokens(), 5, "what is refused is not taken in");
}

#[test]
fn a_window_refuses_what_it_does_not_read_and_keeps_its_state() {
    let mut sequence = sequence(40, 12);
    let mut state = local(16, 3).start().unwrap();
    sequence.prefill(&mut state, 0..30).unwrap();
    sequence.mask = Some(([1, 1, 40, 40], vec![1; 40 * 40]));
    let refusal = sequence.step(&mut state, 30, Par::serial()).unwrap_err().to_string();
    assert!(refusal.contains("no mask"), "{refusal}");
    assert_eq!(state.tokens(), 30);
}
