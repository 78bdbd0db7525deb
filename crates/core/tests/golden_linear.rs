//! The golden files of `golden/linear.py`: the definitions and the kernel against linear and gated linear attention written a second
//! time in PyTorch, with gradients by autograd.

mod common;

use common::data::{Tensors, repository};
use common::heads::Tensor;
use common::{Random, levels, values};
use regard_core::mechanism::{Choices, Gradients, Inputs, Mechanism, Pass, Plan, Planned};
use regard_core::oracle::{Oracle, Storage};
use regard_core::{Output, Par, Saved, Sight};
use std::collections::HashMap;

/// One golden file: inputs as the kernel reads them, results as they were written.
struct Golden {
    name: String,
    file: Tensors,
    mechanism: Mechanism,
    causal: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_o: Tensor,
    gates: Option<Tensor>,
    lengths: Option<Vec<usize>>,
    lengths_q: Option<Vec<usize>>,
    offsets: Option<Vec<usize>>,
}

impl Golden {
    fn all() -> Vec<Golden> {
        let folder = repository().join("golden/linear");
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        assert_eq!(paths.len(), 20, "{}", folder.display());
        paths.iter().map(|path| Golden::read(path)).collect()
    }

    fn read(path: &std::path::Path) -> Self {
        let file = Tensors::read(path);
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let tensor = |name: &str| file.floats(name).map(|array| Tensor::new(array.four(), narrowed(&array.values)));
        let given = |name: &str| tensor(name).unwrap_or_else(|| panic!("{name} is not there"));
        let counts = |name| Some(file.integers(name)?.values.iter().map(|&n| n as usize).collect());
        let gates = tensor("gates");
        let mut mechanism = Mechanism::by_name(if gates.is_some() { "gated_linear" } else { "linear" }).expect("it is listed");
        let mut options = file.options();
        let causal = options.remove("causal").expect("it is always there") == "true";
        for (option, value) in options {
            mechanism.set(&option, &value).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let [q, k, v, d_o] = ["q", "k", "v", "do"].map(given);
        let [lengths, lengths_q, offsets] = ["lengths", "lengths_q", "offsets_k"].map(counts);
        Golden { name, mechanism, causal, q, k, v, d_o, gates, lengths, lengths_q, offsets, file }
    }

    fn inputs(&self) -> Inputs<'_> {
        let mut sight = if self.causal { Sight::causal() } else { Sight::full() };
        if let Some(lengths) = &self.lengths {
            sight = sight.lengths(lengths);
        }
        if let Some(lengths) = &self.lengths_q {
            sight = sight.lengths_q(lengths);
        }
        if let Some(offsets) = &self.offsets {
            sight = sight.offsets(offsets, offsets);
        }
        let gates = self.gates.as_ref().map(Tensor::view);
        Inputs { gates, ..Inputs::new(self.q.view(), self.k.view(), self.v.view(), sight) }
    }

    fn plan<'a>(&'a self, choices: &'a Choices) -> Planned<'a> {
        self.mechanism.plan(&self.inputs(), choices, Pass::default()).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn choose(&self) -> Choices {
        self.mechanism.choose(&self.inputs(), Pass::default(), Par::default()).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn d_o(&self) -> Vec<f64> {
        values(self.d_o.view())
    }

    fn expected(&self, name: &str) -> Vec<f64> {
        self.file.floats(&format!("expected_{name}")).unwrap_or_else(|| panic!("{} has no expected_{name}", self.name)).values
    }
}

/// The same numbers in f32; fails where one is not exact in it.
fn narrowed(values: &[f64]) -> Vec<f32> {
    let narrow = |&x: &f64| {
        assert_eq!(f64::from(x as f32), x, "an input is not exact in f32");
        x as f32
    };
    values.iter().map(narrow).collect()
}

/// Everything that the kernel computes.
fn run(golden: &Golden, plan: &Planned<'_>, par: Par) -> Vec<(&'static str, Vec<f64>)> {
    let [batch, heads, queries, _] = golden.q.shape;
    let mut o = Tensor::unfilled(Storage::F32, golden.d_o.shape);
    plan.forward(&mut Output { o: o.view_mut(), lse: None }, par).unwrap();
    let [mut dq, mut dk, mut dv] = [&golden.q, &golden.k, &golden.v].map(|x| Tensor::unfilled(Storage::F32, x.shape));
    let mut dgates = golden.gates.as_ref().map(|gates| Tensor::unfilled(Storage::F32, gates.shape));
    let parts = regard_core::Gradients {
        dq: Some(dq.view_mut()),
        dk: Some(dk.view_mut()),
        dv: Some(dv.view_mut()),
        ..regard_core::Gradients::default()
    };
    let mut gradients = Gradients { dgates: dgates.as_mut().map(Tensor::view_mut), ..parts.into() };
    let lse = vec![f32::NAN; batch * heads * queries];
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: golden.d_o.view() }, &mut gradients, par).unwrap();
    let all = [("o", Some(o)), ("dq", Some(dq)), ("dk", Some(dk)), ("dv", Some(dv)), ("dgates", dgates)];
    all.into_iter().filter_map(|(name, tensor)| Some((name, values(tensor?.view())))).collect()
}

