//! The definition: every weight by itself.

use crate::Dims;
use crate::mechanism::owned::widened;
use crate::oracle::{Formula, Judged, Leaves, Oracle, Real};
use crate::scan::{Map, Scan};

#[derive(Clone)]
struct Definition {
    map: Map,
    dims: Dims,
    epsilon: Option<f64>,
    /// Which keys every query row of a batch row sees, `[B, N]`.
    seen: Vec<Vec<usize>>,
}

pub(super) fn oracle(scan: &Scan<'_>) -> Box<dyn Oracle> {
    let (dims, [q, k, v]) = (scan.dims(), scan.views());
    let keys = |at: usize| (0..dims.keys).filter(|&key| scan.sees(at / dims.queries, at % dims.queries, key)).collect();
    let definition = Definition {
        map: scan.rules().map,
        dims,
        epsilon: scan.rules().epsilon.map(f64::from),
        seen: (0..dims.batch * dims.queries).map(keys).collect(),
    };
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
            let seen = self.seen[head / heads * queries + n].iter().map(|&key| (&k[first + key][..], v[first + key]));
            o.extend(self.attend(q, &seen.collect::<Vec<_>>()));
        }
        (o, None)
    }

    fn refine(&mut self, option: &str, value: f64) {
        if let ("eps", Some(epsilon)) = (option, &mut self.epsilon) {
            *epsilon = value;
        }
    }
}
