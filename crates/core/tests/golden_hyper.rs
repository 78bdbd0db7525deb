//! The golden files of `golden/hyper.py`: the definition and the kernel against HyperAttention written a second time, dense, in PyTorch,
//! with orders, blocks and draws by its own rules and gradients by autograd.

mod common;

use common::data::{Tensors, repository};
use common::heads::{Tensor, shuffle};
use common::{Random, levels, siblings, values};
use regard_core::mechanism::{Choices, Inputs, Mechanism, Pass, Plan, Planned};
use regard_core::oracle::{Defined, Oracle, Storage};
use regard_core::{Dims, Output, Par, Saved, Sight};
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
    hyperplanes: Option<Tensor>,
    lengths: Option<Vec<usize>>,
    lengths_q: Option<Vec<usize>>,
}

impl Golden {
    fn all() -> Vec<Golden> {
        let folder = repository().join("golden/hyper");
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        assert_eq!(paths.len(), 16, "{}", folder.display());
        paths.iter().map(|path| Golden::read(path)).collect()
    }

    fn read(path: &std::path::Path) -> Self {
        let file = Tensors::read(path);
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let mut options = file.options();
        let causal = options.remove("causal").expect("it is written") == "true";
        let mut mechanism = Mechanism::by_name("hyper").expect("it is listed");
        for (option, value) in options {
            mechanism.set(&option, &value).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let tensor = |name: &str| {
            let array = file.floats(name).unwrap_or_else(|| panic!("{name} is not there"));
            Tensor::new(array.four(), narrowed(&array.values))
        };
        let planes = file.floats("hyperplanes").map(|planes| {
            let [width, bits] = planes.shape.try_into().expect("a matrix");
            Tensor::new([1, 1, width, bits], narrowed(&planes.values))
        });
        let counts = |name| Some(file.integers(name)?.values.iter().map(|&n| n as usize).collect());
        Golden {
            name,
            mechanism,
            causal,
            q: tensor("q"),
            k: tensor("k"),
            v: tensor("v"),
            d_o: tensor("do"),
            hyperplanes: planes,
            lengths: counts("lengths"),
            lengths_q: counts("lengths_q"),
            file,
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        let mut sight = if self.causal { Sight::causal() } else { Sight::full() };
        if let Some(lengths) = &self.lengths {
            sight = sight.lengths(lengths);
        }
        if let Some(lengths) = &self.lengths_q {
            sight = sight.lengths_q(lengths);
        }
        let hyperplanes = self.hyperplanes.as_ref().map(Tensor::view);
        Inputs { hyperplanes, ..Inputs::new(self.q.view(), self.k.view(), self.v.view(), sight) }
    }

    fn choose(&self, inputs: &Inputs<'_>) -> Choices {
        self.mechanism.choose(inputs, Pass::default(), Par::default()).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn plan<'a>(&'a self, inputs: &Inputs<'a>, choices: &'a Choices) -> Planned<'a> {
        self.mechanism.plan(inputs, choices, Pass::default()).unwrap_or_else(|error| panic!("{}: {error}", self.name))
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
    let Dims { batch, heads, queries, dv, .. } = plan.dims();
    let mut o = Tensor::unfilled(Storage::F32, [batch, heads, queries, dv]);
    let mut lse = vec![f32::NAN; batch * heads * queries];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap();
    let [mut dq, mut dk, mut dv] = [&golden.q, &golden.k, &golden.v].map(|x| Tensor::unfilled(Storage::F32, x.shape));
    let parts = regard_core::Gradients {
        dq: Some(dq.view_mut()),
        dk: Some(dk.view_mut()),
        dv: Some(dv.view_mut()),
        ..regard_core::Gradients::default()
    };
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: golden.d_o.view() }, &mut parts.into(), par).unwrap();
    let lse = lse.into_iter().map(f64::from).collect();
    let [o, dq, dk, dv] = [o, dq, dk, dv].map(|tensor| values(tensor.view()));
    vec![("o", o), ("lse", lse), ("dq", dq), ("dk", dk), ("dv", dv)]
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
fn orders_and_buckets_are_those_of_every_file_at_every_level() {
    for golden in Golden::all() {
        let inputs = golden.inputs();
        for level in levels() {
            let choices = golden.mechanism.choose(&inputs, Pass::default(), Par::default().level(level)).unwrap();
            let plan = golden.plan(&inputs, &choices);
            for trace in plan.traces() {
                let expected = golden.file.integers(&format!("expected_{}", trace.name)).expect("it is written");
                assert_eq!((trace.shape, trace.values), (expected.shape, expected.values), "{} at {level} of {}", trace.name, golden.name);
            }
            let pairs = golden.file.integers("expected_pairs").expect("it is written").values;
            assert_eq!(vec![plan.pairs() as i64], pairs, "{}", golden.name);
        }
    }
}

#[test]
fn the_definition_agrees_with_every_file() {
    for golden in Golden::all() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs);
        let truth = golden.plan(&inputs, &choices).oracle().truth(Some(&golden.d_o()));
        assert_eq!(truth.iter().map(|defined| defined.name).collect::<Vec<_>>(), ["o", "lse", "dq", "dk", "dv"]);
        for Defined { name, values, sizes } in &truth {
            let expected = golden.expected(name);
            near(&format!("{name} of {}", golden.name), values, &expected, |i| 1e-12 * sizes[i].max(expected[i].abs()));
        }
    }
}

