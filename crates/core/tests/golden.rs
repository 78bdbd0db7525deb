//! The golden files of `golden/exact.py`: the definition and the kernel against exact attention written a second time, in
//! PyTorch, with gradients by autograd.

mod common;

use common::data::{Array, Tensors, repository};
use common::heads::run;
use common::{Judge, levels};
use regard_core::oracle::Storage;
use regard_core::{Alignment, Par, Problem, Scores, Sight, Strided, View};
use std::collections::HashMap;

/// One golden file: inputs in the types that the kernel reads, results as they were written.
struct Golden {
    name: String,
    file: Tensors,
    options: HashMap<String, String>,
    tensors: HashMap<&'static str, Array<f32>>,
    mask: Option<Array<u8>>,
    until: Option<Array<i64>>,
    /// `lengths`, `lengths_q`, `offsets_q`, `offsets_k`.
    counts: [Option<Vec<usize>>; 4],
}

impl Golden {
    fn all() -> Vec<Golden> {
        let folder = repository().join("golden/exact");
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        paths.iter().filter(|path| path.extension().is_some_and(|end| end == "safetensors")).map(|path| Golden::read(path)).collect()
    }

    fn read(path: &std::path::Path) -> Self {
        let file = Tensors::read(path);
        let single = |name| Some((name, narrowed(file.floats(name)?)));
        let count = |name| Some(file.integers(name)?.values.iter().map(|&n| n as usize).collect());
        Golden {
            name: path.file_stem().expect("a name").to_string_lossy().into_owned(),
            options: file.options(),
            tensors: ["q", "k", "v", "do", "key_bias", "bias"].into_iter().filter_map(single).collect(),
            mask: file.flags("mask"),
            until: file.integers("until"),
            counts: ["lengths", "lengths_q", "offsets_q", "offsets_k"].map(count),
            file,
        }
    }

    fn option<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        let written = self.options.get(name)?;
        Some(written.parse().unwrap_or_else(|_| panic!("{}: {name} is {written}", self.name)))
    }

    fn is(&self, name: &str) -> bool {
        self.option(name).unwrap_or(false)
    }

    fn view(&self, name: &'static str) -> View<'_> {
        let tensor = &self.tensors[name];
        Strided::contiguous(&tensor.values, tensor.four(), name).unwrap().into()
    }

    fn sight(&self) -> Sight<'_> {
        let mut sight = if self.is("causal") { Sight::causal() } else { Sight::full() };
        sight = sight.window(self.option("window_left"), self.option("window_right")).sinks(self.option("sinks").unwrap_or(0));
        if self.options.get("alignment").is_some_and(|alignment| alignment == "top_left") {
            sight = sight.alignment(Alignment::TopLeft);
        }
        if let Some(until) = &self.until {
            sight = sight.until(&until.values);
        }
        if let Some(mask) = &self.mask {
            sight = sight.mask(Strided::contiguous(&mask.values, mask.four(), "mask").unwrap());
        }
        let [lengths, lengths_q, offsets_q, offsets_k] = &self.counts;
        if let Some(lengths) = lengths {
            sight = sight.lengths(lengths);
        }
        if let Some(lengths) = lengths_q {
            sight = sight.lengths_q(lengths);
        }
        if let Some((queries, keys)) = offsets_q.as_ref().zip(offsets_k.as_ref()) {
            sight = sight.offsets(queries, keys);
        }
        sight
    }

    fn scores(&self) -> Scores<'_> {
        let mut scores = Scores::new();
        if let Some(scale) = self.option("scale") {
            scores = scores.scale(scale);
        }
        if let Some(cap) = self.option("softcap") {
            scores = scores.softcap(cap);
        }
        if self.is("alibi") {
            scores = scores.alibi();
        }
        if let Some(bias) = self.tensors.get("key_bias") {
            scores = scores.key_bias(&bias.values);
        }
        if self.tensors.contains_key("bias") {
            scores = scores.bias(self.view("bias"));
        }
        scores
    }

    fn problem(&self) -> Problem<'_> {
        Problem::new(self.view("q"), self.view("k"), self.view("v"), self.sight(), self.scores())
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn d_o(&self) -> Vec<f64> {
        self.file.floats("do").expect("do").values
    }

    fn expected(&self, name: &str) -> Vec<f64> {
        self.file.floats(&format!("expected_{name}")).unwrap_or_else(|| panic!("{} has no expected_{name}", self.name)).values
    }
}

