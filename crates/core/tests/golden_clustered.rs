//! The golden files of `golden/clustered.py`: choices, the definition and the kernel against clustered attention written a second time,
//! in PyTorch, with gradients by autograd.

mod common;

use common::data::{Tensors, repository};
use common::heads::Tensor;
use common::{Random, levels, values};
use regard_core::mechanism::{Choices, Gradients, Inputs, Mechanism, Pass, Plan, Planned};
use regard_core::oracle::{Defined, Storage};
use regard_core::{Dims, Output, Par, Saved, Sight};
use std::collections::HashMap;

/// One file.
struct Golden {
    name: String,
    file: Tensors,
    mechanism: Mechanism,
    causal: bool,
    pass: Pass,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_o: Tensor,
    x: Option<Tensor>,
    threshold: Option<Vec<f32>>,
    lengths: Option<Vec<usize>>,
}

/// The same numbers in f32; fails where one is not exact in it.
fn narrowed(values: &[f64]) -> Vec<f32> {
    let narrow = |&x: &f64| {
        assert_eq!(f64::from(x as f32), x, "an input is not exact in f32");
        x as f32
    };
    values.iter().map(narrow).collect()
}

impl Golden {
    fn all() -> Vec<Golden> {
        let folder = repository().join("golden/clustered");
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        assert_eq!(paths.len(), 9, "{}", folder.display());
        paths.iter().map(|path| Golden::read(path)).collect()
    }

    fn read(path: &std::path::Path) -> Self {
        let file = Tensors::read(path);
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let mut options = file.options();
        let mut flag = |name| options.remove(name).is_some_and(|value| value == "true");
        let (causal, training) = (flag("causal"), flag("training"));
        let mut mechanism = Mechanism::by_name("clustered").expect("it is listed");
        options.iter().for_each(|(option, value)| mechanism.set(option, value).unwrap_or_else(|error| panic!("{name}: {error}")));
        let floats = |name: &str| Some(Tensor::new(file.floats(name)?.four(), narrowed(&file.floats(name)?.values)));
        let tensor = |name: &str| floats(name).unwrap_or_else(|| panic!("{name} is not there"));
        let hidden = |file: &Tensors| {
            let x = file.floats("x")?;
            Some(Tensor::new([x.shape[0], 1, x.shape[1], x.shape[2]], narrowed(&x.values)))
        };
        Golden {
            mechanism,
            causal,
            pass: Pass { training, ..Pass::default() },
            q: tensor("q"),
            k: tensor("k"),
            v: tensor("v"),
            d_o: tensor("do"),
            x: hidden(&file),
            threshold: file.floats("threshold").map(|threshold| narrowed(&threshold.values)),
            lengths: file.integers("lengths").map(|lengths| lengths.values.iter().map(|&n| n as usize).collect()),
            name,
            file,
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        let sight = if self.causal { Sight::causal() } else { Sight::full() };
        let sight = self.lengths.as_ref().map_or(sight, |lengths| sight.lengths(lengths));
        Inputs {
            x: self.x.as_ref().map(Tensor::view),
            threshold: self.threshold.as_deref(),
            ..Inputs::new(self.q.view(), self.k.view(), self.v.view(), sight)
        }
    }

    fn choose(&self, inputs: &Inputs<'_>, par: Par) -> Choices {
        self.mechanism.choose(inputs, self.pass, par).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn plan<'a>(&'a self, inputs: &Inputs<'a>, choices: &'a Choices) -> Planned<'a> {
        self.mechanism.plan(inputs, choices, self.pass).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn expected(&self, name: &str) -> Vec<f64> {
        self.file.floats(&format!("expected_{name}")).unwrap_or_else(|| panic!("{} has no expected_{name}", self.name)).values
    }

    /// Tensors of results that are numbers.
    fn results(&self) -> Vec<String> {
        let names = self.file.names().into_iter().filter_map(|name| name.strip_prefix("expected_").map(str::to_owned));
        let mut names: Vec<String> = names.filter(|name| !["assignment", "sizes", "representatives"].contains(&name.as_str())).collect();
        names.sort();
        names
    }
}

/// Everything that the kernel computes.
fn run(golden: &Golden, plan: &Planned<'_>, par: Par) -> Vec<(&'static str, Vec<f64>)> {
    let Dims { batch, heads, queries, dv, .. } = plan.dims();
    let mut o = Tensor::unfilled(Storage::F32, [batch, heads, queries, dv]);
    let mut lse = vec![f32::NAN; batch * heads * queries];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap();
    let unfilled = |like: &Tensor| Tensor::unfilled(Storage::F32, like.shape);
    let [mut dq, mut dk, mut dv] = [&golden.q, &golden.k, &golden.v].map(unfilled);
    let has = |name| plan.gradients().contains(&name);
    let mut dx = golden.x.as_ref().filter(|_| has("dx")).map(unfilled);
    let mut dthreshold = golden.threshold.as_ref().filter(|_| has("dthreshold")).map(|threshold| vec![f32::NAN; threshold.len()]);
    let heads = regard_core::Gradients {
        dq: Some(dq.view_mut()),
        dk: Some(dk.view_mut()),
        dv: Some(dv.view_mut()),
        ..regard_core::Gradients::default()
    };
    let mut gradients = Gradients { dx: dx.as_mut().map(Tensor::view_mut), dthreshold: dthreshold.as_deref_mut(), ..heads.into() };
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: golden.d_o.view() }, &mut gradients, par).unwrap();
    let wide = |flat: &[f32]| flat.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let mut all = vec![("o", values(o.view())), ("lse", wide(&lse))];
    all.extend([("dq", values(dq.view())), ("dk", values(dk.view())), ("dv", values(dv.view()))]);
    all.extend(dx.map(|dx| ("dx", values(dx.view()))));
    all.extend(dthreshold.map(|dthreshold| ("dthreshold", wide(&dthreshold))));
    all
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
fn clusters_are_those_of_every_file_at_every_level() {
    for golden in Golden::all() {
        let inputs = golden.inputs();
        for level in levels() {
            let choices = golden.choose(&inputs, Par::default().level(level));
            let traces = golden.plan(&inputs, &choices).traces();
            assert_eq!(traces.len(), 3);
            for trace in traces {
                let expected = golden.file.integers(&format!("expected_{}", trace.name)).expect("it is written");
                assert_eq!((trace.shape, trace.values), (expected.shape, expected.values), "{} of {} at {level}", trace.name, golden.name);
            }
        }
    }
}