#[test]
fn single_rows_are_those_of_every_file() {
    for golden in Golden::all() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs);
        let plan = golden.plan(&inputs, &choices);
        let (Dims { batch, heads, queries, dv, .. }, oracle) = (plan.dims(), plan.oracle());
        let (o, lse) = (golden.expected("o"), golden.expected("lse"));
        for head in 0..batch * heads {
            let rows: Vec<usize> = (0..queries).rev().step_by(3).collect();
            for (row, &n) in oracle.rows([head / heads, head % heads], &rows).expect("rows are apart").iter().zip(&rows) {
                let (at, how) = (head * queries + n, format!("row {n} of head {head} of {}", golden.name));
                near(&how, &row.o, &o[at * dv..(at + 1) * dv], |d| 1e-12 * row.largest_term_o[d]);
                near(&how, &[row.lse], &[lse[at]], |_| 1e-12 * lse[at].abs().max(1.0));
            }
        }
    }
}

/// The largest error of each tensor that plain f32 implementations make. A file has few numbers: also with its rows in another order and
/// with other signs.
fn plain_errors(golden: &Golden, oracle: &mut dyn Oracle) -> HashMap<&'static str, f64> {
    let (random, mut worst, mut d_o) = (&mut Random::new(1), HashMap::new(), golden.d_o());
    let widths = [golden.q.shape[3], golden.k.shape[3], golden.v.shape[3]];
    for _ in 0..=siblings(golden.q.shape[2] * golden.k.shape[2]) {
        let truth = oracle.truth(Some(&d_o));
        for (plain, truth) in oracle.plain(Some(&d_o), Storage::F32).iter().flat_map(|all| all.iter().zip(&truth)) {
            let errors = plain.values.iter().zip(&truth.values).filter(|(x, y)| x != y).map(|(x, y)| (x - y).abs());
            let worst = worst.entry(truth.name).or_insert(0.0);
            *worst = errors.fold(*worst, f64::max);
        }
        oracle.leaves().into_iter().zip(widths).for_each(|((_, leaf), width)| shuffle(random, leaf, width));
        shuffle(random, &mut d_o, widths[2]);
    }
    worst
}

/// At most twice the largest error of a plain f32 implementation and 1e-6 of the largest summand.
#[test]
fn the_kernel_keeps_the_budget_on_every_file() {
    let mut worst = 0.0f64;
    for golden in Golden::all() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs);
        let plan = golden.plan(&inputs, &choices);
        let truth = plan.oracle().truth(Some(&golden.d_o()));
        let plain = plain_errors(&golden, plan.oracle().as_mut());
        for level in levels() {
            for ((name, found), defined) in run(&golden, &plan, Par::default().level(level)).into_iter().zip(&truth) {
                assert_eq!(name, defined.name);
                let how = format!("{name} at {level} in {}", golden.name);
                let share = near(&how, &found, &golden.expected(name), |i| 2.0 * plain[name] + 1e-6 * defined.sizes[i]);
                worst = worst.max(share);
            }
        }
    }
    println!("worst error/budget {worst:.2}");
}

#[test]
fn every_option_and_tensor_has_a_file() {
    let files = Golden::all();
    for option in ["bits", "block", "samples", "min_len", "by_norm", "scale"] {
        assert!(files.iter().any(|golden| golden.file.options().contains_key(option)), "no file with {option}");
    }
    for tensor in ["hyperplanes", "lengths", "lengths_q"] {
        assert!(files.iter().any(|golden| golden.file.names().contains(&tensor.to_owned())), "no file with {tensor}");
    }
}
