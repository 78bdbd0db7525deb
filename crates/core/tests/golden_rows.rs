//! The golden files of `golden/rows.py`: the definitions of row operations against PyTorch's own in float64, with gradients by
//! autograd; and the frequencies and turns of every rotary scaling against the papers' formulas. That kernels keep to the
//! definitions is `rows.rs`.

mod common;
mod definitions;

use common::data::{Tensors, repository};
use common::levels;
use definitions::{Array, Define};
use regard_core::rows::{Activation, Labels, Matrix, Pairing, Rotary, Scaling, Turns, Yarn, cross_entropy};
use regard_core::{Par, Strided, StridedMut};
use std::collections::HashMap;

struct Golden(Tensors);

impl Golden {
    fn read(name: &str) -> Self {
        Golden(Tensors::read(&repository().join(format!("golden/rows/{name}.safetensors"))))
    }

    /// A tensor as a matrix of rows of its last dimension.
    fn get(&self, name: &str) -> Array<f64> {
        let tensor = self.0.floats(name).unwrap_or_else(|| panic!("{name} is not there"));
        let columns = *tensor.shape.last().expect("a dimension");
        Array::new([tensor.values.len() / columns, columns], tensor.values)
    }

    /// Checks what a definition says of inputs of the file.
    #[track_caller]
    fn defines(&self, definition: &impl Define, inputs: &[&str], outputs: &[&str]) {
        let inputs: Vec<Array<f64>> = inputs.iter().map(|name| self.get(name)).collect();
        for (found, name) in definition.define(&inputs).iter().zip(outputs) {
            self.near(&found.values, name, 1e-12);
        }
    }

    #[track_caller]
    fn near(&self, found: &[f64], name: &str, tolerance: f64) {
        let expected = self.get(name).values;
        assert_eq!(found.len(), expected.len(), "{name}");
        for (at, (x, y)) in found.iter().zip(&expected).enumerate() {
            assert!(x == y || (x - y).abs() <= tolerance * (1.0 + y.abs()), "{name}[{at}] is {x:e}, expected {y:e}");
        }
    }
}

#[test]
fn activations_are_pytorchs() {
    let file = Golden::read("activations");
    for f in Activation::ALL {
        file.defines(&definitions::Activate(f), &["x"], &[&format!("expected_{}", f.name())]);
        file.defines(&definitions::ActivateBack(f), &["x", "dy"], &[&format!("expected_d{}", f.name())]);
    }
    let file = Golden::read("swiglu");
    file.defines(&definitions::Swiglu, &["gate", "up"], &["expected_y"]);
    file.defines(&definitions::SwigluBack, &["gate", "up", "dy"], &["expected_dgate", "expected_dup"]);
}

#[test]
fn softmax_is_pytorchs() {
    let file = Golden::read("softmax");
    for (log, y, dx) in [(false, "expected_y", "expected_dx"), (true, "expected_log", "expected_dlog")] {
        file.defines(&definitions::Softmax { log }, &["x"], &[y]);
        file.defines(&definitions::SoftmaxBack { log }, &[y, "dy"], &[dx]);
    }
}

#[test]
fn cross_entropy_is_pytorchs() {
    let file = Golden::read("loss");
    let x: Vec<f32> = file.get("x").values.iter().map(|x| *x as f32).collect();
    let labels = file.0.integers("labels").expect("labels").values;
    let shape = file.get("x").shape;
    let logits = Matrix::new(&x, shape, "x").unwrap();
    for (prefix, smoothing) in [("", 0.0), ("smooth_", 0.1)] {
        for level in levels() {
            let par = Par::default().level(level);
            let labels = Labels::new(&labels).smoothing(smoothing);
            let (mut lse, mut dx) = (vec![f32::NAN; shape[0]], vec![f32::NAN; x.len()]);
            let loss = cross_entropy::forward(&logits, &labels, &mut lse, par).unwrap();
            file.near(&[loss.into()], &format!("{prefix}expected_loss"), 2e-7);
            file.near(&lse.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), "expected_lse", 2e-7);
            let mut out = regard_core::rows::MatrixMut::new(&mut dx, shape, "dx").unwrap();
            cross_entropy::backward(&logits, &labels, (&lse, 1.0), &mut out, par).unwrap();
            file.near(&dx.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), &format!("{prefix}expected_dx"), 3e-7);
        }
    }
}

#[test]
fn norms_are_pytorchs() {
    let file = Golden::read("norms");
    for (name, centred) in [("layer", true), ("rms", false)] {
        let norm = definitions::Norm { centred };
        file.defines(&norm, &["expected_sum", "weight", "bias"], &[&format!("expected_{name}_y")]);
        let outputs = ["dx", "dweight", "dbias"].map(|what| format!("expected_{name}_{what}"));
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).take(if centred { 3 } else { 2 }).collect();
        file.defines(&definitions::NormBack(norm), &["expected_sum", "dy", "dsum", "weight", "bias"], &outputs);
    }
}

