//! Queries, keys and values of real models, which have heads that attend to one token and logits that normal numbers do
//! not have: the kernel against the definition, in one go and step by step.

mod common;

use common::data::{self, Tensors};
use common::heads::{Heads, Tensor};
use common::levels;
use common::sample::Sample;
use common::steps::{Sequence, definition};
use regard_core::mechanism::{Exact, Inputs, Local, Mechanism, Pass};
use regard_core::oracle::Storage;
use regard_core::{Output, Par, Sight};

/// Layers of a sentence encoder, which sees everything, and of a language model, which sees the past.
const ENCODER: [&str; 3] = ["minilm_layer0", "minilm_layer2", "minilm_layer5"];
const LANGUAGE_MODEL: [&str; 3] = ["stories260k_layer0", "stories260k_layer2", "stories260k_layer4"];

/// Rows at the ends, around the edges of tiles, blocks and the window, and every fifth.
fn rows() -> Vec<usize> {
    (0..512).filter(|row| row % 5 == 0 || [0, 1, 15, 63].contains(&(row % 64)) || *row == 511).collect()
}

/// One layer; `None` where the data is not there.
fn layer(name: &str) -> Option<Heads> {
    let file = Tensors::read(&data::file(&format!("captured/{name}.safetensors"))?);
    let tensor = |name| {
        let array = file.floats(name).unwrap_or_else(|| panic!("no {name}"));
        Tensor::new(array.four(), array.values.iter().map(|&x| x as f32).collect())
    };
    Some(Heads::given(["q", "k", "v"].map(tensor)))
}

fn local() -> Mechanism {
    Mechanism::Local(Local { window: 64, sinks: 0, scale: None })
}

fn exact() -> Mechanism {
    Mechanism::Exact(Exact::default())
}

/// Checks the forward pass of all heads at every level; gives the worst error as a share of its budget.
fn verify(name: &str, heads: &Heads, mechanism: &Mechanism, sight: Sight<'_>) -> f64 {
    let inputs = Inputs::new(heads.q.view(), heads.k.view(), heads.v.view(), sight);
    let sample = Sample::new(&definition(mechanism, &inputs), Storage::F32, &rows());
    let check = |level| {
        let mut o = Tensor::unfilled(Storage::F32, heads.d_o.shape);
        let mut lse = vec![f32::NAN; o.shape[1] * o.shape[2]];
        let mut out = Output { o: o.view_mut(), lse: Some(&mut lse) };
        mechanism.forward(&inputs, Pass::default(), &mut out, Par::default().level(level)).unwrap();
        let [o, lse] = [o.floats(), &lse].map(|values| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        sample.check((&o, &lse), &format!("{name}, {mechanism:?} at {level}"))
    };
    levels().map(check).fold(0.0, f64::max)
}

#[test]
fn layers_of_an_encoder() {
    for name in ENCODER {
        let Some(heads) = layer(name) else { return };
        let shares = [exact(), local()].map(|mechanism| verify(name, &heads, &mechanism, Sight::full()));
        println!("{name}: worst error/budget {shares:.2?}");
    }
}

#[test]
fn layers_of_a_language_model() {
    for name in LANGUAGE_MODEL {
        let Some(heads) = layer(name) else { return };
        let shares = [exact(), local()].map(|mechanism| verify(name, &heads, &mechanism, Sight::causal()));
        println!("{name}: worst error/budget {shares:.2?}");
    }
}

#[test]
fn layers_step_by_step() {
    for (name, first) in ENCODER.into_iter().chain(LANGUAGE_MODEL).flat_map(|name| [0, 100].map(|first| (name, first))) {
        let Some(heads) = layer(name) else { return };
        let rows: Vec<usize> = rows().into_iter().filter(|&row| row >= first).collect();
        let sequence = Sequence::new(heads);
        [exact(), local()].iter().for_each(|mechanism| sequence.verify_some(mechanism, first, &rows));
    }
}

#[test]
fn whole_layers_forward_and_backward() {
    for (name, sight) in [("minilm_layer5", Sight::full()), ("stories260k_layer2", Sight::causal())] {
        let Some(heads) = layer(name) else { return };
        heads.verify(&heads.problem(sight, Default::default()), name);
    }
}
