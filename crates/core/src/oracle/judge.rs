//! What every definition can tell a judge: values, gradients, and how far an honest plain implementation is off.

use super::tape::{self, Var};
use super::{Definition, ForwardRow, Gradients, Real, Storage, Weights, plain};

/// A tensor as it is defined.
#[derive(Clone, Debug)]
pub struct Defined {
    /// `o`, `lse`, or `d` and the name of a leaf.
    pub name: &'static str,
    /// Row-major.
    pub values: Vec<f64>,
    /// The largest absolute summand of each value.
    pub sizes: Vec<f64>,
}

/// The definition of one call, its choices made.
pub trait Oracle: Send + Sync {
    /// The numbers it is a function of, by name.
    fn leaves(&mut self) -> Vec<(&'static str, &mut Vec<f64>)>;

    /// `o`, then `lse` where there is one, then for `d_o [B, H, N, Dv]` the gradients by every leaf, in f64.
    fn truth(&self, d_o: Option<&[f64]>) -> Vec<Defined>;

    /// The same tensors by plain implementations in f32 whose results are rounded to a storage type.
    fn plain(&self, d_o: Option<&[f64]>, storage: Storage) -> Vec<Vec<Defined>>;

    /// The attention that every key received, `[B, H, M]`, where the mechanism has it.
    fn received(&self) -> Option<Vec<f64>> {
        None
    }

    /// Takes a number among the options, `scale` or `softcap`, more precisely than in f32.
    fn refine(&mut self, option: &str, value: f64) {
        let _ = (option, value);
    }

    /// Some rows of head `[b, h]` of a large call; none where rows cannot be had one by one.
    fn rows(&self, head: [usize; 2], rows: &[usize]) -> Option<Vec<ForwardRow>>;
}

fn lse(values: Vec<f64>) -> Defined {
    let sizes = values.iter().map(|x| x.abs().max(1.0)).collect();
    Defined { name: "lse", values, sizes }
}

impl Definition {
    fn defined(&self, forward: super::Forward, gradients: Option<Gradients>) -> Vec<Defined> {
        let mut all = vec![Defined { name: "o", values: forward.o, sizes: forward.largest_term_o }, lse(forward.lse)];
        let Some(found) = gradients else { return all };
        let gradient = |name, values, sizes| Defined { name, values, sizes };
        all.push(gradient("dq", found.dq, found.largest_term_dq));
        all.push(gradient("dk", found.dk, found.largest_term_dk));
        all.push(gradient("dv", found.dv, found.largest_term_dv));
        if self.key_bias.is_some() {
            all.push(gradient("dkey_bias", found.dkey_bias, found.largest_term_dkey_bias));
        }
        if self.bias.is_some() {
            all.push(gradient("dbias", found.dbias, found.largest_term_dbias));
        }
        all
    }
}

impl Oracle for Definition {
    fn leaves(&mut self) -> Vec<(&'static str, &mut Vec<f64>)> {
        let mut all = vec![("q", &mut self.q), ("k", &mut self.k), ("v", &mut self.v)];
        all.extend(self.key_bias.as_mut().map(|bias| ("key_bias", bias)));
        all.extend(self.bias.as_mut().map(|bias| ("bias", &mut bias.values)));
        all
    }

    fn truth(&self, d_o: Option<&[f64]>) -> Vec<Defined> {
        self.defined(self.forward(), d_o.map(|d_o| self.backward(d_o)))
    }

    fn plain(&self, d_o: Option<&[f64]>, storage: Storage) -> Vec<Vec<Defined>> {
        let by = |weights| {
            let (forward, gradients) = plain(self, d_o, storage, weights);
            self.defined(forward, gradients)
        };
        vec![by(Weights::Normalised), by(Weights::FromLse)]
    }

    fn received(&self) -> Option<Vec<f64>> {
        Some(self.forward().received)
    }

    fn refine(&mut self, option: &str, value: f64) {
        match option {
            "scale" => self.scale = Some(value),
            "softcap" => self.softcap = Some(value),
            _ => {}
        }
    }

    fn rows(&self, [b, h]: [usize; 2], rows: &[usize]) -> Option<Vec<ForwardRow>> {
        Some(self.forward_rows(b, h, rows))
    }
}

/// A definition as a formula over leaves, whose gradients follow from it.
pub trait Formula: Clone + Send + Sync {
    /// `o [B, H, N, Dv]`, and `lse [B, H, N]` where there is one.
    fn evaluate<T: Real>(&self, leaves: &Leaves<T>) -> (Vec<T>, Option<Vec<T>>);