#[test]
fn linear_maps_are_pytorchs() {
    let file = Golden::read("linear");
    for activation in Activation::ALL {
        let name = format!("expected_{}", activation.name());
        let linear = definitions::Linear { activation, outputs: 26, transposed: false };
        let z = format!("{name}_z");
        file.defines(&linear, &["x", "weight", "bias"], &[&name, &z]);
        let outputs = ["dx", "dweight", "dbias"].map(|what| format!("{name}_{what}"));
        file.defines(&definitions::LinearBack(linear), &["x", "weight", "dy", &z], &outputs.each_ref().map(String::as_str));
    }
}

#[test]
fn embeddings_are_pytorchs() {
    let file = Golden::read("embedding");
    let narrow = |name| -> Vec<f32> { file.get(name).values.iter().map(|x| *x as f32).collect() };
    let ids = file.0.integers("ids").expect("ids").values;
    let (table, dy) = (narrow("table"), narrow("dy"));
    let (mut y, mut dtable) = (vec![f32::NAN; 8 * 21], vec![f32::NAN; 11 * 21]);
    let matrix = |x, rows| Matrix::new(x, [rows, 21], "input").unwrap();
    let mut out = regard_core::rows::MatrixMut::new(&mut y, [8, 21], "y").unwrap();
    regard_core::rows::embedding::forward(&matrix(&table, 11), &ids, &mut out, Par::default()).unwrap();
    let mut out = regard_core::rows::MatrixMut::new(&mut dtable, [11, 21], "dtable").unwrap();
    regard_core::rows::embedding::backward(&ids, &matrix(&dy, 8), &mut out, Par::default()).unwrap();
    file.near(&y.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), "expected_y", 0.0);
    file.near(&dtable.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), "expected_dtable", 2e-7);
}

/// The rotary embedding that a file's options describe.
fn rotary(options: &HashMap<String, String>) -> Rotary {
    let number = |name: &str| options.get(name).map(|text| text.parse::<f64>().expect("a number"));
    let need = |name: &str| number(name).unwrap_or_else(|| panic!("{name} is not there"));
    let trained = || need("trained") as usize;
    let scaling = match options["scaling"].as_str() {
        "none" => Scaling::None,
        "linear" => Scaling::Linear { factor: need("factor") },
        "ntk" => Scaling::Ntk { alpha: need("alpha") },
        "dynamic_ntk" => Scaling::DynamicNtk { factor: need("factor"), trained: trained() },
        "yarn" => Scaling::Yarn(Yarn { attention_factor: number("attention_factor"), ..Yarn::new(need("factor"), trained()) }),
        "llama3" => Scaling::Llama3 { factor: need("factor"), low: need("low"), high: need("high"), trained: trained() },
        other => panic!("unknown scaling {other}"),
    };
    let pairing = if options.contains_key("interleaved") { Pairing::Interleaved } else { Pairing::Halves };
    Rotary { dims: number("dims").unwrap_or(32.0) as usize, base: number("base").unwrap_or(1e4), pairing, scaling }
}

#[test]
fn every_rotary_scaling_is_its_papers() {
    let names = [
        "plain",
        "interleaved",
        "partial",
        "partial_interleaved",
        "linear",
        "ntk",
        "dynamic_ntk",
        "dynamic_ntk_short",
        "yarn",
        "yarn_factor",
        "llama3",
    ];
    for name in names {
        let file = Golden::read(&format!("rotary_{name}"));
        let rotary = rotary(&file.0.options());
        let positions = file.0.integers("positions").expect("positions").values;
        for (found, expected) in rotary.frequencies(1_000_000).unwrap().inverse.iter().zip(file.get("expected_frequencies").values) {
            assert!((found / expected - 1.0).abs() < 1e-12, "{name}: {found:e} {expected:e}");
        }
        // Tokens [6, 3, 32] as [1, 3, 6, 32].
        let (shape, strides) = ([1, 3, 6, 32], [576, 32, 96, 1]);
        for level in levels() {
            let par = Par::default().level(level);
            let turns = Turns::new(&rotary, &positions, par).unwrap();
            for (input, output, back) in [("x", "expected_y", false), ("dy", "expected_dx", true)] {
                let x: Vec<f32> = file.get(input).values.iter().map(|x| *x as f32).collect();
                let mut y = vec![f32::NAN; x.len()];
                let from = Strided::new(&x, 0, shape, strides.map(|s| s as isize), "x").unwrap();
                let mut into = StridedMut::new(&mut y, shape, strides, "y").unwrap();
                if back { turns.backward(&from, &mut into, par) } else { turns.forward(&from, &mut into, par) }.unwrap();
                file.near(&y.iter().map(|y| f64::from(*y)).collect::<Vec<_>>(), output, 3e-7);
            }
        }
    }
}
