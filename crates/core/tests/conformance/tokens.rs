//! Packed sequences for reducers, and reducers with options, drawn from seeds.

use super::common::Random;
use regard_core::mechanism::OptionAbout;
use regard_core::reduce::{Reducer, Tokens};
use regard_core::rows::Matrix;
use regard_core::{Element, Error};
use std::ops::Range;

/// Everything that a reducer can read.
#[derive(Debug, Clone)]
pub struct Batch<T> {
    pub offsets: Vec<usize>,
    pub width: usize,
    pub x: Vec<T>,
    pub keys: Vec<T>,
    pub score: Vec<f32>,
    pub sizes: Vec<f32>,
    pub gate_logits: Vec<f32>,
    pub protected: Vec<bool>,
}

impl<T: Element> Batch<T> {
    /// Normal numbers; a tenth of the tokens has zero vectors, and every other seed makes a fifth of them copies of earlier ones.
    pub fn draw(lengths: &[usize], width: usize, seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let offsets = [0].into_iter().chain(lengths.iter().scan(0, |end, length| Some(*end + length).inspect(|sum| *end = *sum))).collect();
        let rows: usize = lengths.iter().sum();
        let mut normals = |count: usize| -> Vec<f32> { (0..count).map(|_| random.normal()).collect() };
        let narrow = |values: Vec<f32>| -> Vec<T> { values.into_iter().map(T::from_f32).collect() };
        let (x, keys) = (narrow(normals(rows * width)), narrow(normals(rows * width)));
        let (score, gate_logits) = (normals(rows).iter().map(|x| x * x).collect(), normals(rows));
        let sizes = (0..rows).map(|_| 1.0 + random.below(4) as f32).collect();
        let protected = (0..rows).map(|_| random.chance(0.08)).collect();
        let mut batch = Batch { offsets, width, x, keys, score, sizes, gate_logits, protected };
        for row in 0..rows {
            let other = random.below(row + 1);
            match random.below(10) {
                0 => batch.vectors(row).for_each(|row| row.fill(T::default())),
                1 | 2 if seed.is_multiple_of(2) => batch.copy(other, row),
                _ => {}
            }
        }
        batch
    }

    fn vectors(&mut self, row: usize) -> impl Iterator<Item = &mut [T]> {
        let range = row * self.width..(row + 1) * self.width;
        [&mut self.x, &mut self.keys].into_iter().map(move |values| &mut values[range.clone()])
    }

    fn copy(&mut self, from: usize, to: usize) {
        let width = self.width;
        for values in [&mut self.x, &mut self.keys] {
            values.copy_within(from * width..(from + 1) * width, to * width);
        }
        self.score[to] = self.score[from];
        self.gate_logits[to] = self.gate_logits[from];
    }

    pub fn rows(&self) -> usize {
        self.score.len()
    }

    pub fn sequences(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|pair| pair[0]..pair[1])
    }

    pub fn matrix<'a>(&self, values: &'a [T]) -> Matrix<'a, T> {
        Matrix::new(values, [values.len() / self.width, self.width], "input").unwrap()
    }

    pub fn tokens(&self) -> Tokens<'_, T> {
        Tokens {
            offsets: &self.offsets,
            score: Some(&self.score),
            x: Some(self.matrix(&self.x)),
            keys: Some(self.matrix(&self.keys)),
            sizes: Some(&self.sizes),
            gate_logits: Some(&self.gate_logits),
            protected: Some(&self.protected),
        }
    }

    /// One of its sequences alone.
    pub fn alone(&self, rows: Range<usize>) -> Self {
        let elements = rows.start * self.width..rows.end * self.width;
        Batch {
            offsets: vec![0, rows.len()],
            width: self.width,
            x: self.x[elements.clone()].to_vec(),
            keys: self.keys[elements].to_vec(),
            score: self.score[rows.clone()].to_vec(),
            sizes: self.sizes[rows.clone()].to_vec(),
            gate_logits: self.gate_logits[rows.clone()].to_vec(),
            protected: self.protected[rows].to_vec(),
        }
    }
}

/// The reducer of this name with these settings.
pub fn reducer(name: &str, settings: &[(&str, &str)]) -> Reducer {
    let mut reducer = Reducer::by_name(name).unwrap_or_else(|| panic!("no {name}"));
    for (option, value) in settings {
        reducer.set(option, value).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    reducer
}

/// A reducer with about half of its options set to something; an error where they exclude one another.
pub fn drawn(name: &str, random: &mut Random) -> Result<Reducer, Error> {
    let mut reducer = reducer(name, &[]);
    for option in reducer.about().options {
        if random.chance(0.5) {
            // A value that is out of the option's range is refused, and the option keeps its default.
            let _ = reducer.set(option.name, &value(option, random));
        }
    }
    reducer.check().map(|()| reducer)
}

fn value(option: &OptionAbout, random: &mut Random) -> String {
    let numbers = ["0", "0.1", "0.5", "0.9", "1", "1.5"];
    let integers = ["0", "1", "2", "5", "30"];
    match option.kind {
        "number" => random.pick(&numbers).to_owned(),
        "integer" => random.pick(&integers).to_owned(),
        "numbers" => [0; 3].map(|_| random.pick(&numbers)).join(","),
        "integers" => [0; 3].map(|_| random.pick(&integers)).join(","),
        words => {
            let words: Vec<&str> = words.split([',', ' ']).filter(|word| !word.is_empty() && *word != "or").collect();
            random.pick(&words).to_owned()
        }
    }
}