    /// The same with weights as exp(s - lse), which is how a backward pass has them from what was saved, where it has that form: the error
    /// of a plain implementation is the larger one.
    fn by_lse(&self) -> Option<Self> {
        None
    }

    /// See [`Oracle::received`].
    fn received(&self, leaves: &Leaves<f64>) -> Option<Vec<f64>> {
        let _ = leaves;
        None
    }

    /// See [`Oracle::refine`].
    fn refine(&mut self, option: &str, value: f64) {
        let _ = (option, value);
    }

    /// Some rows of a head, if they can be had one by one.
    fn rows(&self, leaves: &Leaves<f64>, head: [usize; 2], rows: &[usize]) -> Option<Vec<ForwardRow>> {
        let _ = (leaves, head, rows);
        None
    }
}

/// Leaves by name.
#[derive(Clone, Debug)]
pub struct Leaves<T> {
    names: Vec<&'static str>,
    values: Vec<Vec<T>>,
}

impl<T> Leaves<T> {
    /// The values of a leaf. Panics if there is none of that name.
    pub fn get(&self, name: &str) -> &[T] {
        self.find(name).unwrap_or_else(|| panic!("{name} is no leaf"))
    }

    /// The values of a leaf that may be absent.
    pub fn find(&self, name: &str) -> Option<&[T]> {
        let at = self.names.iter().position(|leaf| *leaf == name)?;
        Some(&self.values[at])
    }
}

/// A [`Formula`] and its leaves.
#[derive(Clone, Debug)]
pub struct Judged<F> {
    formula: F,
    leaves: Leaves<f64>,
}

impl<F: Formula> Judged<F> {
    /// Of these leaves.
    pub fn new(formula: F, leaves: Vec<(&'static str, Vec<f64>)>) -> Self {
        let (names, values) = leaves.into_iter().unzip();
        Judged { formula, leaves: Leaves { names, values } }
    }

    fn run<const SINGLE: bool>(&self, formula: &F, d_o: Option<&[f64]>, storage: Storage) -> Vec<Defined> {
        let names = self.leaves.names.clone();
        let leaves: Vec<&[f64]> = self.leaves.values.iter().map(Vec::as_slice).collect();
        let evaluate = |values: Vec<Vec<Var<SINGLE>>>| formula.evaluate(&Leaves { names: names.clone(), values });
        tape::store_outputs_in(storage);
        let (o, log_sums, gradients) = tape::gradients(&leaves, evaluate, d_o);
        let round = |x: f64| if SINGLE { f64::from(storage.rounding()(x as f32)) } else { x };
        let values = o.iter().map(|o| round(o.to_f64())).collect();
        let mut all = vec![Defined { name: "o", values, sizes: o.iter().map(|o| o.size).collect() }];
        all.extend(log_sums.map(|sums| lse(sums.into_iter().map(Real::to_f64).collect())));
        for (leaf, (values, sizes)) in names.iter().zip(gradients) {
            let stored = ["q", "k", "v", "x", "gates"].contains(leaf);
            let values = if stored { values.into_iter().map(round).collect() } else { values };
            all.push(Defined { name: gradient_of(leaf), values, sizes });
        }
        all
    }
}

/// `d` and the name of a leaf.
pub(crate) fn gradient_of(leaf: &str) -> &'static str {
    const NAMES: [&str; 10] = ["dq", "dk", "dv", "dx", "dkey_bias", "dbias", "dtype_logits", "dthreshold", "dgates", "dmix"];
    NAMES.into_iter().find(|name| name[1..] == *leaf).unwrap_or_else(|| panic!("{leaf} is no leaf of any mechanism"))
}

impl<F: Formula> Oracle for Judged<F> {
    fn leaves(&mut self) -> Vec<(&'static str, &mut Vec<f64>)> {
        self.leaves.names.iter().copied().zip(&mut self.leaves.values).collect()
    }

    fn truth(&self, d_o: Option<&[f64]>) -> Vec<Defined> {
        self.run::<false>(&self.formula, d_o, Storage::F32)
    }

    fn plain(&self, d_o: Option<&[f64]>, storage: Storage) -> Vec<Vec<Defined>> {
        let by_lse = self.formula.by_lse();
        std::iter::once(&self.formula).chain(&by_lse).map(|formula| self.run::<true>(formula, d_o, storage)).collect()
    }

    fn received(&self) -> Option<Vec<f64>> {
        self.formula.received(&self.leaves)
    }

    fn refine(&mut self, option: &str, value: f64) {
        self.formula.refine(option, value);
    }

    fn rows(&self, head: [usize; 2], rows: &[usize]) -> Option<Vec<ForwardRow>> {
        self.formula.rows(&self.leaves, head, rows)
    }
}
