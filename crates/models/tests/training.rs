//! Encoders as modules: gradients against finite differences in f64, records, and what cannot be inside.

mod common;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::store::ModuleRecord;
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use common::small;
use regard::reduce::Reducer;
use regard::{Attention, Mechanism};
use regard_models::{Encoder, Folder};
use std::collections::BTreeMap;

const TEXTS: [&[u32]; 3] = [&[2, 5, 8, 10, 15, 5, 7, 3], &[2, 3], &[2, 16, 4, 4, 9, 3]];

fn open(name: &str, device: &Device) -> Encoder {
    Encoder::read(&Folder::open(&small(name)).expect("a folder"), device).expect("an encoder")
}

/// A sum of all hidden states with weights unlike one another.
fn loss(encoder: &Encoder) -> Tensor<2> {
    let x = encoder.forward(&TEXTS).expect("hidden states").tokens.into_x();
    let [tokens, width] = x.dims();
    let weights: Vec<f32> = (0..tokens * width).map(|at| ((at * 7919 % 101) as f32 - 50.0) / 50.0).collect();
    let weights = Tensor::<2>::from_data(TensorData::new(weights, [tokens, width]), &x.device()).cast(x.dtype());
    (x * weights).sum_dim(0).sum_dim(1)
}

/// The parameters by name, or their gradients.
#[derive(Default)]
struct Values<'a> {
    path: Vec<String>,
    gradients: Option<&'a Gradients>,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Values<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let values = match self.gradients {
            Some(gradients) => param.val().grad(gradients).expect("every parameter has a gradient").into_data(),
            None => param.val().into_data(),
        };
        self.found.insert(self.path.join("."), values.iter::<f32>().collect());
    }
}

fn values(encoder: &Encoder, gradients: Option<&Gradients>) -> BTreeMap<String, Vec<f32>> {
    let mut values = Values { gradients, ..Values::default() };
    encoder.visit(&mut values);
    values.found
}

/// Parameters in f64; one number of one of them moved.
struct Moved<'a> {
    path: Vec<String>,
    name: &'a str,
    at: usize,
    by: f64,
}

impl ModuleMapper for Moved<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (moves, at, by) = (self.path.join(".") == self.name, self.at, self.by);
        param.map(|values| {
            let (device, shape) = (values.device(), values.dims());
            let mut wide: Vec<f64> = values.into_data().iter::<f64>().collect();
            if moves {
                wide[at] += by;
            }
            Tensor::from_data(TensorData::new(wide, shape), (&device, DType::F64))
        })
    }
}

/// The fused gradients in f32 of every parameter against central differences of the composite in f64.
fn check_gradients(name: &str, attention: &Attention) {
    let tracked = open(name, &Device::flex().autodiff()).with_attention(attention.clone());
    let gradients = values(&tracked, Some(&loss(&tracked).backward()));
    let plain = open(name, &Device::flex()).with_attention(attention.clone());
    let moved = |name: &str, at: usize, by: f64| {
        let encoder = plain.clone().map(&mut Moved { path: Vec::new(), name, at, by });
        loss(&encoder).into_data().iter::<f64>().next().expect("a number")
    };
    let mut least = f64::INFINITY;
    for (parameter, gradient) in &gradients {
        let largest = gradient.iter().map(|g| f64::from(g.abs())).fold(0.0, f64::max);
        // The largest one is looked at, and two others.
        let peak = gradient.iter().position(|g| f64::from(g.abs()) == largest).expect("it is there");
        for at in [peak, gradient.len() / 3, gradient.len() - 1] {
            let step = 1e-5;
            let difference = (moved(parameter, at, step) - moved(parameter, at, -step)) / (2.0 * step);
            let off = (f64::from(gradient[at]) - difference).abs();
            assert!(off <= 1e-4 * largest.max(0.1), "{name}, {parameter}[{at}]: {} and {difference}", gradient[at]);
        }
        least = least.min(largest);
    }
    assert_eq!(gradients.len(), 4 + 2 * 12, "{:?}", gradients.keys());
    assert!(least > 1e-3, "a parameter has no gradient to speak of: {least}");
}

#[test]
fn gradients_agree_with_finite_differences() {
    for name in ["bert", "roberta", "distilbert"] {
        check_gradients(name, &Attention::full());
    }
    let local = regard::mechanism::Local { window: 2, ..Default::default() };
    check_gradients("bert", &Attention::full().mechanism(local));
}

/// Gradients flow through tokens that leave.
#[test]
fn gradients_flow_through_reducers() {
    let mut prune = Reducer::by_name("prune").expect("it is there");
    prune.set("keep", "0.5").expect("it takes this");
    let encoder = open("bert", &Device::flex().autodiff()).with_reducer(prune);
    let encoded = encoder.forward(&TEXTS).expect("hidden states");
    assert_eq!(encoded.left.len(), 2);
    assert!(encoded.left[0] < 16 && encoded.left[1] <= encoded.left[0], "{:?}", encoded.left);
    let gradients = values(&encoder, Some(&encoded.tokens.into_x().powi_scalar(2).sum().backward()));
    assert!(gradients.values().flatten().all(|g| g.is_finite()));
    assert!(gradients["layers.0.qkv.weight"].iter().any(|g| g.abs() > 1e-4));
}

#[test]
fn an_encoder_is_saved_and_loaded_as_a_record() {
    let device = Device::flex();
    let [bert, half] = ["bert", "bert_bf16"].map(|name| open(name, &device));
    let path = tempfile::tempdir().expect("a folder");
    let path = path.path().join("encoder.bpk");
    bert.clone().into_record().save(&path).expect("it is saved");
    assert_ne!(values(&bert, None), values(&half, None));
    let loaded = half.load_record(ModuleRecord::load(&path).expect("it is read"));
    assert_eq!(values(&bert, None), values(&loaded, None));
    let hidden = |encoder: &Encoder| encoder.forward(&TEXTS).expect("hidden states").tokens.into_x().into_data();
    assert_eq!(hidden(&bert), hidden(&loaded));
    let other = open("distilbert", &device).try_load_record(ModuleRecord::load(&path).expect("it is read"));
    if let Ok(other) = other {
        assert_eq!(values(&other, None).len(), values(&bert, None).len(), "models of one shape share records");
    }
}

#[test]
fn mechanisms_with_parameters_of_their_own_are_refused() {
    let refusal = |name: &str| Encoder::check(&Mechanism::by_name(name).expect("it is there")).expect_err("it does not fit").to_string();
    assert_eq!(refusal("vq"), "vq does not fit into an encoder: it learns codebook, which no checkpoint of an encoder has");
    assert!(refusal("nats").contains("causal only"));
    for name in ["exact", "local", "clustered", "hyper", "linear"] {
        Encoder::check(&Mechanism::by_name(name).expect("it is there")).expect("it fits");
    }
}