/// Fails where a value is further from the written one than its budget; gives the worst share of it.
fn near(how: &str, found: &[f64], expected: &[f64], budget: impl Fn(usize) -> f64) -> f64 {
    assert_eq!(found.len(), expected.len(), "{how}");
    let differ = found.iter().zip(expected).enumerate().filter(|(_, (x, y))| x != y);
    let share = |(i, (x, y)): (usize, (&f64, &f64))| {
        let share = (x - y).abs() / budget(i);
        assert!(share <= 1.0, "{how}[{i}] is {x:e}, written {y:e}, {share:.2} of the budget");
        share
    };
    differ.map(share).fold(0.0, f64::max)
}

#[test]
fn the_definitions_agree_with_every_file() {
    for golden in Golden::all() {
        let choices = golden.choose();
        let truth = golden.plan(&choices).oracle().truth(Some(&golden.d_o()));
        for defined in &truth {
            let (name, expected) = (defined.name, golden.expected(defined.name));
            let budget = |i: usize| 1e-12 * defined.sizes[i].max(expected[i].abs());
            near(&format!("{name} of {}", golden.name), &defined.values, &expected, budget);
        }
        let written = golden.file.names().iter().filter(|name| name.starts_with("expected_")).count();
        assert_eq!(truth.len(), written, "{}", golden.name);
    }
}

/// The largest error of each tensor that the plain f32 implementation makes, on the file and, as that has few numbers, with other signs
/// in its values and in the gradient of its output.
fn plain_errors(golden: &Golden, mut oracle: Box<dyn Oracle>) -> HashMap<&'static str, f64> {
    let (random, mut d_o) = (&mut Random::new(1), golden.d_o());
    let mut worst = HashMap::new();
    for _ in 0..6 {
        let (truth, plain) = (oracle.truth(Some(&d_o)), oracle.plain(Some(&d_o), Storage::F32));
        for (plain, truth) in plain.iter().flat_map(|all| all.iter().zip(&truth)) {
            let errors = plain.values.iter().zip(&truth.values).map(|(x, y)| (x - y).abs());
            let worst = worst.entry(truth.name).or_insert(0.0);
            *worst = errors.fold(*worst, f64::max);
        }
        let mut leaves = oracle.leaves();
        let v = &mut leaves.iter_mut().find(|(name, _)| *name == "v").expect("it is a leaf").1;
        v.iter_mut().chain(&mut d_o).for_each(|x| *x *= random.pick(&[-1.0, 1.0]));
    }
    worst
}

#[test]
fn the_kernel_keeps_the_budget_on_every_file() {
    let mut worst = 0.0f64;
    for golden in Golden::all() {
        let choices = golden.choose();
        let plan = golden.plan(&choices);
        let (truth, plain) = (plan.oracle().truth(Some(&golden.d_o())), plain_errors(&golden, plan.oracle()));
        for level in levels() {
            for (name, found) in run(&golden, &plan, Par::default().level(level)) {
                let (expected, how) = (golden.expected(name), format!("{name} at {level} in {}", golden.name));
                let defined = truth.iter().find(|defined| defined.name == name).expect("it is defined");
                worst = worst.max(near(&how, &found, &expected, |i| 2.0 * plain[name] + 1e-6 * defined.sizes[i]));
            }
        }
    }
    println!("worst error/budget {worst:.2}");
}

#[test]
fn every_option_and_tensor_has_a_file() {
    let files = Golden::all();
    for option in ["feature_map", "eps", "normalize", "window", "scale"] {
        assert!(files.iter().any(|golden| golden.file.options().contains_key(option)), "no file with {option}");
    }
    for tensor in ["gates", "lengths", "lengths_q", "offsets_q", "offsets_k", "expected_dgates"] {
        assert!(files.iter().any(|golden| golden.file.names().contains(&tensor.to_owned())), "no file with {tensor}");
    }
}