#[test]
fn the_definition_agrees_with_every_file() {
    for golden in Golden::all() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let truth = golden.plan(&inputs, &choices).oracle().truth(Some(&values(golden.d_o.view())));
        for Defined { name, values, sizes } in &truth {
            let expected = golden.expected(name);
            near(&format!("{name} of {}", golden.name), values, &expected, |i| 1e-12 * sizes[i].max(expected[i].abs()));
        }
        let mut names: Vec<String> = truth.iter().map(|defined| defined.name.to_owned()).collect();
        names.sort();
        assert_eq!(names, golden.results(), "{}", golden.name);
    }
}

/// The largest error of each tensor that the formula makes in plain f32. A file has few numbers: also with other signs in q, by which
/// nothing is chosen.
fn plain_errors(golden: &Golden, inputs: &Inputs<'_>, choices: &Choices) -> HashMap<&'static str, f64> {
    let (random, d_o) = (&mut Random::new(1), values(golden.d_o.view()));
    let (mut worst, mut q) = (HashMap::new(), golden.q.clone());
    for _ in 0..7 {
        let inputs = Inputs { q: q.view(), ..inputs.clone() };
        let oracle = golden.plan(&inputs, choices).oracle();
        let truth = oracle.truth(Some(&d_o));
        for (plain, truth) in oracle.plain(Some(&d_o), Storage::F32).iter().flat_map(|all| all.iter().zip(&truth)) {
            let errors = plain.values.iter().zip(&truth.values).filter(|(x, y)| x != y).map(|(x, y)| (x - y).abs());
            let worst = worst.entry(truth.name).or_insert(0.0);
            *worst = errors.fold(*worst, f64::max);
        }
        drop(oracle);
        q.floats_mut().iter_mut().for_each(|x| *x *= random.pick(&[-1.0, 1.0]));
    }
    worst
}

/// At most twice the largest error of a plain f32 implementation and 1e-6 of the largest summand.
#[test]
fn the_kernel_keeps_the_budget_on_every_file() {
    let mut worst = 0.0f64;
    for golden in Golden::all() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let plan = golden.plan(&inputs, &choices);
        let (truth, plain) = (plan.oracle().truth(Some(&values(golden.d_o.view()))), plain_errors(&golden, &inputs, &choices));
        for level in levels() {
            let found = run(&golden, &plan, Par::default().level(level));
            assert_eq!(found.len(), truth.len(), "{}", golden.name);
            for (name, found) in found {
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
    for option in ["threshold", "representative", "log_size", "soft", "temperature", "metric", "block", "scale", "training"] {
        assert!(files.iter().any(|golden| golden.file.options().contains_key(option)), "no file with {option}");
    }
    for tensor in ["x", "threshold", "lengths", "expected_dx", "expected_dthreshold"] {
        assert!(files.iter().any(|golden| golden.file.names().contains(&tensor.to_owned())), "no file with {tensor}");
    }
    assert!(files.iter().any(|golden| golden.causal && golden.file.options()["block"] == "16"), "no causal file with a block of 16");
}
