//! Derivatives of a definition without writing them down: numbers that remember how they came about.
//!
//! Every operation on [`Var`]s is noted with its slopes; [`gradients`] goes through the notes backwards. With `SINGLE`
//! every operation is rounded to float32, forward and backward, which makes it the honest plain implementation whose error
//! is a kernel's budget. A number carries its `size` too: the largest absolute summand that it is a sum of.

use super::{Real, Storage};
use std::cell::{Cell, RefCell};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// One noted operation: what it read, and its slopes by those.
struct Note {
    parents: [u32; 2],
    slopes: [f64; 2],
}

/// A number that is not differentiated.
const CONSTANT: u32 = u32::MAX;

thread_local! {
    static NOTES: RefCell<Vec<Note>> = const { RefCell::new(Vec::new()) };
    /// What the plain implementation stores its outputs in.
    static STORAGE: Cell<Storage> = const { Cell::new(Storage::F32) };
}

/// A number whose origin is noted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Var<const SINGLE: bool> {
    at: u32,
    value: f64,
    /// The largest absolute summand in it.
    pub(super) size: f64,
}

fn rounded<const SINGLE: bool>(x: f64) -> f64 {
    if SINGLE { f64::from(x as f32) } else { x }
}

fn note(parents: [u32; 2], slopes: [f64; 2]) -> u32 {
    if parents == [CONSTANT; 2] {
        return CONSTANT;
    }
    NOTES.with_borrow_mut(|notes| {
        notes.push(Note { parents, slopes });
        u32::try_from(notes.len() - 1).expect("a definition is small")
    })
}

impl<const SINGLE: bool> Var<SINGLE> {
    /// A number that gradients are wanted of.
    fn leaf(x: f64) -> Self {
        let at = NOTES.with_borrow_mut(|notes| {
            notes.push(Note { parents: [CONSTANT; 2], slopes: [0.0; 2] });
            notes.len() - 1
        });
        Var { at: at as u32, value: rounded::<SINGLE>(x), size: x.abs() }
    }

    fn unary(self, value: f64, slope: f64, size: f64) -> Self {
        Var { at: note([self.at, CONSTANT], [slope, 0.0]), value: rounded::<SINGLE>(value), size }
    }

    fn binary(self, other: Self, value: f64, slopes: [f64; 2], size: f64) -> Self {
        Var { at: note([self.at, other.at], slopes), value: rounded::<SINGLE>(value), size }
    }
}

/// Outputs of the plain implementation are rounded to this type from now on.
pub(super) fn store_outputs_in(storage: Storage) {
    STORAGE.set(storage);
}

/// The gradient by one leaf, and its sizes.
pub(super) type Gradient = (Vec<f64>, Vec<f64>);

/// Runs a definition on leaves; gives its outputs, and for slopes of the last of them the gradients by every leaf with
/// their sizes.
pub(super) fn gradients<const SINGLE: bool, R>(
    leaves: &[&[f64]],
    run: impl FnOnce(Vec<Vec<Var<SINGLE>>>) -> (Vec<Var<SINGLE>>, R),
    d_o: Option<&[f64]>,
) -> (Vec<Var<SINGLE>>, R, Vec<Gradient>) {
    NOTES.with_borrow_mut(Vec::clear);
    let variable = if d_o.is_some() { Var::leaf } else { Var::from_f64 };
    let variables: Vec<Vec<_>> = leaves.iter().map(|leaf| leaf.iter().map(|&x| variable(x)).collect()).collect();
    let (o, rest) = run(variables);
    let gradients = d_o.map_or_else(Vec::new, |d_o| {
        let all = walk_back::<SINGLE>(&o, d_o);
        let mut at = 0;
        let mut next = |leaf: &&[f64]| {
            at += leaf.len();
            all[at - leaf.len()..at].iter().copied().unzip()
        };
        leaves.iter().map(&mut next).collect()
    });
    NOTES.with_borrow_mut(|notes| *notes = Vec::new());
    (o, rest, gradients)
}

/// Gradient and size of every noted number; leaves were noted first.
fn walk_back<const SINGLE: bool>(o: &[Var<SINGLE>], d_o: &[f64]) -> Vec<(f64, f64)> {
    NOTES.with_borrow(|notes| {
        let mut all = vec![(0.0, 0.0); notes.len()];
        for (o, &d) in o.iter().zip(d_o).filter(|(o, _)| o.at != CONSTANT) {
            let (sum, size): &mut (f64, f64) = &mut all[o.at as usize];
            (*sum, *size) = (*sum + d, size.max(d.abs()));
        }
        for (at, note) in notes.iter().enumerate().rev() {
            let (gradient, size) = all[at];
            for (&parent, &slope) in note.parents.iter().zip(&note.slopes).filter(|(parent, _)| **parent != CONSTANT) {
                let (sum, largest) = &mut all[parent as usize];
                *sum = rounded::<SINGLE>(*sum + rounded::<SINGLE>(gradient * slope));
                *largest = largest.max(size * slope.abs());
            }
        }
        all
    })
}

impl<const SINGLE: bool> PartialEq for Var<SINGLE> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<const SINGLE: bool> PartialOrd for Var<SINGLE> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

impl<const SINGLE: bool> Add for Var<SINGLE> {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.binary(other, self.value + other.value, [1.0, 1.0], self.size.max(other.size))
    }
}

impl<const SINGLE: bool> Sub for Var<SINGLE> {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.binary(other, self.value - other.value, [1.0, -1.0], self.size.max(other.size))
    }
}

impl<const SINGLE: bool> Mul for Var<SINGLE> {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let size = (self.size * other.value.abs()).max(self.value.abs() * other.size);
        self.binary(other, self.value * other.value, [other.value, self.value], size)
    }
}

impl<const SINGLE: bool> Div for Var<SINGLE> {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let value = self.value / other.value;
        let slopes = [1.0 / other.value, -value / other.value].map(rounded::<SINGLE>);
        self.binary(other, value, slopes, self.size / other.value.abs())
    }
}

impl<const SINGLE: bool> Neg for Var<SINGLE> {
    type Output = Self;
    fn neg(self) -> Self {
        self.unary(-self.value, -1.0, self.size)
    }
}

impl<const SINGLE: bool> Real for Var<SINGLE> {
    fn from_f64(x: f64) -> Self {
        Var { at: CONSTANT, value: rounded::<SINGLE>(x), size: x.abs() }
    }
    fn to_f64(self) -> f64 {
        self.value
    }
    fn exp(self) -> Self {
        let value = rounded::<SINGLE>(self.value.exp());
        self.unary(value, value, value)
    }
    fn ln(self) -> Self {
        self.unary(self.value.ln(), rounded::<SINGLE>(1.0 / self.value), self.value.ln().abs())
    }
    fn tanh(self) -> Self {
        let value = rounded::<SINGLE>(self.value.tanh());
        self.unary(value, rounded::<SINGLE>(1.0 - value * value), value.abs())
    }
    fn over(self, sum: Self) -> Self {
        let value = self.value / sum.value;
        let value = if SINGLE { f64::from(STORAGE.get().rounding()(value as f32)) } else { value };
        let slopes = [1.0 / sum.value, -value / sum.value].map(rounded::<SINGLE>);
        self.binary(sum, value, slopes, self.size / sum.value.abs())
    }
    fn sqrt(self) -> Self {
        let value = rounded::<SINGLE>(self.value.sqrt());
        self.unary(value, rounded::<SINGLE>(0.5 / value), value)
    }
}