/// The same numbers in f32; fails where one is not exact in it.
fn narrowed(array: Array<f64>) -> Array<f32> {
    let narrow = |x: f64| {
        assert_eq!(f64::from(x as f32), x, "an input is not exact in f32");
        x as f32
    };
    Array { shape: array.shape, values: array.values.into_iter().map(narrow).collect() }
}

/// Fails unless the values agree to 1e-12 of the largest summand of each, two roundings of f64 being 2e-16 apart.
fn assert_defined(case: &str, name: &str, found: &[f64], expected: &[f64], terms: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{case}: {name}");
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        let term = terms.get(i).map_or(1.0, |term| term.max(y.abs()));
        assert!(x == y || (x - y).abs() <= 1e-12 * term, "{case}: {name}[{i}] is {x:e}, written {y:e}");
    }
}

#[test]
fn the_definition_agrees_with_every_file() {
    for golden in Golden::all() {
        let (definition, case) = (golden.problem().definition(), &golden.name);
        let (forward, gradients) = (definition.forward(), definition.backward(&golden.d_o()));
        let check = |name: &str, found: &[f64], terms: &[f64]| assert_defined(case, name, found, &golden.expected(name), terms);
        check("o", &forward.o, &forward.largest_term_o);
        check("lse", &forward.lse, &[]);
        check("received", &forward.received, &[]);
        check("dq", &gradients.dq, &gradients.largest_term_dq);
        check("dk", &gradients.dk, &gradients.largest_term_dk);
        check("dv", &gradients.dv, &gradients.largest_term_dv);
        if golden.tensors.contains_key("key_bias") {
            check("dkey_bias", &gradients.dkey_bias, &gradients.largest_term_dkey_bias);
        }
        if golden.tensors.contains_key("bias") {
            check("dbias", &gradients.dbias, &gradients.largest_term_dbias);
        }
    }
}

/// The judge of a file, whose truth is what the file says.
fn judge(golden: &Golden) -> Judge {
    let mut judge = Judge::new(golden.problem().definition(), golden.d_o(), Storage::F32);
    let (forward, gradients) = (&mut judge.forward, &mut judge.gradients);
    (forward.o, forward.lse, forward.received) = (golden.expected("o"), golden.expected("lse"), golden.expected("received"));
    (gradients.dq, gradients.dk, gradients.dv) = (golden.expected("dq"), golden.expected("dk"), golden.expected("dv"));
    if golden.tensors.contains_key("key_bias") {
        gradients.dkey_bias = golden.expected("dkey_bias");
    }
    if golden.tensors.contains_key("bias") {
        gradients.dbias = golden.expected("dbias");
    }
    judge
}

#[test]
fn the_kernel_keeps_the_budget_on_every_file() {
    let mut worst = 0.0f64;
    for golden in Golden::all() {
        let (problem, judge) = (golden.problem(), judge(&golden));
        let bias = golden.tensors.get("bias").map(Array::four);
        for level in levels() {
            let outcome = run(&problem, golden.view("do"), bias, Par::default().level(level));
            worst = worst.max(judge.weigh(&outcome, &format!("at {level} in {}", golden.name)));
        }
    }
    println!("worst error/budget {worst:.2}");
}

/// Options and tensors that files may have beside q, k, v, do and results.
const OPTIONS: [&str; 8] = ["causal", "window_left", "window_right", "sinks", "softcap", "alibi", "alignment", "scale"];
const TENSORS: [&str; 8] = ["key_bias", "bias", "mask", "until", "lengths", "lengths_q", "offsets_q", "offsets_k"];

#[test]
fn every_option_and_tensor_has_a_file() {
    let files = Golden::all();
    for option in OPTIONS {
        assert!(files.iter().any(|golden| golden.options.contains_key(option)), "no file with {option}");
    }
    for tensor in TENSORS {
        assert!(files.iter().any(|golden| golden.file.names().contains(&tensor.to_owned())), "no file with {tensor}");
    }
}

#[test]
fn no_file_has_what_these_tests_do_not_read() {
    for golden in Golden::all() {
        let unknown_option = golden.options.keys().find(|name| !OPTIONS.contains(&name.as_str()));
        assert_eq!(unknown_option, None, "{}", golden.name);
        let known = |name: &str| ["q", "k", "v", "do"].contains(&name) || TENSORS.contains(&name) || name.starts_with("expected_");
        let unknown_tensor = golden.file.names().into_iter().find(|name| !known(name));
        assert_eq!(unknown_tensor, None, "{}", golden.name);
    }
}
