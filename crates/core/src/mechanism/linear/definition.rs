//! The definition: every weight by itself.

use crate::Dims;
use crate::mechanism::owned::widened;
use crate::oracle::{Formula, ForwardRow, Judged, Leaves, Oracle, Real};
use crate::scan::{Map, Scan, Visible};

#[derive(Clone)]
struct Definition {
    map: Map,
    dims: Dims,
    epsilon: Option<f64>,
    visible: Visible,
}

pub(super) fn oracle(scan: &Scan<'_>) -> Box<dyn Oracle> {
    let (dims, [q, k, v]) = (scan.dims(), scan.views());
    let definition = Definition { map: scan.rules().map, dims, epsilon: scan.rules().epsilon.map(f64::from), visible: scan.visible() };
    Box::new(Judged::new(definition, vec![("q", widened(&q)), ("k", widened(&k)), ("v", widened(&v))]))
}

/// Features of one row.
fn features<T: Real>(map: Map, row: &[T]) -> Vec<T> {
    let zero = T::from_f64(0.0);
    let positive = |x: T| if x > zero { x } else { zero };
    match map {
        Map::Elu1 => row.iter().map(|&x| if x > zero { x + T::from_f64(1.0) } else { x.exp() }).collect(),
        Map::Relu => row.iter().map(|&x| positive(x)).collect(),
        Map::Identity => row.to_vec(),
        Map::SquaredRelu => row.iter().map(|&x| positive(x) * positive(x)).collect(),
        Map::Softmax => {
            let largest = row.iter().fold(row[0], |max, &x| if x > max { x } else { max }).constant();
            let e: Vec<T> = row.iter().map(|&x| (x - largest).exp()).collect();
            let sum = e.iter().fold(zero, |sum, &x| sum + x);
            e.into_iter().map(|x| x / sum).collect()
        }
    }
}

impl Definition {
    /// One row of o.
    fn attend<T: Real>(&self, q: &[T], keys: &[(&[T], &[T])]) -> Vec<T> {
        let zero = T::from_f64(0.0);
        let (mut o, mut sum) = (vec![zero; self.dims.dv], zero);
        for (k, v) in keys {
            let weight = q.iter().zip(*k).fold(zero, |sum, (&x, &y)| sum + x * y);
            sum = sum + weight;
            o.iter_mut().zip(*v).for_each(|(o, &x)| *o = *o + weight * x);
        }
        let Some(epsilon) = self.epsilon else {
            return o.into_iter().map(|x| x.over(T::from_f64(1.0))).collect();
        };
        let denominator = sum + T::from_f64(epsilon);
        if keys.is_empty() || denominator.to_f64() == 0.0 {
            return vec![zero; self.dims.dv];
        }
        o.into_iter().map(|x| x.over(denominator)).collect()
    }
}

impl Formula for Definition {
    fn evaluate<T: Real>(&self, leaves: &Leaves<T>) -> (Vec<T>, Option<Vec<T>>) {
        let Dims { heads, queries, keys, dk, dv, .. } = self.dims;
        let [q, k] = ["q", "k"].map(|name| leaves.get(name).chunks(dk).map(|row| features(self.map, row)).collect::<Vec<_>>());
        let v: Vec<&[T]> = leaves.get("v").chunks(dv).collect();
        let mut o = Vec::with_capacity(q.len() * dv);
        for (at, q) in q.iter().enumerate() {
            let (head, n) = (at / queries, at % queries);
            let first = (head / self.dims.group()) * keys;
            let seen = self.visible.keys(head / heads, n).into_iter().map(|key| (&k[first + key][..], v[first + key]));
            o.extend(self.attend(q, &seen.collect::<Vec<_>>()));
        }
        (o, None)
    }

    fn rows(&self, leaves: &Leaves<f64>, [b, h]: [usize; 2], rows: &[usize]) -> Option<Vec<ForwardRow>> {
        let Dims { heads, kv_heads, queries, keys, dk, dv, .. } = self.dims;
        let first = (b * kv_heads + h / self.dims.group()) * keys;
        let of_head = |leaf: &'static str, width: usize| leaves.get(leaf)[first * width..(first + keys) * width].chunks(width);
        let k: Vec<Vec<f64>> = of_head("k", dk).map(|row| features(self.map, row)).collect();
        let v: Vec<&[f64]> = of_head("v", dv).collect();
        let of = |&n: &usize| {
            let q = features(self.map, &leaves.get("q")[((b * heads + h) * queries + n) * dk..][..dk]);
            let seen: Vec<(&[f64], &[f64])> = self.visible.keys(b, n).into_iter().map(|key| (&k[key][..], v[key])).collect();
            let o = self.attend(&q, &seen);
            ForwardRow { largest_term_o: o.iter().map(|x| x.abs()).collect(), o, lse: f64::NEG_INFINITY }
        };
        Some(rows.iter().map(of).collect())
    }

    fn refine(&mut self, option: &str, value: f64) {
        if let ("eps", Some(epsilon)) = (option, &mut self.epsilon) {
            *epsilon = value;
        }
    }
}
