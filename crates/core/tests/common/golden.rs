//! Golden files of mechanisms: inputs as kernels read them, results as they were written, in f64.

use super::data::{Tensors, repository};
use super::heads::Tensor;
use super::values;
use regard_core::mechanism::{Causality, Choices, Inputs, Mechanism, Pass, Plan as _, Planned};
use regard_core::oracle::{Oracle, Storage};
use regard_core::{Par, Sight};
use std::collections::HashMap;
use std::path::Path;

/// One file.
pub struct Golden {
    pub name: String,
    pub file: Tensors,
    pub mechanism: Mechanism,
    pub causal: bool,
    pub pass: Pass,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub d_o: Tensor,
    pub x: Option<Tensor>,
    pub types: Option<Vec<i64>>,
    pub type_logits: Option<Vec<f32>>,
    pub threshold: Option<Vec<f32>>,
    pub gates: Option<Tensor>,
    pub codebook: Option<Tensor>,
    pub codebook_q: Option<Tensor>,
    pub hyperplanes: Option<Tensor>,
    pub lengths: Option<Vec<usize>>,
    pub lengths_q: Option<Vec<usize>>,
    pub offsets: Option<Vec<usize>>,
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
    /// Every file of a folder, of which there are so many; a file that names no mechanism is of the one that `of` says.
    pub fn all(folder: &str, count: usize, of: fn(&Tensors) -> &'static str) -> Vec<Self> {
        let folder = repository().join("golden").join(folder);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        assert_eq!(paths.len(), count, "{}", folder.display());
        paths.iter().map(|path| Golden::read(path, of)).collect()
    }

    fn read(path: &Path, of: fn(&Tensors) -> &'static str) -> Self {
        let file = Tensors::read(path);
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let mut options = file.options();
        let mechanism = options.remove("mechanism").unwrap_or_else(|| of(&file).to_owned());
        let mut mechanism = Mechanism::by_name(&mechanism).expect("it is listed");
        let mut flag = |name| options.remove(name).is_some_and(|value| value == "true");
        let (causal, training) = (flag("causal"), flag("training"));
        for (option, value) in options {
            mechanism.set(&option, &value).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        // With leading ones it has four dimensions.
        let tensor = |name: &str| {
            let array = file.floats(name)?;
            let shape = [vec![1; 4 - array.shape.len()], array.shape.clone()].concat();
            Some(Tensor::new(shape.try_into().expect("four dimensions"), narrowed(&array.values)))
        };
        let [q, k, v, d_o] = ["q", "k", "v", "do"].map(|name| tensor(name).unwrap_or_else(|| panic!("{name} is not there")));
        let flat = |name: &str| file.floats(name).map(|array| narrowed(&array.values));
        let counts = |name| Some(file.integers(name)?.values.iter().map(|&n| n as usize).collect());
        let hidden = |x: super::data::Array<f64>| Tensor::new([x.shape[0], 1, x.shape[1], x.shape[2]], narrowed(&x.values));
        Golden {
            causal: causal || mechanism.about().causality == Causality::Required,
            pass: Pass { training, ..Pass::default() },
            x: file.floats("x").map(hidden),
            types: file.integers("types").map(|types| types.values),
            type_logits: flat("type_logits"),
            threshold: flat("threshold"),
            gates: tensor("gates"),
            codebook: tensor("codebook"),
            codebook_q: tensor("codebook_q"),
            hyperplanes: tensor("hyperplanes"),
            lengths: counts("lengths"),
            lengths_q: counts("lengths_q"),
            offsets: counts("offsets_k"),
            q,
            k,
            v,
            d_o,
            name,
            mechanism,
            file,
        }
    }

    pub fn inputs(&self) -> Inputs<'_> {
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
        Inputs {
            x: self.x.as_ref().map(Tensor::view),
            types: self.types.as_deref(),
            type_logits: self.type_logits.as_deref(),
            threshold: self.threshold.as_deref(),
            gates: self.gates.as_ref().map(Tensor::view),
            codebook: self.codebook.as_ref().map(Tensor::view),
            codebook_q: self.codebook_q.as_ref().map(Tensor::view),
            hyperplanes: self.hyperplanes.as_ref().map(Tensor::view),
            ..Inputs::new(self.q.view(), self.k.view(), self.v.view(), sight)
        }
    }

    pub fn choose(&self, inputs: &Inputs<'_>, par: Par) -> Choices {
        self.mechanism.choose(inputs, self.pass, par).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    pub fn plan<'a>(&'a self, inputs: &Inputs<'a>, choices: &'a Choices) -> Planned<'a> {
        self.mechanism.plan(inputs, choices, self.pass).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    pub fn d_o(&self) -> Vec<f64> {
        values(self.d_o.view())
    }

    pub fn expected(&self, name: &str) -> Vec<f64> {
        self.file.floats(&format!("expected_{name}")).unwrap_or_else(|| panic!("{} has no expected_{name}", self.name)).values
    }

    /// Fails where what was chosen is not what was written.
    pub fn check_traces(&self, plan: &Planned<'_>, how: &str) {
        for trace in plan.traces() {
            let expected = self.file.integers(&format!("expected_{}", trace.name)).expect("it is written");
            assert_eq!((trace.shape, trace.values), (expected.shape, expected.values), "{} of {} {how}", trace.name, self.name);
        }
    }
}

/// Fails where a value is further from the written one than its budget; gives the worst share of it.
pub fn near(how: &str, found: &[f64], expected: &[f64], budget: impl Fn(usize) -> f64) -> f64 {
    assert_eq!(found.len(), expected.len(), "{how}");
    let differ = found.iter().zip(expected).enumerate().filter(|(_, (x, y))| x != y);
    let share = |(i, (x, y)): (usize, (&f64, &f64))| {
        let share = (x - y).abs() / budget(i);
        assert!(share <= 1.0, "{how}[{i}] is {x:e}, written {y:e}, {share:.2} of the budget");
        share
    };
    differ.map(share).fold(0.0, f64::max)
}

/// The largest error of each tensor that plain f32 implementations of a definition make, where it is above what was seen before.
pub fn add_errors(worst: &mut HashMap<&'static str, f64>, oracle: &dyn Oracle, d_o: &[f64]) {
    let truth = oracle.truth(Some(d_o));
    for (plain, truth) in oracle.plain(Some(d_o), Storage::F32).iter().flat_map(|all| all.iter().zip(&truth)) {
        let errors = plain.values.iter().zip(&truth.values).filter(|(x, y)| x != y).map(|(x, y)| (x - y).abs());
        let worst = worst.entry(truth.name).or_insert(0.0);
        *worst = errors.fold(*worst, f64::max);
    }
}
